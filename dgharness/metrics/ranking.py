"""Metrics of order alone: AUROC, average precision, rank correlation. Ties count half, or share their rank.

Shapes: N examples, K slices, P pairs of an example and its slice, S rows of scores, T labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgharness.metrics.slicing import Slicing


class Sorted(NamedTuple):
    """Each row of scores in falling order within each slice, and the run of equal scores a place is in."""

    order_SP: Tensor
    first_SP: Tensor  # first place of the run
    last_SP: Tensor


def auroc_and_ap(
    score_SP: Tensor, positive_SP: Tensor, known_SP: Tensor, slices: Slicing
) -> tuple[Tensor, Tensor]:
    """Area under the ROC curve and average precision of every row of scores in every slice, [S, K] twice.

    Pairs that are not known count nowhere. AUROC needs a positive and a negative, average precision a
    positive; else they are NaN, as where a known score is NaN. Both are those of scikit-learn.
    """
    order_SP, first_SP, last_SP = runs(score_SP, slices)
    pos_SP = (positive_SP & known_SP).double().gather(-1, order_SP)
    neg_SP = (~positive_SP & known_SP).double().gather(-1, order_SP)
    true_SP, false_SP = _within(pos_SP, slices), _within(neg_SP, slices)  # so far, this one included
    true_last_SP, false_last_SP = true_SP.gather(-1, last_SP), false_SP.gather(-1, last_SP)
    above_SP = (true_SP - pos_SP).gather(-1, first_SP)
    pos_SK, neg_SK = slices.total(pos_SP), slices.total(neg_SP)
    auroc_SK = slices.total(neg_SP * (above_SP + true_last_SP) / 2) / (pos_SK * neg_SK)
    precision_SP = true_last_SP / (true_last_SP + false_last_SP).clamp(min=1)
    ap_SK = slices.total(pos_SP * precision_SP) / pos_SK
    broken_SK = slices.total((score_SP.isnan() & known_SP).double()) > 0
    return auroc_SK.masked_fill(broken_SK, torch.nan), ap_SK.masked_fill(broken_SK, torch.nan)


def label_ranks(outputs_NT: Tensor, targets_NT: Tensor, slices: Slicing) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of every label over the examples where it is known, [T, K] twice."""
    targets_TP = targets_NT.cpu().T[:, slices.example_P]
    scores_TP = outputs_NT.detach().cpu().T[:, slices.example_P]
    return auroc_and_ap(scores_TP, targets_TP > 0.5, ~targets_TP.isnan(), slices)


def runs(score_SP: Tensor, slices: Slicing) -> Sorted:
    """Sort every row of scores within each slice, the largest first."""
    order_SP = score_SP.argsort(dim=-1, descending=True)
    if len(slices) > 1:
        order_SP = order_SP.gather(-1, slices.slice_P[order_SP].argsort(dim=-1, stable=True))
    sorted_SP, places = score_SP.gather(-1, order_SP), torch.arange(score_SP.shape[-1])
    new_SP = torch.ones_like(order_SP, dtype=torch.bool)
    new_SP[..., 1:] = (sorted_SP[..., 1:] != sorted_SP[..., :-1]) | slices.slice_P.diff().bool()
    first_SP = torch.where(new_SP, places, 0).cummax(-1).values
    ends_SP = torch.ones_like(new_SP)
    ends_SP[..., :-1] = new_SP[..., 1:]
    last_SP = torch.where(ends_SP, places, len(places)).flip(-1).cummin(-1).values.flip(-1)
    return Sorted(order_SP, first_SP, last_SP)


def _within(value_SP: Tensor, slices: Slicing) -> Tensor:
    """Cumulative sums that start anew in every slice."""
    sum_SP = value_SP.cumsum(-1)
    total_SK = slices.total(value_SP)
    return sum_SP - (total_SK.cumsum(-1) - total_SK)[..., slices.slice_P]


def ranks(value_P: Tensor, slices: Slicing) -> Tensor:
    """Ranks within each slice, the largest first and from 0; equal values share the mean of theirs."""
    order_P, first_P, last_P = runs(value_P, slices)
    rank_P = (first_P + last_P) / 2 - slices.start_K[slices.slice_P]
    return torch.empty_like(rank_P).scatter_(0, order_P, rank_P).double()


def pearson(one_P: Tensor, other_P: Tensor, slices: Slicing) -> Tensor:
    """Pearson's correlation in every slice [K]; NaN where one of the two does not vary, or is NaN."""
    deviation_2P = torch.stack([one_P, other_P]).double()
    varies_K = torch.stack([_varies(one_P, slices), _varies(other_P, slices)]).all(0)
    deviation_2P = deviation_2P - slices.mean(deviation_2P)[:, slices.slice_P]
    spread_K = slices.total(deviation_2P.square()).prod(0).sqrt()
    found_K = slices.total(deviation_2P.prod(0)) / spread_K
    return found_K.clamp(-1, 1).where(varies_K, torch.nan)


def spearman(one_P: Tensor, other_P: Tensor, slices: Slicing) -> Tensor:
    """Spearman's rank correlation in every slice [K]; NaN where one of the two does not vary, or is NaN."""
    broken_K = slices.total((one_P + other_P).isnan().double()) > 0
    found_K = pearson(ranks(one_P, slices), ranks(other_P, slices), slices)
    return found_K.masked_fill(broken_K, torch.nan)


def _varies(value_P: Tensor, slices: Slicing) -> Tensor:
    first_P = value_P[slices.start_K.clamp(max=max(len(value_P) - 1, 0))[slices.slice_P]]
    return slices.total((value_P != first_P).double()) > 0
