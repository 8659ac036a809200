"""Metrics of order alone: AUROC, average precision, rank correlation. Ties count half, or share their rank.

Shapes: N examples, K slices, P pairs of an example and its slice, S rows of scores, T labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgharness.metrics.slicing import Slicing


def auroc_and_ap(
    score_SP: Tensor, positive_SP: Tensor, known_SP: Tensor, slices: Slicing
) -> tuple[Tensor, Tensor]:
    """Area under the ROC curve and average precision of every row of scores in every slice, [S, K] twice.

    Pairs that are not known count nowhere. AUROC needs a positive and a negative, average precision a
    positive; else they are NaN, as where a known score is NaN. Both are those of scikit-learn.
    """
    # Every evaluation of a run comes through here. Both metrics need no more than where the positives stand
    # among the sorted scores, and NumPy sorts bare numbers several times faster than PyTorch their order too.
    auroc_SK = np.full((len(score_SP), len(slices)), np.nan)
    ap_SK = auroc_SK.copy()
    score_SP, positive_SP = score_SP.where(known_SP, torch.nan), positive_SP & known_SP
    broken_SK = slices.total((score_SP.isnan() & known_SP).double()) > 0
    known_SK, found_SK = slices.total(known_SP.long()), slices.total(positive_SP.long()) > 0
    sizes = slices.count_K.tolist()
    parts = zip(score_SP.split(sizes, -1), positive_SP.split(sizes, -1), strict=True)
    for k, (own_SP, is_positive_SP) in enumerate(parts):
        sorted_SP = np.sort(own_SP.numpy())  # what is not known is last
        for s in (found_SK & ~broken_SK)[:, k].nonzero()[:, 0].tolist():
            positives = np.sort(own_SP[s, is_positive_SP[s]].numpy())
            auroc_SK[s, k], ap_SK[s, k] = _of_sorted(positives, sorted_SP[s, : known_SK[s, k]])
    return torch.from_numpy(auroc_SK), torch.from_numpy(ap_SK)


def _of_sorted(positives: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of positives among all scores, both in rising order."""
    below, own_below = scores.searchsorted(positives), positives.searchsorted(positives)
    up_to, own_up_to = scores.searchsorted(positives, "right"), positives.searchsorted(positives, "right")
    negatives = len(scores) - len(positives)
    beaten = (below - own_below + up_to - own_up_to) / 2  # negatives, of ties the half
    precision = (len(positives) - own_below) / (len(scores) - below)
    return float(beaten.mean() / negatives) if negatives else np.nan, float(precision.mean())


def label_ranks(outputs_NT: Tensor, targets_NT: Tensor, slices: Slicing) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of every label over the examples where it is known, [T, K] twice."""
    targets_TP = targets_NT.cpu().T[:, slices.example_P]
    scores_TP = outputs_NT.detach().cpu().T[:, slices.example_P]
    return auroc_and_ap(scores_TP, targets_TP > 0.5, ~targets_TP.isnan(), slices)


def ranks(value_P: Tensor, slices: Slicing) -> Tensor:
    """Ranks within each slice, the smallest first and from 1; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    rank_P, sizes = torch.empty(len(value_P), dtype=torch.float64), slices.count_K.tolist()
    for of_slice, values in zip(rank_P.split(sizes), value_P.split(sizes), strict=True):
        of_slice.copy_(torch.from_numpy(rankdata(values.numpy())))
    return rank_P


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
