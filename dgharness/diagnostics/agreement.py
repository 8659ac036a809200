"""Agreement between runs, and what it foretells of accuracy on a target without any label of it.

Where accuracy is on a line, so is the agreement of pairs of networks, and both lines have the same slope a
and bias b on the probit scale. With them, for runs h, pairs (h, h') and q(h) = Phi^-1(acc(h)):

- ALine-S: q_OOD(h) = a q_ID(h) + b;
- ALine-D: the least-squares solution of, over all pairs,
  (q_OOD(h) + q_OOD(h')) / 2 = Phi^-1(agr_OOD) + a ((q_ID(h) + q_ID(h')) / 2 - Phi^-1(agr_ID)).

Paper: Baek et al., Agreement-on-the-Line, NeurIPS 2022

Shapes: R runs, P pairs of them, N rows of the manifest that any of them predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgharness.diagnostics.line import clipped, line, scaled, unscaled
from dgharness.predictions import Predictions

FEWEST_SHARED = 30  # examples that a pair must both have predicted
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class Agreement:
    """Agreement of pairs of runs on one split, NaN where they share fewer than 30 rows."""

    agreement_RR: np.ndarray
    shared_RR: np.ndarray  # how many rows both have predicted
    accuracy_R: np.ndarray
    count_R: np.ndarray


def agreement(runs: Sequence[Predictions]) -> Agreement:
    """How often each two of these predict the same class; rows are matched by the manifest's numbers."""
    rows_N = np.unique(np.concatenate([run.row_N.numpy() for run in runs]))
    predicted_RN = np.full((len(runs), len(rows_N)), -1)
    for own_N, run in zip(predicted_RN, runs, strict=True):
        own_N[np.searchsorted(rows_N, run.row_N.numpy())] = run.outputs_NC.argmax(-1).numpy()
    known_RN = (predicted_RN >= 0).astype(np.float32)
    same_RR = np.zeros((len(runs), len(runs)))
    for c in range(predicted_RN.max() + 1):
        is_c_RN = (predicted_RN == c).astype(np.float32)
        same_RR += is_c_RN @ is_c_RN.T
    shared_RR = (known_RN @ known_RN.T).astype(int)
    enough_RR = shared_RR >= FEWEST_SHARED
    right = [float((run.outputs_NC.argmax(-1) == run.targets).float().mean()) for run in runs]
    return Agreement(
        np.where(enough_RR, same_RR / np.maximum(shared_RR, 1), np.nan),
        shared_RR,
        np.array(right),
        np.array([len(run) for run in runs]),
    )


@dataclass(frozen=True)
class Pairs:
    """Pairs of runs on the probit scale, with the two runs of each as numbers."""

    one_P: np.ndarray
    other_P: np.ndarray
    id_P: np.ndarray
    ood_P: np.ndarray

    def __len__(self) -> int:
        return len(self.one_P)


def pairs_of(
    in_distribution: Agreement, out_of_distribution: Agreement, run_R: np.ndarray, first: int = 0
) -> Pairs:
    """Every pair that shares at least 30 rows of both splits; their members are numbered from ``first``.

    Members with the same number in ``run_R`` are checkpoints of one run, and no pair.
    """
    one_P, other_P = np.triu_indices(len(run_R), 1)
    apart_P = run_R[one_P] != run_R[other_P]
    one_P, other_P = one_P[apart_P], other_P[apart_P]

    def probit(found: Agreement) -> np.ndarray:
        value_P, count_P = found.agreement_RR[one_P, other_P], found.shared_RR[one_P, other_P]
        return scaled(clipped(value_P, np.maximum(count_P, 1)), "probit")

    id_P, ood_P = probit(in_distribution), probit(out_of_distribution)
    kept_P = ~np.isnan(id_P) & ~np.isnan(ood_P)
    return Pairs(one_P[kept_P] + first, other_P[kept_P] + first, id_P[kept_P], ood_P[kept_P])


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several groups of runs."""
    columns = ([getattr(part, name) for part in parts] for name in ("one_P", "other_P", "id_P", "ood_P"))
    return Pairs(*map(np.concatenate, columns))


def agreement_line(pairs: Pairs) -> tuple[float, float]:
    """Slope a and bias b of OOD on ID agreement, both on the probit scale."""
    return line(pairs.id_P, pairs.ood_P)


def aline_s(id_accuracy_R: np.ndarray, slope: float, bias: float) -> np.ndarray:
    """Accuracies out of distribution by the agreement's line alone.

    >>> aline_s(np.array([0.5, 0.9]), slope=1.0, bias=0.0).round(3)
    array([0.5, 0.9])
    """
    return unscaled(slope * scaled(id_accuracy_R, "probit") + bias, "probit")


def aline_d(id_accuracy_R: np.ndarray, pairs: Pairs, slope: float) -> np.ndarray:
    """Accuracies out of distribution by the agreements of each run; NaN where they do not determine it.

    A run is determined by pairs with two others that are a pair themselves.
    """
    n = len(id_accuracy_R)
    one_P, other_P = pairs.one_P, pairs.other_P
    id_R = scaled(id_accuracy_R, "probit")
    target_P = pairs.ood_P + slope * ((id_R[one_P] + id_R[other_P]) / 2 - pairs.id_P)
    # The normal equations of the system, whose rows hold 1/2 at both runs of a pair.
    normal_RR = np.zeros((n, n))
    normal_RR[one_P, other_P] = normal_RR[other_P, one_P] = 1 / 4
    normal_RR[np.diag_indices(n)] = (np.bincount(one_P, minlength=n) + np.bincount(other_P, minlength=n)) / 4
    sum_R = (np.bincount(one_P, target_P, n) + np.bincount(other_P, target_P, n)) / 2
    value_R, vector_RR = np.linalg.eigh(normal_RR)
    certain_R = value_R > 1e-9 * max(1.0, value_R.max())
    solved_R = vector_RR[:, certain_R] @ ((vector_RR[:, certain_R].T @ sum_R) / value_R[certain_R])
    open_R = (np.abs(vector_RR[:, ~certain_R]) > 1e-6).any(
        1
    )  # they take part in what the equations leave open
    return np.where(open_R, np.nan, unscaled(solved_R, "probit"))
