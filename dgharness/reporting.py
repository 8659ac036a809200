"""``dgharness report``: the comparison of tracked runs, printed or written, and tracked itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dgharness import registry, tracking
from dgharness.config import SHOWN
from dgharness.errors import UsageError, did_you_mean
from dgharness.training.progress import to_stderr

if TYPE_CHECKING:
    from dgharness.report.load import Found
    from dgharness.report.table import Table
    from dgharness.selection.rule import Rule


@dataclass(frozen=True)
class Asked:
    """What a report is to show."""

    experiments: Sequence[str]
    rules: Sequence[str] | None = None  # None: the rule that the runs show; ["all"]: every rule
    baseline: str = "erm"
    extras: Sequence[str] = ()
    gaps: bool = False
    cost: bool = False
    ddof: int = 1
    against: Sequence[str] = ()  # "reference", or a directory of earlier runs
    imported: Sequence[Path] = ()  # directories with results of DomainBed
    plugins: Sequence[str] = ()
    format_: str = "text"
    to: Path | None = None


def run_report(asked: Asked) -> None:
    """Print the comparison of the runs of some experiments, by the rule that they show if none is named."""
    from dgharness.report.render import render

    _check(asked)
    found = _found(asked)
    rules = [registry.load("selection", name) for name in _rules(asked, found)]
    tables = [table for each in found for table in _tables(asked, each, rules)]
    if asked.format_ == "html":
        as_page = _page(asked, found, rules, tables)
        _write(as_page, asked.to or Path("report.html"))
    else:
        text = render(tables, asked.format_)
        if asked.to:
            _write(text, asked.to)
        else:
            print(text, end="", flush=True)
        as_page = _page(asked, found, rules, tables)
    _track_report(asked, found, rules, tables, as_page)


def _check(asked: Asked) -> None:
    """A mistake in what was asked is said before any store is opened."""
    from dgharness.report.render import Format

    formats = (*get_args(Format), "html")
    if asked.format_ not in formats:
        known = did_you_mean(asked.format_, formats)
        raise UsageError(f"there is no report format {asked.format_!r}; {known}")
    if not asked.experiments and not asked.imported:
        raise UsageError("name an experiment, as the runs printed it, or results to --import")
    for plugin in asked.plugins:
        registry.add_plugin(plugin)
    if asked.rules is not None and not asked.rules:
        raise UsageError("--rule names no selection rule; name one, as in --rule training-domain-validation")
    later = [("--cost", asked.cost), ("--ddof 0", asked.ddof == 0), ("--against", asked.against)]
    for option, given in [*later, ("--import", asked.imported)]:
        if given:
            raise UsageError(f"{option} is not ready yet; leave it out")
    for name in asked.rules or ():
        if name != "all":
            registry.load("selection", name)


def _found(asked: Asked) -> list[Found]:
    """The runs of each experiment, and those that were imported."""
    from dgharness.report.load import load_experiment

    found = [load_experiment(experiment) for experiment in asked.experiments]
    _refuse_unlogged(asked.extras, found)
    return found


def _rules(asked: Asked, found: Sequence[Found]) -> list[str]:
    """The rules by name."""
    if asked.rules == ["all"]:
        return [entry.name for entry in registry.entries("selection")]
    return list(asked.rules or [_rule_of_the_runs(found)])


def _tables(asked: Asked, found: Found, rules: Sequence[Rule]) -> list[Table]:
    """The tables of one experiment."""
    from dgharness.report.cells import build_tables

    return build_tables(
        found.records,
        rules,
        baseline=_baseline(registry.canonical("algorithms", asked.baseline), found),
        expected=found.expected,
        not_applicable=found.not_applicable,
        extras=asked.extras,
        gaps=asked.gaps,
    )


def _page(asked: Asked, found: Sequence[Found], rules: Sequence[Rule], tables: Sequence[Table]) -> str:
    """The tables with the figures of each; of several rules, the figures go by the first."""
    from dgharness.report.html import Subject, page
    from dgharness.report.outcomes import comparable
    from dgharness.report.pictures import pictures

    drawn = [
        picture
        for each in found
        for group in comparable(each.records, each.expected)
        for picture in pictures(group, rules[0], each.not_applicable)
    ]
    records = [record for each in found for record in each.records]
    return page(Subject(asked.experiments, rules, records), tables, drawn)


def _write(text: str, to: Path) -> None:
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {to}: {error.strerror}; choose another file with --to, or leave it out"
        ) from None
    to_stderr(f"written: {to}")


def _track_report(
    asked: Asked, found: Sequence[Found], rules: Sequence[Rule], tables: Sequence[Table], as_page: str
) -> None:
    """A report is a tracked run of its own; the same tables again are the same run."""
    from dgharness.report.render import render

    names = ", ".join(rule.name for rule in rules)
    texts = {
        "report.md": render(tables, "markdown"),
        "report.json": render(tables, "json"),
        "report.html": as_page,
    }
    digest = hashlib.sha256(texts["report.json"].encode()).hexdigest()[:12]
    params = {"rules": names, "baseline": asked.baseline}
    for each in found:
        try:
            run_id = tracking.start_group(
                each.store, "report", f"report by {names}", {"dg.report": digest}, params, texts
            )
        except UsageError as error:
            to_stderr(f"the report itself is not tracked: {error}")
            continue
        tracking.finish_group(each.store, run_id)


def _baseline(name: str, found: Found) -> str:
    """The baseline as named; one without runs is a mistake unless it is the default."""
    run = {record.algorithm for record in found.records}
    if name not in run and name != "erm":
        raise UsageError(f"no run of this experiment has the baseline {name!r}; {did_you_mean(name, run)}")
    return name


def _rule_of_the_runs(found: Sequence[Found]) -> str:
    """The rule that the runs were told to show, if it is the same for all of them."""
    shown = {record.tags.get("dg.shown", SHOWN) for each in found for record in each.records}
    if len(shown) == 1:
        return shown.pop()
    to_stderr(f"the runs show their results by {' and '.join(sorted(shown))}; here by {SHOWN} (--rule)")
    return SHOWN


def _refuse_unlogged(extras: Sequence[str], found: Sequence[Found]) -> None:
    """A further metric that no run has logged is a mistake."""
    records = [record for each in found for record in each.records]
    logged = {f"cost/{name}" for record in records for name in record.cost} | {
        key.removeprefix("test/")
        for record in records
        for evaluation in record.evaluations
        for key in evaluation.metrics
        if key.startswith("test/")
    }
    for name in extras:
        if logged and name not in logged:
            summaries = [key for key in logged if "/" not in key or key.startswith("cost/")]
            raise UsageError(f"no run has logged the metric {name!r}; {did_you_mean(name, summaries)}")
