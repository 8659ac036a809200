"""Every metric of classification, in every slice at once; docs/metrics.md has the formulas.

In a table of two classes the second one is positive. Averages over classes ("macro") are over the classes
that a slice has examples of.

Shapes: N examples, C classes, K slices, P pairs of an example and its slice, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dgharness.metrics.ranking import auroc_and_ap
from dgharness.metrics.slicing import Slicing, everything

ECE_BINS = 15
BINARY_ECE_BINS = 10  # as SubpopBench
RANKED = 2**22  # above so many outputs (N * C), AUROC and AP are left out: sorting would slow training down


@dataclass(frozen=True)
class Classified:
    """Logits and labels of some examples, and what is predicted of them."""

    logits_NC: Tensor
    targets_N: Tensor

    @property
    def classes(self) -> int:
        return self.logits_NC.shape[-1]

    @cached_property
    def log_p_NC(self) -> Tensor:
        logits_NC = self.logits_NC.detach()
        return (logits_NC if logits_NC.dtype == torch.float64 else logits_NC.float()).log_softmax(-1)

    @cached_property
    def loss_N(self) -> Tensor:
        return -self.log_p_NC.gather(-1, self.targets_N[:, None]).squeeze(-1).double().cpu()

    @cached_property
    def predicted_N(self) -> Tensor:
        return self.log_p_NC.argmax(-1).cpu()

    @cached_property
    def confidence_N(self) -> Tensor:
        return self.log_p_NC.amax(-1).double().exp().cpu()

    @cached_property
    def broken_N(self) -> Tensor:
        """Examples with a NaN among their logits: neither right nor wrong."""
        return self.confidence_N.isnan()

    @cached_property
    def correct_N(self) -> Tensor:
        right_N = (self.predicted_N == self.targets_N.cpu()).double()
        return right_N.masked_fill(self.broken_N, torch.nan)

    @cached_property
    def brier_N(self) -> Tensor:
        """Squared distance of the probabilities from the truth: of p(class 1) alone where there are two."""
        p_NC, y_N = self.log_p_NC.exp(), self.targets_N
        if self.classes == 2:
            return (p_NC[:, 1].double() - y_N).square().cpu()
        p_y_N = p_NC.gather(-1, y_N[:, None]).squeeze(-1).double()
        return (p_NC.square().sum(-1, dtype=torch.float64) - 2 * p_y_N + 1).cpu()

    @cached_property
    def score_CN(self) -> Tensor:
        """What examples are ranked by for each class: its log-probability, of two classes their log-odds.

        In single precision, so that what ties does not depend on the order in which a sum was rounded.
        """
        logits_NC = self.logits_NC.detach().double().cpu()
        two = self.classes == 2
        return (logits_NC - logits_NC.flip(-1) if two else logits_NC.log_softmax(-1)).T.float().contiguous()


@dataclass(frozen=True)
class PerClass:
    """Counts of every class in every slice, and what follows from them."""

    support_KC: Tensor  # examples of the class
    predicted_KC: Tensor
    hit_KC: Tensor  # both at once

    @property
    def present_KC(self) -> Tensor:
        return self.support_KC > 0

    @property
    def recall_KC(self) -> Tensor:
        return self.hit_KC / self.support_KC

    @property
    def precision_KC(self) -> Tensor:
        """0 for a class that has examples and is never predicted; NaN for one that has neither."""
        never_KC = (self.predicted_KC == 0) & self.present_KC
        return (self.hit_KC / self.predicted_KC).masked_fill(never_KC, 0.0)

    @property
    def f1_KC(self) -> Tensor:
        return 2 * self.hit_KC / (self.support_KC + self.predicted_KC)

    def macro(self, value_KC: Tensor) -> Tensor:
        """Means [K] over the classes that a slice has examples of."""
        return value_KC.where(self.present_KC, 0.0).sum(-1) / self.present_KC.sum(-1)

    def worst(self, value_KC: Tensor) -> Tensor:
        """The smallest [K] over the classes that a slice has examples of."""
        least_K = value_KC.where(self.present_KC, torch.inf).amin(-1)
        return least_K.masked_fill(least_K.isinf(), torch.nan)


def per_class(found: Classified, slices: Slicing) -> PerClass:
    """Counts by slice and class. NaN logits of one example make every number of predictions NaN there."""
    index_P, shape = slices.example_P, (len(slices), found.classes)

    def counted(class_N: Tensor, weight_N: Tensor | None = None) -> Tensor:
        cell_P = slices.slice_P * found.classes + class_N.cpu()[index_P]
        weight_P = None if weight_N is None else weight_N[index_P]
        return torch.bincount(cell_P, weights=weight_P, minlength=shape[0] * shape[1]).reshape(shape).double()

    broken_K = slices.total(found.broken_N[index_P].double()) > 0
    predicted_KC = counted(found.predicted_N).masked_fill(broken_K[:, None], torch.nan)
    return PerClass(counted(found.targets_N), predicted_KC, counted(found.targets_N, found.correct_N))


def by_slice(found: Classified, slices: Slicing) -> dict[str, Tensor]:
    """Every metric that a slice has one number of, [K] each; NaN for an empty slice."""
    index_P, counts = slices.example_P, per_class(found, slices)
    confidence_P, correct_P = found.confidence_N[index_P], found.correct_N[index_P]
    metrics = {
        "acc": slices.mean(correct_P),
        "loss": slices.mean(found.loss_N[index_P]),
        "balanced_acc": counts.macro(counts.recall_KC),
        "precision_macro": counts.macro(counts.precision_KC),
        "recall_macro": counts.macro(counts.recall_KC),
        "f1_macro": counts.macro(counts.f1_KC),
        "class_difference": class_difference(counts.recall_KC, counts.present_KC),
        "worst_class_precision": counts.worst(counts.precision_KC),
        "worst_class_f1": counts.worst(counts.f1_KC),
        "ece": calibration_error(confidence_P, correct_P, slices, ECE_BINS),
        "brier": slices.mean(found.brier_N[index_P]),
    }
    if found.classes == 2:
        p_1_P, true_P = found.log_p_NC[:, 1].double().exp().cpu()[index_P], found.targets_N.cpu()[index_P]
        metrics |= {
            "ece_binary": calibration_error(p_1_P, true_P.double(), slices, BINARY_ECE_BINS, closed="left"),
            "tpr": counts.recall_KC[:, 1],
            "fpr": 1 - counts.recall_KC[:, 0],
            "prevalence": counts.support_KC[:, 1] / slices.count_K,
        }
    if found.logits_NC.numel() <= RANKED:
        auroc_CK, ap_CK = ranked(found, slices, first=1 if found.classes == 2 else 0)
        metrics |= {"auroc": auroc_CK.nanmean(0), "auprc": ap_CK.nanmean(0)}
    return metrics


def ranked(found: Classified, slices: Slicing, first: int = 0) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of each class, from the first one on, against the rest: [C, K] twice."""
    index_P, classes_C = slices.example_P, torch.arange(first, found.classes)
    positive_CP = found.targets_N.cpu()[index_P] == classes_C[:, None]
    return auroc_and_ap(found.score_CN[first:, index_P], positive_CP, torch.ones_like(positive_CP), slices)


