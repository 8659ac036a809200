"""``dgharness report``: the comparison of tracked runs, printed or written, and tracked itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from dgharness import registry, tracking
from dgharness.config import SHOWN
from dgharness.errors import UsageError, did_you_mean
from dgharness.training.progress import to_stderr

if TYPE_CHECKING:
    from dgharness.report.budget import Budget
    from dgharness.report.load import Runs
    from dgharness.report.outcomes import Comparable
    from dgharness.report.panels import Picture
    from dgharness.report.statistics import Ddof
    from dgharness.report.table import Table
    from dgharness.selection.rule import Rule


BASELINE = "erm"
REFERENCES = ("reference", EVERY_REFERENCE := "every-reference")  # published numbers; also of methods not run
EVERY = ["all"]


@dataclass(frozen=True)
class Asked:
    """What a report is to show."""

    experiments: Sequence[str]
    rules: Sequence[str] | None = None  # None: the rule that the runs show; ["all"]: every rule
    baseline: str = BASELINE
    extras: Sequence[str] = ()
    gaps: bool = False
    cost: bool = False
    ddof: Ddof = 1
    against: Sequence[str] = ()  # of REFERENCES, or directories of earlier runs
    imported: Sequence[Path] = ()  # directories with results of DomainBed
    plugins: Sequence[str] = ()
    format_: str = "text"
    to: Path | None = None


class Searched(NamedTuple):
    """A comparison of an experiment, and what searches of fewer draws would have found in it."""

    found: Runs
    group: Comparable
    budget: Budget


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for unreachable objects: it looks through millions of live ones again and again.

    On 10,000 runs that is a sixth of the time, and no memory is freed by it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collection()
def run_report(asked: Asked) -> None:
    """Print the comparison of the runs of some experiments, by the rule that they show if none is named."""
    from dgharness.report.over_datasets import over_datasets
    from dgharness.report.render import render

    _check(asked)
    found = _found(asked)
    rules = [registry.load("selection", name) for name in _rules(asked, found)]
    measured = [(table, each) for each in found for table in _tables(asked, each, rules)]
    together, drawn = over_datasets([table for table, _ in measured], rules)
    tables = [_with_published(asked, table, each) for table, each in measured]
    if len({table.block.dataset for table in tables}) > 1:
        titled = [replace(table, title=f"{table.block.dataset}, {table.title}") for table in tables]
    else:
        titled = tables
    budgets = cache(lambda: [pair for each in found for pair in _budgets(each, rules[0])])
    costs = cache(lambda: [*_costs(found), *_at_equal_budgets(budgets())])
    shown = [*titled, *together, *(costs() if asked.cost else ())]
    if asked.format_ != "html":
        text = render(shown, asked.format_)
        if asked.to:
            _write(text, asked.to)
        else:
            print(text, end="", flush=True)
    as_page = cache(lambda: _page(asked, found, rules, [*tables, *together], costs(), budgets(), drawn))
    if asked.format_ == "html":
        _write(as_page(), asked.to or Path("report.html"))
    _track_report(asked, found, rules, shown, as_page)


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
    for name in asked.rules if asked.rules and asked.rules != EVERY else ():
        registry.load("selection", name)


def _found(asked: Asked) -> list[Runs]:
    """The runs of each experiment with the earlier ones that may join them, and those that were imported."""
    from dgharness.report.domainbed_results import read_results
    from dgharness.report.load import load_experiment
    from dgharness.report.reference_store import join

    found: list[Runs] = [load_experiment(experiment) for experiment in asked.experiments]
    for place in asked.against:
        if place not in REFERENCES:
            found, refused = join(found, Path(place))
            for sentence in refused:
                to_stderr(sentence)
    found += [read_results(place) for place in asked.imported]
    _refuse_unlogged(asked.extras, found)
    return found


def _rules(asked: Asked, found: Sequence[Runs]) -> list[str]:
    """The names of the rules, each once; of every rule those by which some row has a result."""
    from dgharness.report.every_rule import applicable

    if asked.rules == EVERY:
        shown = _rule_of_the_runs(found)
        names = [entry.name for entry in registry.entries("selection") if entry.status == "ok"]
        rules = applicable([registry.load("selection", name) for name in names], found, shown)
        kept = [rule.name for rule in rules] or [shown]
        if left_out := [name for name in names if name not in kept]:
            to_stderr(f"left out, since no row allows them: {', '.join(left_out)}")
        return kept
    named = asked.rules or [_rule_of_the_runs(found)]
    return list(dict.fromkeys(registry.canonical("selection", name) for name in named))


def _tables(asked: Asked, found: Runs, rules: Sequence[Rule]) -> list[Table]:
    """The tables of one experiment; every rule is shown side by side, by its averages."""
    from dgharness.report.cells import build_tables
    from dgharness.report.every_rule import with_queries

    rules = _as_there(rules, found)
    tables = build_tables(
        found.records,
        rules,
        baseline=baseline_among(asked.baseline, {record.algorithm for record in found.records}),
        expected=found.expected,
        layout="averages" if asked.rules == EVERY else "auto",
        extras=_extras(asked, found, rules),
        gaps=asked.gaps or asked.rules == EVERY,
        not_applicable=found.not_applicable,
        ddof=asked.ddof,
    )
    if found.source:
        tables = [replace(table, caption=(*table.caption, found.source)) for table in tables]
    return with_queries(tables, found.records) if asked.rules == EVERY else tables


def _with_published(asked: Asked, table: Table, found: Runs) -> Table:
    from dgharness.report.published import beside

    if not {*REFERENCES} & {*asked.against}:
        return table
    return beside(table, found.records, others=EVERY_REFERENCE in asked.against)


def _as_there(rules: Sequence[Rule], found: Runs) -> Sequence[Rule]:
    """The rules as they decide ties where the runs were made."""
    from dgharness.report.domainbed_results import as_its_scripts

    return [as_its_scripts(rule) for rule in rules] if found.source else rules


def _extras(asked: Asked, found: Runs, rules: Sequence[Rule]) -> list[str]:
    """Worst group and calibration beside the results of one rule, unless others are asked for, or none."""
    from dgharness.report.extras import usual_extras

    if not asked.extras and len(rules) == 1:
        return usual_extras(found.records)
    return [name for name in asked.extras if name != "none"]


def _costs(found: Sequence[Runs]) -> list[Table]:
    from dgharness.report.cost import cost_tables

    return [table for each in found for table in cost_tables(each.records, each.expected)]


def _budgets(found: Runs, rule: Rule) -> list[Searched]:
    """Every comparison of an experiment with its search budget."""
    from dgharness.report.budget import budget_curves
    from dgharness.report.outcomes import comparable

    (rule,) = _as_there([rule], found)
    groups = comparable(found.records, found.expected)
    budgets = budget_curves(found.records, rule, expected=found.expected, not_applicable=found.not_applicable)
    return [Searched(found, group, budget) for group, budget in zip(groups, budgets, strict=True)]


def _at_equal_budgets(budgets: Sequence[Searched]) -> list[Table]:
    from dgharness.report.budget_table import budget_table

    tables = [budget_table(budget, group.measure) for _, group, budget in budgets]
    return [table for table in tables if table is not None]


def _page(
    asked: Asked,
    found: Sequence[Runs],
    rules: Sequence[Rule],
    tables: Sequence[Table],
    costs: Sequence[Table],
    budgets: Sequence[Searched],
    drawn: Sequence[Picture],
) -> str:
    """The tables with the figures of each; of several rules, the figures go by the first."""
    from dgharness.report.budget_picture import budget_picture
    from dgharness.report.html import Subject, page
    from dgharness.report.pictures import pictures

    drawn = list(drawn)
    for each, group, budget in budgets:
        drawn += pictures(group, budget.rule, each.not_applicable)
        drawn.append(budget_picture(budget, group.measure))
    records = [record for each in found for record in each.records]
    names = [*asked.experiments, *map(str, asked.imported)]
    return page(Subject(names, rules, records), tables, drawn, costs)


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
    asked: Asked,
    found: Sequence[Runs],
    rules: Sequence[Rule],
    tables: Sequence[Table],
    as_page: Callable[[], str],
) -> None:
    """A report is a tracked run of its own; the same tables again are the same run, with its page."""
    from dgharness.report.load import Found
    from dgharness.report.render import render

    names = ", ".join(rule.name for rule in rules)
    as_json = render(tables, "json")

    def logged() -> dict[str, Any]:
        texts = {"report.md": render(tables, "markdown"), "report.json": as_json, "report.html": as_page()}
        return {"params": {"rules": names, "baseline": asked.baseline}, "texts": texts}

    for each in found:
        if isinstance(each, Found):  # no experiment holds what was read from files
            tracking.keep_result(each.store, "report", f"report by {names}", as_json, logged)


def baseline_among(name: str, rows: Collection[str]) -> str:
    """The baseline, its alias resolved; one that is no row is a mistake unless it is the default."""
    name = registry.canonical("algorithms", name)
    if name not in rows and name != BASELINE:
        raise UsageError(f"no run of this experiment has the baseline {name!r}; {did_you_mean(name, rows)}")
    return name


def _rule_of_the_runs(found: Sequence[Runs]) -> str:
    """The rule that the runs were told to show, if it is the same for all of them."""
    shown = {record.tags.get("dg.shown", SHOWN) for each in found for record in each.records}
    if len(shown) == 1:
        return shown.pop()
    to_stderr(f"the runs show their results by {' and '.join(sorted(shown))}; here by {SHOWN} (--rule)")
    return SHOWN


def _refuse_unlogged(extras: Sequence[str], found: Sequence[Runs]) -> None:
    """A further metric that no run has logged is a mistake."""
    if not extras:
        return
    records = [record for each in found for record in each.records]
    logged = {f"cost/{name}" for record in records for name in record.cost} | {
        key.removeprefix("test/")
        for record in records
        for evaluation in record.evaluations
        for key in evaluation.metrics
        if key.startswith("test/")
    }
    for name in extras:
        if name != "none" and logged and name not in logged:
            summaries = [key for key in logged if "/" not in key or key.startswith("cost/")]
            raise UsageError(f"no run has logged the metric {name!r}; {did_you_mean(name, summaries)}")
