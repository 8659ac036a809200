"""What predicted numbers are worth: squared and absolute errors per domain, per group, and in summary.

Shapes: N examples, C outputs, K slices (domains or groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dgharness.metrics.ranking import pearson, spearman
from dgharness.metrics.scores import FEW, official_keys
from dgharness.metrics.slicing import Slicing, everything
from dgharness.names import slugs


@dataclass(frozen=True)
class ErrorSlices:
    """Mean squared and absolute error and count of every slice; an empty slice is NaN with count 0."""

    names: tuple[str, ...]
    mse_K: Tensor
    mae_K: Tensor
    count_K: Tensor

    @property
    def mean(self) -> float:
        """Unweighted mean of the squared errors of the slices that are not empty."""
        return self.mse_K[self.count_K > 0].mean().item()

    @property
    def p90(self) -> float:
        """90th percentile (linear between neighbours) over the slices that are not empty."""
        mse_K = self.mse_K[self.count_K > 0]
        return mse_K.quantile(0.9).item() if len(mse_K) else float("nan")

    def worst(self, min_size: int = 1) -> tuple[float, int]:
        """Largest mean squared error of the slices of at least ``min_size`` examples, and its count."""
        large_K = self.count_K >= max(min_size, 1)
        if not large_K.any():
            return float("nan"), 0
        mse, k = self.mse_K[large_K].max(0)  # NaN counts as the largest
        return mse.item(), int(self.count_K[large_K][k])

    def flat(self, prefix: str, p90: str, empty: bool) -> dict[str, float]:
        """Every slice one by one, or the percentile where there are too many."""
        if len(self.names) > FEW:
            return {p90: self.p90}
        slug_of = slugs(self.names)
        rows = zip(self.names, self.mse_K.tolist(), self.mae_K.tolist(), self.count_K.tolist(), strict=True)
        return {
            f"{prefix}{metric}/{slug_of[name]}": value
            for name, mse, mae, count in rows
            if count or empty
            for metric, value in (("mse", mse), ("mae", mae), ("count", float(count)))
        }


@dataclass(frozen=True)
class RegressionScores:
    """Everything measured on one split of a regression; ``count`` and all means are over known targets."""

    domains: ErrorSlices
    groups: ErrorSlices
    mse_avg: float  # over examples
    mae_avg: float
    pearson: float
    spearman: float
    count: int
    min_group_size: int = 1
    official: Mapping[str, float] = field(default_factory=dict)  # by the dataset's own evaluation
    official_score: float | None = None  # the one of them that counts, larger is better
    loss: ClassVar[str] = "mse_avg"  # what the network minimises, by its key

    @property
    def goodness(self) -> float:
        """Minus the mean over domains of the mean squared error: larger is better."""
        return -self.domains.mean

    def flat(self, split: str) -> dict[str, float]:
        """Metric keys ``split/metric/name`` and ``split/metric`` to numbers, as for classification."""
        (worst_domain, of_domain), (worst_group, of_group) = (
            self.domains.worst(),
            self.groups.worst(self.min_group_size),
        )
        found = {
            "mse_avg": self.mse_avg,
            "mae_avg": self.mae_avg,
            "pearson": self.pearson,
            "spearman": self.spearman,
            "count": float(self.count),
            "mse_domain_mean": self.domains.mean,
            "mse_worst_domain": worst_domain,
            "mse_worst_domain_count": float(of_domain),
            "mse_group_mean": self.groups.mean,
            "mse_worst_group": worst_group,
            "mse_worst_group_count": float(of_group),
            **self.domains.flat("", "mse_domain_p90", empty=False),
            **self.groups.flat("group_", "mse_group_p90", empty=True),
            **official_keys(self.official, self.official_score),
        }
        return {f"{split}/{key}": value for key, value in found.items()}


def score_regression(
    outputs_NC: Tensor,
    targets_N: Tensor,
    domain_N: Tensor,
    domain_names: Sequence[str],
    group_N: Tensor,
    group_names: Sequence[str],
    *,
    min_group_size: int = 1,
) -> RegressionScores:
    """Score predicted numbers, the mean of the outputs; a NaN target is unknown and counts nowhere.

    A NaN output makes every number that it enters NaN.
    """
    known_N = ~targets_N.isnan().cpu()
    predicted_N = outputs_NC.detach().double().mean(-1).cpu()[known_N]
    targets_N = targets_N.double().cpu()[known_N]
    error_N = predicted_N - targets_N
    overall = errors_by_slice(predicted_N, targets_N, everything(len(targets_N)))

    def sliced(slice_N: Tensor, names: Sequence[str]) -> ErrorSlices:
        return _sliced(slice_N.cpu()[known_N], tuple(names), error_N)

    return RegressionScores(
        domains=sliced(domain_N, domain_names),
        groups=sliced(group_N, group_names),
        mse_avg=overall["mse"].item(),
        mae_avg=overall["mae"].item(),
        pearson=overall["pearson"].item(),
        spearman=overall["spearman"].item(),
        count=len(error_N),
        min_group_size=min_group_size,
    )


def errors_by_slice(predicted_N: Tensor, targets_N: Tensor, slices: Slicing) -> dict[str, Tensor]:
    """Every metric of predicted numbers in every slice, [K] each; NaN for an empty one."""
    predicted_P, target_P = predicted_N[slices.example_P], targets_N[slices.example_P]
    error_P = predicted_P - target_P
    return {
        "mse": slices.mean(error_P.square()),
        "mae": slices.mean(error_P.abs()),
        "pearson": pearson(predicted_P, target_P, slices),
        "spearman": spearman(predicted_P, target_P, slices),
    }


def _sliced(slice_N: Tensor, names: tuple[str, ...], error_N: Tensor) -> ErrorSlices:
    in_one_N = slice_N >= 0

    def total(value_N: Tensor) -> Tensor:
        if slice_N.dim() == 2:
            return torch.where(slice_N, value_N[:, None], 0.0).sum(0)
        return torch.bincount(slice_N[in_one_N], weights=value_N[in_one_N], minlength=len(names))

    count_K = total(torch.ones_like(error_N))
    return ErrorSlices(
        names, total(error_N.square()) / count_K, total(error_N.abs()) / count_K, count_K.long()
    )
