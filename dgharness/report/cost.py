"""What the runs of a comparison cost, the attempts that failed among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dgharness.report.outcomes import Comparable, Expected, comparable
from dgharness.report.table import Block, Cell, Column, Row, Table, label_of
from dgharness.selection.rule import RunRecord

# What is added up: a column's name, and the key of ``RunRecord.cost``.
COSTS = {
    "seconds": "seconds",
    "seconds in failed attempts": "failed_seconds",
    "training images": "images",
    "test-set queries": "test_queries",
}
OF_FAILED = ("failed_seconds",)  # of every run; the others are logged by those that finish


@dataclass(frozen=True)
class Spent:
    """What the runs of one row and target cost in one trial, over all draws; NaN where it was not logged."""

    finished: int
    failed: int  # attempts that failed or were killed, those of runs that finished later among them
    totals: Mapping[str, float]  # by the keys of COSTS


def spent(runs: Sequence[RunRecord]) -> Spent:
    """Add up the cost of some runs and of all their attempts."""
    finished = [run for run in runs if run.status == "FINISHED"]
    return Spent(
        len(finished),
        int(sum(run.cost.get("failed_attempts", 0) for run in runs)),
        {
            name: math.fsum(run.cost.get(key, 0.0) for run in runs)
            if key in OF_FAILED
            else math.fsum(run.cost.get(key, math.nan) for run in finished)
            for name, key in COSTS.items()
        },
    )


def cost_tables(
    records: Sequence[RunRecord],
    expected: Sequence[Expected] | Mapping[Block, Sequence[Expected]] | None = None,
) -> list[Table]:
    """A table for each comparison, as ``build_tables`` tells them apart: a row per algorithm and target."""
    return [_table(group) for group in comparable(records, expected)]


def queries(records: Sequence[RunRecord]) -> str:
    """How often the runs of each row looked at the test set, in a sentence; empty where nobody knows."""
    of_row: dict[str, list[RunRecord]] = {}
    for record in records:
        of_row.setdefault(label_of(record), []).append(record)
    counts = {label: spent(runs).totals["test-set queries"] for label, runs in of_row.items()}
    known = {label: count for label, count in counts.items() if not math.isnan(count)}
    if not known:
        return ""
    named = ", ".join(f"{label} {count:.0f}" for label, count in known.items())
    return f"Test-set queries (checkpoints scored on the target, over all runs of a row): {named}."


def _table(group: Comparable) -> Table:
    by_row: dict[str, dict[int, list[RunRecord]]] = {}
    for record in group.records:
        row = f"{label_of(record)} on {'+'.join(record.targets)}"
        by_row.setdefault(row, {}).setdefault(record.trial_seed, []).append(record)
    rows = tuple(Row(label, _cells(of_trial)) for label, of_trial in by_row.items())
    names = ["runs", "failed attempts", *COSTS]
    apart = group.apart
    notes = [cell.detail for row in rows for cell in row.cells if cell.detail]
    if untimed := sum(record.cost.get("untimed_attempts", 0) for record in group.records):
        notes.append(f"Attempts that nobody saw end are counted, but not their seconds: {untimed:.0f}.")
    return Table(
        title="cost",
        block=group.block,
        columns=tuple(Column(name, "number") for name in names),
        rows=rows,
        caption=(
            f"Cost of a trial with all its draws: {group.block}.",
            *([f"Runs with other settings stand in a table of their own; here: {apart}."] if apart else []),
            "Mean ± standard error over trials (ddof = 1). Seconds are those of training and evaluation in "
            "runs that finished; an attempt that failed or was killed counts from its start to its end.",
            _in_all(spent(group.records)),
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def _cells(of_trial: Mapping[int, Sequence[RunRecord]]) -> tuple[Cell, ...]:
    found = {trial: spent(runs) for trial, runs in sorted(of_trial.items())}
    return (
        Cell({trial: float(each.finished) for trial, each in found.items()}),
        Cell({trial: float(each.failed) for trial, each in found.items()}),
        *(_summed(name, found, of_trial) for name in COSTS),
    )


def _summed(name: str, found: Mapping[int, Spent], of_trial: Mapping[int, Sequence[RunRecord]]) -> Cell:
    values = {trial: each.totals[name] for trial, each in found.items()}
    for trial, value in values.items():
        if math.isnan(value):
            run = next(run for run in of_trial[trial] if math.isnan(run.cost.get(COSTS[name], math.nan)))
            return Cell(problem="n/a", detail=f"run {run.run_id} logged no {name}")
    return Cell(values)


def _in_all(total: Spent) -> str:
    counts = {"runs": total.finished, "failed attempts": total.failed} | dict(total.totals)
    named = [f"{name} {value:.0f}" for name, value in counts.items() if not math.isnan(value)]
    return f"In all: {', '.join(named)}."
