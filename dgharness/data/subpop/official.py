"""SubpopBench's own evaluation: the columns of its tables, and the worst class that it selects by.

Its conventions, where they differ from the harness' own metrics: class 1 of two is predicted from a
probability of one half upwards; ``adjusted_accuracy`` is the plain mean over the groups that occur, not
weighted by their share of the training data; the calibration error has 10 bins, and with two classes it is
that of the probability of class 1, predicted or not.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023

Shapes: N examples, C classes, M rows of the manifest, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor

METRIC = "worst_group_accuracy"
BINS = 10
NAMES = (
    "accuracy",
    METRIC,
    "adjusted_accuracy",
    "balanced_accuracy",
    "worst_class_accuracy",
    "precision_avg",
    "precision_worst",
    "f1_avg",
    "f1_worst",
    "auroc",
    "auroc_worst_attribute",
    "ece",
)


def evaluation(
    targets_M: Tensor, group_M: Tensor, values: int
) -> Callable[[Tensor, np.ndarray], dict[str, float]]:
    """What ``Dataset.official`` wants: logits and the rows that they are of to numbers by name."""
    targets, group = targets_M.numpy(), group_M.numpy()
    return lambda logits_NC, rows: evaluate(logits_NC, targets[rows], group[rows], values)


def evaluate(
    logits_NC: Tensor, targets_N: np.ndarray, group_N: np.ndarray, values: int = 1
) -> dict[str, float]:
    """Every number by name; NaN where it is undefined (AUROC with an absent class), or all with a NaN logit.

    Groups are numbered class by class, with so many ``values`` of the attribute in each; -1 is unknown.

    >>> logits = Tensor([[2, 0], [0, 2], [0, 2], [2, 0]])
    >>> found = evaluate(logits, np.array([0, 1, 0, 1]), np.array([0, 3, 1, 3]))
    >>> [found[name] for name in ("accuracy", "worst_group_accuracy", "adjusted_accuracy")]
    [0.5, 0.0, 0.5]
    """
    if not bool(logits_NC.isfinite().all()):
        return dict.fromkeys(NAMES, float("nan"))
    classes = logits_NC.shape[-1]
    p_NC = logits_NC.double().softmax(-1).numpy()
    predicted_N = (p_NC[:, 1] >= 0.5).astype(np.int64) if classes == 2 else p_NC.argmax(-1)
    right_N = predicted_N == targets_N
    known_N = group_N >= 0
    count_G = np.bincount(group_N[known_N])
    right_G = np.bincount(group_N[known_N], weights=right_N[known_N])
    accuracy_G = right_G[count_G > 0] / count_G[count_G > 0]
    precision_C, recall_C, f1_C, actual_C, reported_C = _by_class(targets_N, predicted_N, classes)
    return {
        "accuracy": float(right_N.mean()),
        METRIC: float(accuracy_G.min()) if len(accuracy_G) else float("nan"),
        "adjusted_accuracy": float(accuracy_G.mean()) if len(accuracy_G) else float("nan"),
        "balanced_accuracy": float(recall_C[actual_C].mean()),
        "worst_class_accuracy": float(recall_C[actual_C].min()),
        "precision_avg": float(precision_C[reported_C].mean()),
        "precision_worst": float(precision_C[actual_C].min()),
        "f1_avg": float(f1_C[reported_C].mean()),
        "f1_worst": float(f1_C[actual_C].min()),
        "auroc": _auroc(p_NC, targets_N),
        "auroc_worst_attribute": _worst(
            [
                _auroc(p_NC[of], targets_N[of])
                for a in range(values)
                if (of := known_N & (group_N % values == a)).any()
            ]
        ),
        "ece": _ece(p_NC[:, 1], targets_N) if classes == 2 else _ece(p_NC.max(-1), right_N),
    }


def _worst(found: list[float]) -> float:
    return min((value for value in found if not np.isnan(value)), default=float("nan"))


def _by_class(
    targets_N: np.ndarray, predicted_N: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [C], 0 for 0/0; which classes occur; which occur or are predicted."""
    right_C = np.bincount(targets_N[targets_N == predicted_N], minlength=classes)
    count_C = np.bincount(targets_N, minlength=classes)
    claimed_C = np.bincount(predicted_N, minlength=classes)
    precision_C, recall_C = right_C / np.maximum(claimed_C, 1), right_C / np.maximum(count_C, 1)
    f1_C = 2 * right_C / np.maximum(count_C + claimed_C, 1)
    return precision_C, recall_C, f1_C, count_C > 0, count_C + claimed_C > 0


def _auroc(p_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Area under the ROC curve, with several classes the mean of each against the rest."""
    classes = p_NC.shape[-1]
    if len(np.unique(targets_N)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(targets_N, p_NC[:, 1]))
    return float(roc_auc_score(targets_N, p_NC, multi_class="ovr", labels=np.arange(classes)))


def _ece(p_N: np.ndarray, outcome_N: np.ndarray) -> float:
    """Gap of mean probability and frequency in each bin (closed on the left), weighted by its examples."""
    bin_N = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), p_N, side="right") - 1, 0, BINS - 1)
    gap_B = np.bincount(bin_N, weights=p_N - outcome_N, minlength=BINS)
    return float(np.abs(gap_B).sum() / len(p_N))
