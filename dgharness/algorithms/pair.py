"""Balances risk, IRMv1 and V-REx as objectives of their own: their weights follow from their gradients.

Paper: Chen et al., "Pareto Invariant Risk Minimization: Towards Mitigating the Optimization Dilemma in
    Out-of-Distribution Generalization", ICLR 2023, arXiv:2206.07766.
Equation: l = (mean R_e, mean |dR_e/dw|^2, var R_e), C_ij = <dl_i/dh, dl_j/dh>, h the classifier; descend
    alpha . l, alpha the simplex point that by C evens out r_i l_i most or, where they are even, lowers sum l
Agrees with: PAIR-o and its EPO solver in the authors' code. The programme is linear as at their coe = 0; its
    rows are scaled to 1 before it is solved, which moves no solution but keeps small gradients above the
    solver's tolerance. A loss of zero counts as the smallest number, where theirs divides by it. Where there
    is no solution alpha is the preference. Their script goes from Adam to SGD after the first phase;
    here the configured optimizer starts afresh. The slopes are those of the whole batch.
Trust: verified
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from scipy.optimize import linprog
from torch import Tensor

from dgharness.algorithms.irmv1 import irm_penalty
from dgharness.errors import UsageError
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Descend,
    Hparams,
    IntLogUniform,
    LogUniform,
    Metrics,
    Needs,
    Setup,
    Step,
    algorithm,
)

# Shapes beyond those of dgharness.plugin: J objectives.


class PAIRHparams(Hparams):
    pretrain_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 150
    """Updates on the risk alone before the objectives are balanced."""
    preference: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (1e-12, 1e-2, 1.0)
    """Weights of risk, IRMv1 and V-REx whose products with the objectives are to become equal."""
    eps: Annotated[NonNegativeFloat, LogUniform(1e-4, 1e-1)] = 0.1
    """Distance from the preference (a Kullback-Leibler divergence) below which all objectives descend."""


class PAIR(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.head = [weight for weight in self.model.classifier.parameters() if weight.requires_grad]
        if not self.head:
            raise UsageError("pair compares gradients of the classifier, and this model's has none to train")

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}

        def loss_fn() -> Tensor:
            now = step.fresh()
            risk = now.risks_E.mean()
            loss, terms = (risk, {}) if step.t < self.hp.pretrain_steps else self.balanced(now)
            if not metrics:
                metrics.update(loss=loss, risk=risk, risks_E=now.risks_E, **terms)
            return loss

        descend("model", loss_fn)
        return metrics

    def balanced(self, step: Step) -> tuple[Tensor, Metrics]:
        losses_J = objectives(step)
        gradients = [torch.autograd.grad(loss, self.head, retain_graph=True) for loss in losses_J]
        g_JD = torch.stack([torch.cat([part.flatten() for part in own]) for own in gradients]).double()
        # The programme is solved on the CPU, which waits for the device once.
        known = torch.cat([losses_J.detach().double()[:, None], g_JD @ g_JD.mT], 1).cpu().numpy()
        alpha = weights(known[:, 0], known[:, 1:], np.array(self.hp.preference), self.hp.eps)
        alpha_J = torch.from_numpy(alpha).to(losses_J)
        names = [f"{what}_{name}" for what in ("objective", "alpha") for name in ("risk", "irmv1", "vrex")]
        return alpha_J @ losses_J, dict(zip(names, [*losses_J, *alpha_J], strict=True))


def objectives(step: Step) -> Tensor:
    """The three losses [J]; the variance of a single risk is 0."""
    risks_E = step.risks_E
    variance = (risks_E - risks_E.mean()).square().sum() / max(len(risks_E) - 1, 1)
    return torch.stack([risks_E.mean(), irm_penalty(step, unbiased=False), variance])


def weights(losses_J: np.ndarray, C_JJ: np.ndarray, preference_J: np.ndarray, eps: float) -> np.ndarray:
    """The simplex point alpha of the EPO solver (Mahapatra and Rajan, ICML 2020).

    >>> r, orthogonal = np.ones(2), np.eye(2)
    >>> weights(np.array([3.0, 1.0]), orthogonal, r, eps=0.01)  # far from equal: the larger one alone
    array([1., 0.])
    >>> opposed = np.array([[1.0, -1.0], [-1.0, 4.0]])
    >>> weights(np.array([1.0, 1.0]), opposed, r, eps=0.01)  # balanced: neither may rise
    array([0.5, 0.5])
    """
    r_J = preference_J / preference_J.sum()
    share_J = np.maximum(r_J * losses_J, np.finfo(float).tiny)
    share_J = share_J / share_J.sum()
    excess_J = np.log(len(share_J) * share_J)
    divergence = share_J @ excess_J
    adjustment_J = C_JJ @ (r_J * (excess_J - divergence))  # how much each gradient restores the balance
    if divergence > eps:
        gain_J = adjustment_J
        # What restores the balance may rise; the rest falls at least as the balance asks, the worst at all.
        rows_JJ = C_JJ
        floor_J = np.where(adjustment_J > 0, -np.inf, adjustment_J)
        floor_J[share_J == share_J.max()] = 0
    else:
        gain_J = C_JJ.sum(0)
        rows_JJ = np.vstack([C_JJ, adjustment_J])
        floor_J = np.append(np.zeros(len(share_J)), min(0.0, adjustment_J.max()))
    bounded = np.isfinite(floor_J)
    rows_JJ, floor_J = rows_JJ[bounded], floor_J[bounded]
    scale_J = np.maximum(np.abs(rows_JJ).max(1), np.abs(floor_J))
    scale_J[scale_J == 0] = 1
    if not (np.isfinite(gain_J).all() and np.isfinite(rows_JJ).all()):
        return r_J  # the loss is not finite either, and the harness says so
    found = linprog(
        -gain_J / (np.abs(gain_J).max() or 1),
        A_ub=-rows_JJ / scale_J[:, None],
        b_ub=-floor_J / scale_J,
        A_eq=np.ones((1, len(r_J))),
        b_eq=[1.0],
        bounds=(0, None),
        method="highs",
    )
    return found.x if found.success else r_J


pair = algorithm(
    PAIRHparams,
    needs=Needs(min_domains=2),
    restarts=lambda hp: [(hp.pretrain_steps, None)],
)(PAIR)
