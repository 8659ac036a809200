"""``dgharness report``: the comparison of tracked runs, printed or written, and tracked itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dgharness import tracking
from dgharness.config import SHOWN
from dgharness.errors import UsageError, did_you_mean
from dgharness.training.progress import to_stderr

if TYPE_CHECKING:
    from dgharness.report.load import Found


def run_report(
    experiment: str,
    rules: Sequence[str] | None,
    *,
    baseline: str,
    extras: Sequence[str],
    gaps: bool,
    plugins: Sequence[str],
    format_: str,
    to: Path | None,
) -> None:
    """Print the comparison of an experiment's runs, by the rule that they show if none is named."""
    from dgharness import registry
    from dgharness.report.cells import build_tables
    from dgharness.report.load import load_experiment
    from dgharness.report.render import Format, render

    if format_ not in get_args(Format):
        raise UsageError(f"there is no report format {format_!r}; {did_you_mean(format_, get_args(Format))}")
    for plugin in plugins:
        registry.add_plugin(plugin)
    if rules is not None and not rules:
        raise UsageError("--rule names no selection rule; name one, as in --rule training-domain-validation")
    for name in rules or ():  # a mistake there is said before the store is opened
        registry.load("selection", name)
    found = load_experiment(experiment)
    _refuse_unlogged(extras, found)
    rules = rules or [_rule_of_the_runs(found)]
    tables = build_tables(
        found.records,
        [registry.load("selection", name) for name in rules],
        baseline=_baseline(registry.canonical("algorithms", baseline), found),
        expected=found.expected,
        not_applicable=found.not_applicable,
        extras=extras,
        gaps=gaps,
    )
    text = render(tables, format_)
    if to:
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"cannot write {to}: {error.strerror}; choose another file with --to, or leave it out"
            ) from None
        to_stderr(f"written: {to}")
    else:
        print(text, end="")
    _track_report(found.store, rules, baseline, tables)


def _track_report(store: tracking.Store, rules: Sequence[str], baseline: str, tables: Sequence[Any]) -> None:
    """A report is a tracked run of its own; the same tables again are the same run."""
    from dgharness.report.render import render

    texts = {"report.md": render(tables, "markdown"), "report.json": render(tables, "json")}
    digest = hashlib.sha256(texts["report.json"].encode()).hexdigest()[:12]
    params = {"rules": ", ".join(rules), "baseline": baseline}
    try:
        run_id = tracking.start_group(
            store, "report", f"report by {', '.join(rules)}", {"dg.report": digest}, params, texts
        )
    except UsageError as error:
        to_stderr(f"the report itself is not tracked: {error}")
        return
    tracking.finish_group(store, run_id)


def _baseline(name: str, found: Found) -> str:
    """The baseline as named; one without runs is a mistake unless it is the default."""
    run = {record.algorithm for record in found.records}
    if name not in run and name != "erm":
        raise UsageError(f"no run of this experiment has the baseline {name!r}; {did_you_mean(name, run)}")
    return name


def _rule_of_the_runs(found: Found) -> str:
    """The rule that the runs were told to show, if it is the same for all of them."""
    shown = {record.tags.get("dg.shown", SHOWN) for record in found.records}
    if len(shown) == 1:
        return shown.pop()
    to_stderr(f"the runs show their results by {' and '.join(sorted(shown))}; here by {SHOWN} (--rule)")
    return SHOWN


def _refuse_unlogged(extras: Sequence[str], found: Found) -> None:
    """A further metric that no run has logged is a mistake."""
    logged = {f"cost/{name}" for record in found.records for name in record.cost} | {
        key.removeprefix("test/")
        for record in found.records
        for evaluation in record.evaluations
        for key in evaluation.metrics
        if key.startswith("test/")
    }
    for name in extras:
        if logged and name not in logged:
            summaries = [key for key in logged if "/" not in key or key.startswith("cost/")]
            raise UsageError(f"no run has logged the metric {name!r}; {did_you_mean(name, summaries)}")
