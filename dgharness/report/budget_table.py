"""What every row's search found with as many draws as the others, and in as much time."""

from __future__ import annotations

import math

from dgharness.metrics.measure import ACCURACY, Measure
from dgharness.report.budget import Budget, BudgetCurve
from dgharness.report.captions import title
from dgharness.report.table import Cell, Column, Row, Table, Unit


def budget_table(budget: Budget, measure: Measure) -> Table | None:
    """The result to expect at equal draws and at equal time; None where no row has several draws."""
    if all(len(curve.draws) < 2 for curve in budget.curves):
        return None
    unit: Unit = "percent" if measure is ACCURACY else "number"
    draws, seconds = budget.equal_draws, budget.equal_seconds
    rows = tuple(
        Row(curve.label, (_at(curve, draws), _at(curve, curve.within(seconds)), _draws(curve, seconds)))
        for curve in budget.curves
    )
    return Table(
        title=f"equal budgets, {title(budget.rule)}",
        block=budget.block,
        columns=(
            Column(f"{draws} draws", unit, budget.rule.name),
            Column("equal time", unit, budget.rule.name),
            Column("draws in that time", "number", budget.rule.name),
        ),
        rows=rows,
        caption=(
            f"{measure.name.capitalize()}, mean over {', '.join(budget.targets)}, to expect of a search of "
            f"so many draws by {title(budget.rule)}, the defaults among them: {budget.block}.",
            *(
                [f"Runs with other settings stand in a table of their own; here: {budget.apart}."]
                if budget.apart
                else []
            ),
            f"{draws} draws are the most that every row has; equal time is {_shown(seconds)}, that of the "
            "quickest row's whole search, and a row's draws are those whose training fits into it. Mean ± "
            "standard error over trials (ddof = 1).",
        ),
        notes=tuple(dict.fromkeys(curve.detail for curve in budget.curves if curve.detail)),
    )


def _at(curve: BudgetCurve, draws: int) -> Cell:
    if curve.problem or not draws:
        return Cell(problem=curve.problem or "n/a", detail=curve.detail)
    return Cell({trial: values[draws - 1] for trial, values in curve.trials.items()})


def _draws(curve: BudgetCurve, seconds: float) -> Cell:
    if curve.problem:
        return Cell(problem=curve.problem, detail=curve.detail)
    return Cell(dict.fromkeys(curve.trials, float(curve.within(seconds))))


def _shown(seconds: float) -> str:
    return "not known" if math.isnan(seconds) else f"{seconds:.0f} s of training a trial"
