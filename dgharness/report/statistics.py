"""Means with their spread, and what a design can tell: the smallest p-value, the trials needed."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np

ALPHA = 0.05
POWER = 0.8
MOST_TRIALS = 1000  # beyond this, more trials are no plan

Ddof = Literal[0, 1]
_leggauss = cache(np.polynomial.legendre.leggauss)


def mean_se(values: Sequence[float], ddof: Ddof = 1) -> tuple[float, float | None]:
    """Mean and its standard error, the root of Σ(x - mean)² / (n - ddof) / n; one value has none.

    DomainBed's tables have ddof=0, which is too small by the factor sqrt((n - 1) / n).

    >>> mean_se([1.0, 2.0, 3.0])
    (2.0, 0.577...)
    >>> mean_se([1.0, 2.0, 3.0], ddof=0)
    (2.0, 0.471...)
    >>> mean_se([0.5])
    (0.5, None)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - ddof) / n)


def smallest_p(trials: int, comparisons: int = 1) -> float:
    """The smallest two-sided p that trials can reach without assuming normality, after Holm's correction.

    If a difference is symmetric around 0, its sign is a toss in every trial, and all agree with probability
    2^(1-n); the smallest of k such values is multiplied by k.

    >>> smallest_p(3), smallest_p(10, comparisons=9)
    (0.25, 0.017578125)
    """
    return min(1.0, comparisons * 2.0 ** (1 - trials))


def power(trials: int, effect: float, level: float) -> float:
    """The probability that a two-sided paired t-test at ``level`` finds a difference.

    ``effect`` is the mean of the differences over their standard deviation. Under normality t is then
    noncentral, with n - 1 degrees of freedom and noncentrality effect · sqrt(n). Its distribution is
    integrated over the quantiles of the estimated deviation: scipy's nct is NaN for many large effects.

    >>> round(power(34, 0.5, level=0.05), 3)
    0.808
    """
    from scipy.special import ndtr, stdtrit  # without the import time of scipy.stats

    freedom, shift = trials - 1, abs(effect) * math.sqrt(trials)
    estimated, weights = _deviations(freedom)
    critical = stdtrit(freedom, 1 - level / 2) * estimated
    return float(weights @ (ndtr(shift - critical) + ndtr(-shift - critical)))


@cache
def _deviations(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimated over true standard deviation at the nodes of Gauss and Legendre, with their weights."""
    from scipy.special import chdtri

    nodes, weights = _leggauss(100)
    return np.sqrt(chdtri(freedom, (1 - nodes) / 2) / freedom), weights / 2


def trials_needed(difference: float, sd: float, level: float = ALPHA) -> int | None:
    """The fewest trials at which a difference of this mean and deviation is found with probability POWER.

    None where MOST_TRIALS do not suffice. Mean and deviation are taken as true although they are estimates.

    >>> trials_needed(0.5, 1.0), trials_needed(0.001, 1.0)
    (34, None)
    """
    many = range(2, MOST_TRIALS + 1)
    place = bisect_left(many, POWER, key=lambda trials: power(trials, difference / sd, level))
    return many[place] if place < len(many) else None