def class_difference(recall_KC: Tensor, present_KC: Tensor) -> Tensor:
    """Sum [K] over the pairs of classes that have examples of how far their recalls lie apart.

    >>> recall_KC = torch.tensor([[0.5, torch.nan, 0.9, 0.6]])
    >>> class_difference(recall_KC, ~recall_KC.isnan())  # .4 + .1 + .3
    tensor([0.8000])
    """
    sorted_KC, place_C = recall_KC.sort(-1).values, torch.arange(recall_KC.shape[-1])  # NaN last
    present_K1 = present_KC.sum(-1, keepdim=True)
    weight_KC = 2 * place_C - present_K1 + 1
    found_K = (weight_KC * sorted_KC).where(place_C < present_K1, 0.0).sum(-1)
    return found_K.masked_fill(present_K1[:, 0] == 0, torch.nan)


def calibration_error(
    p_P: Tensor, outcome_P: Tensor, slices: Slicing, bins: int, closed: str = "right"
) -> Tensor:
    """Expected calibration error [K] of probabilities of an outcome (0 or 1), over bins of equal width.

    The absolute gap between mean outcome and mean probability in each bin, weighted by its share of examples.
    """
    place_P = p_P.nan_to_num(0.0) * bins
    bin_P = place_P.ceil() - 1 if closed == "right" else place_P.floor()
    cell_P = slices.slice_P * bins + bin_P.long().clamp(0, bins - 1)
    gap_KB = torch.bincount(cell_P, weights=outcome_P - p_P, minlength=len(slices) * bins).reshape(-1, bins)
    return gap_KB.abs().sum(-1) / slices.count_K


def ece(confidence_N: Tensor, correct_N: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the predicted class, over bins of equal width, closed on the right.

    >>> ece(torch.tensor([0.8, 0.8]).double(), torch.tensor([1.0, 0.0]).double())
    0.30000...
    """
    return calibration_error(confidence_N, correct_N, everything(len(confidence_N)), bins).item()
