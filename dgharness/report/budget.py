"""What a search is worth: the test accuracy to expect of n hyperparameter draws, and what they cost.

``budget_curves`` gives a ``Budget`` for every comparison, and a ``BudgetCurve`` in it for every row; a figure
plots ``curve.mean`` and ``curve.se`` against ``curve.draws`` (equal draws) or ``curve.seconds`` (equal time).

A sweep of n draws runs the defaults (draw 0) and n - 1 random draws, and reports the one that its rule
chooses. Which random draws it has is chance: the curve is the mean over all choices of n - 1 of those that
were run, without replacement, which has a closed form. At n = all it is the number in the table. Without a
draw 0 all n are random.

Dodge et al., Show Your Work: Improved Reporting of Experimental Results, 2019, ask for the curve; their
estimate draws with replacement, which is biased (Tang et al., Showing Your Work Doesn't Always Work, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dgharness.report.outcomes import (
    Comparable,
    Expected,
    NotApplicable,
    Slot,
    comparable,
    outcome,
    reported,
)
from dgharness.report.refusals import unscored
from dgharness.report.statistics import mean_se
from dgharness.report.table import Block
from dgharness.selection.rule import Rule, RunRecord, choose

DEFAULTS = 0  # the draw that is no draw: every search begins with it


class Draw(NamedTuple):
    """One hyperparameter draw of a trial: what the rule makes of it, and what it is worth."""

    number: int
    score: float  # NaN where the rule finds nothing to go by
    value: float  # on the test split, at the checkpoint that the rule would take
    seconds: float
    unscored: str = ""  # why there is no value


@dataclass(frozen=True)
class BudgetCurve:
    """One row's expected result by budget: the mean over targets within each trial, then over trials."""

    label: str
    trials: Mapping[int, tuple[float, ...]]  # trial seed -> value at every budget
    seconds: tuple[float, ...] = ()  # of training at every budget: summed over targets, mean over trials
    problem: str = ""  # why there is no curve, short
    detail: str = ""

    @property
    def draws(self) -> tuple[int, ...]:
        """The budgets: 1, 2, ..., all draws."""
        return tuple(range(1, len(self.seconds) + 1))

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(mean_se(values)[0] for values in zip(*self.trials.values(), strict=True))

    @property
    def se(self) -> tuple[float | None, ...]:
        """Standard error over trials (ddof=1), None with fewer than two."""
        return tuple(mean_se(values)[1] for values in zip(*self.trials.values(), strict=True))

    def within(self, seconds: float) -> int:
        """The draws that fit into so many seconds of training; 0 if not even one does."""
        return sum(needed <= seconds for needed in self.seconds)


@dataclass(frozen=True)
class Budget:
    """The curves of one comparison under one rule."""

    block: Block
    apart: str  # the settings by which other blocks differ
    rule: Rule
    targets: tuple[str, ...]  # the columns that each curve averages over
    curves: tuple[BudgetCurve, ...]

    @property
    def equal_draws(self) -> int:
        """The largest number of draws that every row has; 0 without any curve."""
        return min((len(curve.draws) for curve in self.curves if not curve.problem), default=0)

    @property
    def equal_seconds(self) -> float:
        """The training time of the quickest row's whole search; NaN where a row's time is not known."""
        last = [curve.seconds[-1] for curve in self.curves if curve.seconds]
        return math.nan if any(map(math.isnan, last)) else min(last, default=math.nan)


def budget_curves(
    records: Sequence[RunRecord],
    rule: Rule,
    *,
    expected: Sequence[Expected] | Mapping[Block, Sequence[Expected]] | None = None,
    not_applicable: NotApplicable | None = None,
) -> list[Budget]:
    """The curves of every comparison among the runs, as ``build_tables`` tells comparisons apart.

    A row with a run that is missing or not finished has no curve, but the reason.
    """
    return [_budget(group, rule, not_applicable or {}) for group in comparable(records, expected)]


def expected_best(draws: Sequence[Draw], n: int) -> float:
    """The expected value of the draw with the best score among n: the defaults, and n - 1 others at random.

    Ties go to the first draw, and NaN never wins. NaN where nothing might be left to choose.

    >>> low, high = Draw(1, 0.1, 0.6, 9.0), Draw(2, 0.2, 0.8, 9.0)
    >>> round(expected_best([low, high], 1), 3), expected_best([low, high], 2)
    (0.7, 0.8)
    """
    ranked = sorted(draws, key=lambda draw: (-_comparable(draw.score), draw.number))
    random = [draw.number != DEFAULTS for draw in ranked]
    others, drawn = sum(random), n - (len(ranked) - sum(random))
    if not 0 <= drawn <= others:
        raise ValueError(f"{n} of {len(draws)} draws cannot be had")
    terms: list[float] = []
    below = others  # random draws that this one or a later one would beat
    for draw, is_random in zip(ranked, random, strict=True):
        below -= is_random
        ways = math.comb(below, drawn - is_random) if drawn >= is_random else 0
        if ways:
            value = math.nan if math.isnan(draw.score) else draw.value
            terms.append(value * (ways / math.comb(others, drawn)))
        if not is_random:
            break  # the defaults are always there, so nothing worse is ever chosen
    return math.fsum(terms)


