"""Paired differences to a baseline over trials and held-out domains: interval, p-value, Holm's correction.

The trial is the unit: runs of one trial share data, splits, initialisation and the draws of hyperparameters,
so an algorithm's luck in a trial may show on all of its held-out domains. docs/statistics.md has the formulas
and the simulations behind this choice.

Shapes: n trials, m held-out domains (the targets of a table), ``difference_nm``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dgharness.report.statistics import ALPHA, smallest_p, trials_needed

_ROUNDING = 1e-12  # differences of accuracies below this are rounding, not results

ByTrial = Mapping[int, float]  # trial seed -> accuracy on one held-out domain
K = TypeVar("K")


@dataclass(frozen=True)
class Comparison:
    """A paired difference to the baseline; without an interval where the differences do not vary."""

    difference: float
    low: float | None  # 95 %, uncorrected
    high: float | None
    p: float
    p_holm: float  # corrected over the comparisons made together
    trials: int
    sd: float = 0.0  # of the trials' differences, each a mean over held-out domains (ddof=1)
    trials_needed: int | None = None  # None: called different, no spread to go by, or beyond MOST_TRIALS

    @property
    def identical(self) -> bool:
        return self.difference == 0.0 and self.low is None

    @property
    def significant(self) -> bool:
        return self.p_holm <= ALPHA

    @property
    def undecided(self) -> bool:
        """Not called different, though more trials might."""
        return not self.significant and self.sd > 0


def compare(rival: Sequence[ByTrial], baseline: Sequence[ByTrial]) -> Comparison | None:
    """Compare two algorithms on the same held-out domains; None with fewer than two trials that share all.

    p is that of a paired t-test over trials, each the mean over its held-out domains. The interval is the
    difference ± the t quantile of n - 1 degrees of freedom times ``hierarchical_se``; with one held-out
    domain, that is the t-interval.

    Equal differences in every trial would make any t-test certain: if all are zero the two are identical and
    p is 1, otherwise p is the sign test's.
    """
    from scipy.special import stdtr, stdtrit  # the t distribution, without the import time of scipy.stats

    trials = sorted(set.intersection(*(set(column) for column in (*rival, *baseline))))
    n = len(trials)
    if n < 2:
        return None
    difference_nm = np.array(
        [[a[trial] - b[trial] for a, b in zip(rival, baseline, strict=True)] for trial in trials]
    )
    if np.abs(difference_nm).max() <= _ROUNDING:
        return Comparison(0.0, None, None, 1.0, 1.0, n)
    mean_n = difference_nm.mean(1)
    mean = float(mean_n.mean())
    wide = float(hierarchical_se(difference_nm))
    half = float(stdtrit(n - 1, 1 - ALPHA / 2)) * wide
    low, high = (mean - half, mean + half) if wide > _ROUNDING else (None, None)
    if np.ptp(mean_n) <= _ROUNDING:
        p = 1.0 if abs(mean) <= _ROUNDING else smallest_p(n)
        return Comparison(mean, low, high, p, p, n)
    sd = float(mean_n.std(ddof=1))
    p = 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / sd))
    return Comparison(mean, low, high, p, p, n, sd)


def hierarchical_se(difference_nm: np.ndarray) -> np.ndarray:
    """Standard error of the mean by a hierarchical bootstrap: trials, then held-out domains within each.

    Drawing n trials with replacement, and m domains with replacement in each of them, gives the mean the
    variance (B + W/m) / n: B is the variance of the trials' means, W that within a trial, averaged over
    trials (both with ddof=0). No draw is needed to know it. B is too small by (n - 1)/n, so the result is
    inflated by sqrt(n / (n - 1)). With one domain that is the ordinary standard error. Leading axes are kept.
    """
    n, m = difference_nm.shape[-2:]
    between = difference_nm.mean(-1).var(-1)
    within = difference_nm.var(-1).mean(-1)
    return np.sqrt((between + within / m) / (n - 1))


def holm(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The same comparisons with Holm's step-down correction: the rate of any false claim stays at ALPHA.

    What is not called different is told how many trials its difference would need at the first step's level,
    ALPHA over the number of comparisons.
    """
    in_order = sorted(comparisons, key=lambda key: comparisons[key].p)
    corrected: dict[K, Comparison] = {}
    highest = 0.0
    for rank, key in enumerate(in_order):
        highest = max(highest, min(1.0, (len(in_order) - rank) * comparisons[key].p))
        found = dataclasses.replace(comparisons[key], p_holm=highest)
        if found.undecided:
            needed = trials_needed(found.difference, found.sd, ALPHA / len(in_order))
            found = dataclasses.replace(found, trials_needed=needed)
        corrected[key] = found
    return {key: corrected[key] for key in comparisons}
