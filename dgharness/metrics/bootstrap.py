"""Intervals of means over examples: how far a slice's number may lie from that of the population it is of.

The Bayesian bootstrap (Rubin, The Bayesian Bootstrap, 1981) draws weights of the examples, exponential and
independent, where the ordinary bootstrap draws how often each example occurs. Of a value that is 0 or 1 the
weighted mean is then Beta(right, wrong); half an example is added to each (Jeffreys' prior), or else a group
whose examples are all wrong would have an interval without width, whatever its size.

Shapes: P pairs of an example and its slice, K slices, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dgharness.metrics.slicing import Slicing

LEVEL = 0.95
AT_ONCE = 2**22  # weights that are drawn in one go


def share_draws(right_K: Tensor, count_K: Tensor, draws: int, seed: Sequence[int]) -> Tensor:
    """Draws [B, K] of shares of which ``right`` in ``count`` were seen; NaN where nothing was, or NaN was."""
    known_K = (count_K > 0) & ~right_K.isnan()
    right_K, wrong_K = (part_K.where(known_K, 0.0).double() for part_K in (right_K, count_K - right_K))
    stream = np.random.default_rng(seed)
    drawn_BK = stream.beta((right_K + 0.5).numpy(), (wrong_K + 0.5).numpy(), size=(draws, len(count_K)))
    return torch.from_numpy(drawn_BK).masked_fill(~known_K, torch.nan)


def mean_draws(value_P: Tensor, slices: Slicing, draws: int, seed: Sequence[int]) -> Tensor:
    """Draws [B, K] of the mean of any values in each slice; NaN where there are fewer than two examples."""
    stream, parts = np.random.default_rng(seed), []
    at_once = max(1, AT_ONCE // max(1, len(value_P)))
    for start in range(0, draws, at_once):
        size = (min(at_once, draws - start), len(value_P))
        weight_BP = torch.from_numpy(stream.standard_exponential(size))
        parts.append(slices.total(weight_BP * value_P) / slices.total(weight_BP))
    return torch.cat(parts).masked_fill(slices.count_K < 2, torch.nan)


def interval(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Percentiles over the draws [B, ...] between which ``LEVEL`` of them lie; NaN where a draw is NaN."""
    if not drawn.numel():
        return torch.empty(drawn.shape[1:]), torch.empty(drawn.shape[1:])
    tail = (1 - LEVEL) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=drawn.dtype), dim=0)
    return low, high


def share_interval(drawn_BK: Tensor, share_K: Tensor) -> tuple[Tensor, Tensor]:
    """As ``interval``, reaching to 0 where nothing was right and to 1 where everything was."""
    low_K, high_K = interval(drawn_BK)
    return low_K.masked_fill(share_K == 0, 0.0), high_K.masked_fill(share_K == 1, 1.0)


def mean_interval(drawn_BK: Tensor, value: float) -> tuple[float, float]:
    """Of a mean over slices: the spread of its draws [B, K], about the value that was measured.

    About the value, because half an example more in each of many small slices moves the mean of the draws.
    """
    mean_B = drawn_BK.nanmean(1)
    low, high = interval(mean_B - mean_B.mean() + value)
    return low.item(), high.item()


def worst_share_interval(drawn_BK: Tensor, share_K: Tensor) -> tuple[float, float]:
    """An interval for the smallest of the true shares, whichever slice has it.

    The slice that looks worst was picked because it does, so that its own interval lies too low, and the more
    so the more slices there are; the smallest of each draw is lower still. Here the lower end is the lowest
    of the slices' lower ends, and the upper end the lowest of upper ends that hold for all slices at once: in
    97.5 % of the draws no slice is further above its mean than so many of its standard deviations, both of
    the log-odds.
    """
    known_K = ~share_K.isnan()
    drawn_BK, share_K = drawn_BK[:, known_K], share_K[known_K]
    if not len(share_K):
        return float("nan"), float("nan")
    high = highest_at_once(drawn_BK.logit(eps=1e-12)).sigmoid().min()
    return share_interval(drawn_BK, share_K)[0].min().item(), max(high.item(), share_K.min().item())


def worst_error_interval(drawn_BK: Tensor) -> tuple[float, float]:
    """As ``worst_share_interval``, for the largest of the true mean errors; its scale is the logarithm."""
    drawn_BK = drawn_BK[:, ~drawn_BK.isnan().any(0)]
    if not drawn_BK.shape[1]:
        return float("nan"), float("nan")
    tiny = torch.finfo(drawn_BK.dtype).tiny
    low = (-highest_at_once(-drawn_BK.clamp(min=tiny).log())).exp().max()
    return low.item(), interval(drawn_BK)[1].max().item()


def highest_at_once(drawn_BK: Tensor) -> Tensor:
    """Upper ends [K] that all slices together are below in 97.5 % of the draws."""
    mean_K, std_K = drawn_BK.mean(0), drawn_BK.std(0)
    furthest_B = ((drawn_BK - mean_K) / std_K.clamp(min=torch.finfo(std_K.dtype).tiny)).amax(1)
    return mean_K + furthest_B.quantile(1 - (1 - LEVEL) / 2) * std_K
