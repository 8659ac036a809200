"""What a set of predictions is worth: per domain, per group, per class, and in summary.

Shapes: N examples, C classes, K slices (domains, groups or classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from dgharness.metrics.classification import Classified, by_slice
from dgharness.metrics.slicing import everything
from dgharness.names import slugs

FEW = 50  # up to so many domains or groups are logged one by one


@dataclass(frozen=True)
class Worst:
    """The slice with the lowest accuracy; NaN and nameless where no slice qualifies."""

    name: str
    acc: float
    count: int


@dataclass(frozen=True)
class Slices:
    """Accuracy, mean loss and count of every slice; an empty slice is NaN with count 0, never 0.0."""

    names: tuple[str, ...]
    acc_K: Tensor
    loss_K: Tensor
    count_K: Tensor

    @property
    def mean(self) -> float:
        """Unweighted mean accuracy over the slices that are not empty."""
        return self.present().acc_K.mean().item()

    @property
    def p10(self) -> float:
        """10th percentile (linear between neighbours) of the accuracies of the slices that are not empty."""
        acc_K = self.present().acc_K
        return acc_K.quantile(0.1).item() if len(acc_K) else float("nan")

    def worst(self, min_size: int = 1) -> Worst:
        """The first of the slices with the lowest accuracy, among those of at least ``min_size`` examples."""
        large_K = self.count_K >= max(min_size, 1)
        if not large_K.any():
            return Worst("", float("nan"), 0)
        k = int(self.acc_K.where(large_K, torch.inf).argmin())  # NaN counts as the lowest
        return Worst(self.names[k], self.acc_K[k].item(), int(self.count_K[k]))

    def present(self) -> Slices:
        """Without the empty ones."""
        kept_K = self.count_K > 0
        names = tuple(name for name, kept in zip(self.names, kept_K.tolist(), strict=True) if kept)
        return Slices(names, self.acc_K[kept_K], self.loss_K[kept_K], self.count_K[kept_K])

    def rows(self) -> Iterator[tuple[str, float, float, int]]:
        """(name, accuracy, loss, count) of every slice."""
        return zip(
            self.names, self.acc_K.tolist(), self.loss_K.tolist(), self.count_K.long().tolist(), strict=True
        )


@dataclass(frozen=True)
class Scores:
    """Everything measured on one split."""

    domains: Slices
    groups: Slices
    classes: Slices
    acc_avg: float  # over examples
    nll: float  # mean cross-entropy
    count: int
    min_group_size: int = 1
    train_count_G: Tensor | None = None
    overall: Mapping[str, float] = field(default_factory=dict)  # what else is measured over all examples
    official: Mapping[str, float] = field(default_factory=dict)  # by the dataset's own evaluation
    official_score: float | None = None  # the one of them that counts, larger is better
    loss: ClassVar[str] = "nll"  # what the network minimises, by its key

    @property
    def goodness(self) -> float:
        """Mean accuracy over domains: larger is better."""
        return self.acc_domain_mean

    @property
    def acc_domain_mean(self) -> float:
        return self.domains.mean

    @property
    def acc_group_mean(self) -> float:
        return self.groups.mean

    @cached_property
    def acc_worst_domain(self) -> Worst:
        return self.domains.worst()

    @cached_property
    def wga(self) -> Worst:
        """Worst-group accuracy, over groups of at least ``min_group_size`` examples."""
        return self.groups.worst(self.min_group_size)

    @cached_property
    def worst_class_acc(self) -> Worst:
        return self.classes.worst()

    @property
    def acc_adjusted(self) -> float | None:
        """Group accuracies weighted by the groups' share of the training data, as WILDS does for Waterbirds.

        NaN where a group with training weight has no example here; None without training counts.
        """
        if self.train_count_G is None:
            return None
        return weighted_mean(self.groups.acc_K, self.train_count_G).item()

    def flat(self, split: str) -> dict[str, float]:
        """Metric keys ``split/metric/name`` and ``split/metric`` to numbers.

        A domain without an example in this split is not part of it and gets no key; an empty group gets NaN
        and count 0. Above 50 domains or groups only mean, worst and 10th percentile are given.
        """
        found = {
            "acc_avg": self.acc_avg,
            "nll": self.nll,
            "count": float(self.count),
            "acc_domain_mean": self.acc_domain_mean,
            "acc_worst_domain": self.acc_worst_domain.acc,
            "acc_worst_domain_count": float(self.acc_worst_domain.count),
            "acc_group_mean": self.acc_group_mean,
            "wga": self.wga.acc,
            "wga_count": float(self.wga.count),
        }
        found |= self.overall
        if len(self.classes.names):
            found["worst_class_acc"] = self.worst_class_acc.acc
            found["worst_class_count"] = float(self.worst_class_acc.count)
        if self.acc_adjusted is not None:
            found["acc_adjusted"] = self.acc_adjusted
        found |= _named(self.domains.present(), "", "acc_domain_p10")
        found |= _named(self.groups, "group_", "acc_group_p10")
        found |= official_keys(self.official, self.official_score)
        return {f"{split}/{key}": value for key, value in found.items()}


def score(
    logits_NC: Tensor,
    targets_N: Tensor,
    domain_N: Tensor,
    domain_names: Sequence[str],
    group_N: Tensor,
    group_names: Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    min_group_size: int = 1,
    train_count_G: Tensor | None = None,
) -> Scores:
    """Score classification logits; a group of -1 is unknown and counts in no group.

    Groups that overlap are given as who is in them, ``group_N`` of [N, G].

    A row with a NaN logit is neither right nor wrong: it makes every number that it enters NaN.
    """
    made = Classified(logits_NC, targets_N.to(logits_NC.device))
    whole = {name: value.item() for name, value in by_slice(made, everything(len(targets_N))).items()}
    classes = class_names or [str(c) for c in range(logits_NC.shape[-1])]

    def sliced(slice_N: Tensor, names: Sequence[str]) -> Slices:
        return _sliced(slice_N.cpu(), tuple(names), made.correct_N, made.loss_N)

    return Scores(
        domains=sliced(domain_N, domain_names),
        groups=sliced(group_N, group_names),
        classes=sliced(targets_N, classes),
        acc_avg=whole.pop("acc"),
        nll=whole.pop("loss"),
        count=len(targets_N),
        min_group_size=min_group_size,
        train_count_G=None if train_count_G is None else train_count_G.cpu(),
        overall=whole,
    )


def score_examples(
    right_N: Tensor,
    loss_N: Tensor,
    domain_N: Tensor,
    domain_names: Sequence[str],
    group_N: Tensor,
    group_names: Sequence[str],
    *,
    min_group_size: int = 1,
) -> Scores:
    """Score a task that has no classes, from how right each example is (0 to 1) and what it costs.

    An example that is NaN in ``right_N`` has no known target and counts nowhere.
    """
    known_N = ~right_N.isnan().cpu()
    right_N, loss_N = right_N.double().cpu()[known_N], loss_N.double().cpu()[known_N]

    def sliced(slice_N: Tensor, names: Sequence[str]) -> Slices:
        return _sliced(slice_N.cpu()[known_N], tuple(names), right_N, loss_N)

    return Scores(
        domains=sliced(domain_N, domain_names),
        groups=sliced(group_N, group_names),
        classes=Slices((), torch.empty(0), torch.empty(0), torch.empty(0)),
        acc_avg=right_N.mean().item(),
        nll=loss_N.mean().item(),
        count=len(right_N),
        min_group_size=min_group_size,
    )


def official_keys(official: Mapping[str, float], score: float | None = None) -> dict[str, float]:
    """The dataset's own metrics under ``official/``, with names that any store accepts.

    ``official_score`` is the one that the dataset is judged by, with the sign that makes larger better.
    """
    slug_of = slugs(official)
    found = {f"official/{slug_of[name]}": value for name, value in official.items()}
    return found if score is None else {**found, "official_score": score}


def weighted_mean(acc_K: Tensor, train_count_K: Tensor) -> Tensor:
    """Mean over slices [..., K] by their share of the training data; NaN where one of them was not measured.

    >>> weighted_mean(torch.tensor([0.5, 1.0, torch.nan]), torch.tensor([30, 10, 0]))
    tensor(0.6250, dtype=torch.float64)
    """
    weight_K = train_count_K.double() / train_count_K.sum()
    return (weight_K * acc_K)[..., weight_K > 0].sum(-1)


def _named(slices: Slices, prefix: str, p10: str) -> dict[str, float]:
    if len(slices.names) > FEW:
        return {p10: slices.p10}
    slug_of = slugs(slices.names)
    return {
        f"{prefix}{metric}/{slug_of[name]}": value
        for name, acc, loss, count in slices.rows()
        for metric, value in (("acc", acc), ("loss", loss), ("count", float(count)))
    }


def _sliced(slice_N: Tensor, names: tuple[str, ...], correct_N: Tensor, loss_N: Tensor) -> Slices:
    known_N = slice_N >= 0  # unused where groups overlap: [N, K], who is in which

    def total(weight_N: Tensor) -> Tensor:
        if slice_N.dim() == 2:
            return torch.where(slice_N, weight_N[:, None], 0.0).sum(0)
        return torch.bincount(slice_N[known_N], weights=weight_N[known_N], minlength=len(names))

    count_K = total(torch.ones_like(loss_N))  # 0/0 is the NaN of an empty slice
    return Slices(names, total(correct_N) / count_K, total(loss_N) / count_K, count_K.long())
