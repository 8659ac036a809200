"""Spread and paired comparison over trials, honest about how little few trials can show.

Every sample is a mapping from trial seed to an accuracy between 0 and 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

ALPHA = 0.05
_ROUNDING = 1e-12  # differences of accuracies below this are rounding, not results

K = TypeVar("K")


@dataclass(frozen=True)
class Comparison:
    """A paired difference to the baseline; without an interval where the differences do not vary."""

    difference: float
    low: float | None  # 95 % t-interval
    high: float | None
    p: float
    p_holm: float  # corrected over the comparisons made together
    trials: int

    @property
    def identical(self) -> bool:
        return self.difference == 0.0 and self.low is None

    @property
    def significant(self) -> bool:
        return self.p_holm <= ALPHA


def mean_se(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (ddof=1); one value has no standard error.

    >>> mean_se([1.0, 2.0, 3.0])
    (2.0, 0.577...)
    >>> mean_se([0.5])
    (0.5, None)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def smallest_p(trials: int) -> float:
    """The smallest two-sided p that a sign test can reach: 2^(1-n).

    >>> smallest_p(3)
    0.25
    """
    return 2.0 ** (1 - trials)


def compare(rival: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Paired t-test over the trials that both have; None with fewer than two.

    Equal differences in every trial would make any t-test certain: if all are zero the two are identical and
    p is 1, otherwise p is the sign test's.
    """
    from scipy.special import stdtr, stdtrit  # the t distribution, without the import time of scipy.stats

    trials = sorted(rival.keys() & baseline.keys())
    n = len(trials)
    if n < 2:
        return None
    differences = [rival[trial] - baseline[trial] for trial in trials]
    mean, se = mean_se(differences)
    if max(map(abs, differences)) <= _ROUNDING:
        return Comparison(0.0, None, None, 1.0, 1.0, n)
    if not se or max(differences) - min(differences) <= _ROUNDING:
        return Comparison(mean, None, None, smallest_p(n), smallest_p(n), n)
    half = float(stdtrit(n - 1, 1 - ALPHA / 2)) * se
    p = 2 * float(stdtr(n - 1, -abs(mean) / se))
    return Comparison(mean, mean - half, mean + half, p, p, n)


def holm(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The same comparisons with Holm's step-down correction: the rate of any false claim stays at ALPHA."""
    in_order = sorted(comparisons, key=lambda key: comparisons[key].p)
    corrected: dict[K, Comparison] = {}
    highest = 0.0
    for rank, key in enumerate(in_order):
        highest = max(highest, min(1.0, (len(in_order) - rank) * comparisons[key].p))
        corrected[key] = dataclasses.replace(comparisons[key], p_holm=highest)
    return {key: corrected[key] for key in comparisons}