def expected_seconds(draws: Sequence[Draw], n: int) -> float:
    """The training time to expect of n draws: the defaults', and n - 1 times the mean of the others."""
    given = [draw.seconds for draw in draws if draw.number == DEFAULTS]
    others = [draw.seconds for draw in draws if draw.number != DEFAULTS]
    drawn = n - len(given)
    return math.fsum(given) + (drawn * math.fsum(others) / len(others) if drawn else 0.0)


def _budget(group: Comparable, rule: Rule, exempt: NotApplicable) -> Budget:
    curves = tuple(_curve(group, rule, label, exempt) for label in group.runs.labels)
    names = tuple("+".join(column) for column in group.runs.columns)
    return Budget(group.block, group.apart, rule, names, curves)


def _curve(group: Comparable, rule: Rule, label: str, exempt: NotApplicable) -> BudgetCurve:
    runs = group.runs
    for column in runs.columns:
        chosen = outcome(rule, runs, label, column, exempt)
        if chosen.problem:
            return BudgetCurve(label, {}, problem=chosen.problem, detail=chosen.detail)
    found: dict[tuple[int, tuple[str, ...]], list[Draw]] = {}
    for column in runs.columns:
        for trial in _trials(group, label, column):
            found[trial, column] = draws = _draws(group, rule, label, column, trial)
            if detail := next((draw.unscored for draw in draws if draw.unscored), ""):
                return BudgetCurve(label, {}, problem="n/a", detail=detail)
    most = min(map(len, found.values()))
    trials = sorted(set.intersection(*(_trials(group, label, column) for column in runs.columns)))
    of_trial = {trial: [found[trial, column] for column in runs.columns] for trial in trials}
    values = {
        trial: tuple(
            math.fsum(expected_best(draws, n) for draws in columns) / len(columns) for n in range(1, most + 1)
        )
        for trial, columns in of_trial.items()
    }
    seconds = tuple(
        math.fsum(expected_seconds(draws, n) for columns in of_trial.values() for draws in columns)
        / len(trials)
        for n in range(1, most + 1)
    )
    return BudgetCurve(label, values, seconds)


def _trials(group: Comparable, label: str, column: tuple[str, ...]) -> set[int]:
    held_out = tuple(sorted(column))
    return {s.trial_seed for s in group.runs.runs if s.label == label and s.targets == held_out}


def _draws(group: Comparable, rule: Rule, label: str, column: tuple[str, ...], trial: int) -> list[Draw]:
    """Every draw of one trial as the rule sees it alone; the choice among them is the best of these."""
    held_out = tuple(sorted(column))
    of_trial = [slot for slot in group.runs.runs if (slot.label, slot.trial_seed) == (label, trial)]
    pairs = [group.runs.runs[slot][0] for slot in of_trial if _holds_out_one_more(slot, held_out)]
    found = []
    for slot in of_trial:
        if slot.targets == held_out:
            (run,) = group.runs.runs[slot]
            own = choose(rule, [run], pairs if rule.pairs else ())
            also = [pair for pair in pairs if rule.pairs and pair.hparams_seed == slot.hparams_seed]
            seconds = math.fsum(_seconds(each, group) for each in (run, *also))
            score, value = (own.score, reported(own)) if own else (math.nan, math.nan)
            found.append(Draw(slot.hparams_seed, score, value, seconds, unscored(rule, own) if own else ""))
    return found


def _seconds(run: RunRecord, group: Comparable) -> float:
    """A run's training time; that of a run on a pair of targets is shared by the columns it serves."""
    served = sum(set(column) <= set(run.targets) for column in group.runs.columns)
    return run.cost.get("seconds", math.nan) / max(1, served)


def _holds_out_one_more(slot: Slot, held_out: tuple[str, ...]) -> bool:
    return len(slot.targets) == 2 and set(held_out) < set(slot.targets)


def _comparable(score: float) -> float:
    return -math.inf if math.isnan(score) else score
