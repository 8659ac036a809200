"""Checkpoints as points of a plane: one accuracy against another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd

from dgharness.diagnostics.line import clipped
from dgharness.diagnostics.tracked import IN_DISTRIBUTION, TrackedRuns
from dgharness.errors import NotApplicable, UsageError, did_you_mean
from dgharness.metrics.measure import measure_of
from dgharness.selection.rule import RunRecord

FEWEST = 3  # points with different x, for a parabola to say anything
_COUNTED = {"wga": "wga_count", "acc_worst_domain": "acc_worst_domain_count"}
_COUNTED |= {"worst_class_acc": "worst_class_count"}


def id_key(tracked: TrackedRuns) -> str:
    """The accuracy in distribution: what was asked for, else the mean over domains of ``id_test``, ... ."""
    if tracked.x:
        return tracked.x
    logged = logged_keys(tracked.records)
    keys = [f"{split}/acc_domain_mean" for split in IN_DISTRIBUTION]
    return next((key for key in keys if key in logged), keys[-1])


def ood_key(tracked: TrackedRuns) -> str:
    """The accuracy out of distribution: what was asked for, else the mean over the target's domains.

    Where the shift is one of subpopulations it is the accuracy of the worst group.
    """
    subpopulations = tracked.records[0].protocol == "subpopulation"
    return tracked.y or ("test/wga" if subpopulations else "test/acc_domain_mean")


def logged_keys(records: Iterable[RunRecord]) -> set[str]:
    """Every metric key of any checkpoint."""
    return {key for run in records for evaluation in run.evaluations for key in evaluation.metrics}


def points(tracked: TrackedRuns, x: str, y: str) -> pd.DataFrame:
    """The scored checkpoints that have both numbers.

    Columns ``run``, ``label``, ``trial``, ``step``, ``chosen`` (by the rule, in its run), ``x`` and ``y``,
    which are clipped half an example away from 0 and 1. Fewer than 3 different x, or what is no accuracy, is
    NotApplicable; a key that no run has logged a UsageError.
    """
    logged = logged_keys(tracked.records)
    for key in (x, y):
        if key not in logged:
            if measure_of(logged).sign < 0:
                raise NotApplicable("it compares accuracies, and these runs predict numbers")
            raise UsageError(f"no run has logged the metric {key!r}; {did_you_mean(key, logged)}")

    def pair(metrics: Mapping[str, float]) -> tuple[float, float]:
        return accuracy(metrics, x), accuracy(metrics, y)

    return collected(tracked, pair, f"{x} and {y}")


def collected(
    tracked: TrackedRuns, pair: Callable[[Mapping[str, float]], tuple[float, float]], what: str
) -> pd.DataFrame:
    """The same of any function from the metrics of a checkpoint to x and y, NaN where it has none."""
    chosen = {(choice.run.run_id, choice.evaluation.step) for choice in tracked.chosen()}
    rows = [
        (
            run.run_id,
            tracked.label(run),
            run.trial_seed,
            evaluation.step,
            (run.run_id, evaluation.step) in chosen,
            *pair(evaluation.metrics),
        )
        for run, evaluation in tracked.scored()
    ]
    found = pd.DataFrame(rows, columns=["run", "label", "trial", "step", "chosen", "x", "y"])
    found = found.dropna(subset=["x", "y"]).reset_index(drop=True)
    if found["x"].nunique() < FEWEST:
        raise NotApplicable(
            f"{found['x'].nunique()} of the scored checkpoints differ in {what}, and a fit needs {FEWEST}; "
            "run more trials, draws or algorithms (--hparams)"
        )
    return found


def accuracy(metrics: Mapping[str, float], key: str) -> float:
    """A logged accuracy, clipped; NaN where it was not logged. What is no accuracy is NotApplicable."""
    value, count = metrics.get(key, math.nan), count_of(metrics, key)
    if value < 0 or value > 1:
        raise NotApplicable(f"{key} is {value:.3g} and so no accuracy; name another with --x or --y")
    if count is None:
        return value if 0 < value < 1 else math.nan  # nobody knows how far from 0 or 1 it may be
    return float(clipped(np.array(value), np.array(count))) if count else math.nan


def count_of(metrics: Mapping[str, float], key: str) -> float | None:
    """How many examples an accuracy is over; None where that was not logged.

    >>> count_of({"test/count": 90.0, "test/group_count/a": 7.0}, "test/group_acc/a")
    7.0
    >>> count_of({"test/count": 90.0}, "test/acc_domain_mean")
    90.0
    """
    split, _, name = key.partition("/")
    metric, slash, part = name.partition("/")
    own = f"{metric.removesuffix('acc')}count/{part}" if slash else _COUNTED.get(metric, "count")
    return metrics.get(f"{split}/{own}", metrics.get(f"{split}/count"))


def numbered(runs: pd.Series) -> np.ndarray:
    """A number for every run."""
    return pd.factorize(runs)[0]
