"""Asks that the gradients of all domains agree: penalises their spread around the mean gradient.

Paper: Koyama and Yamaguchi, "Out-of-Distribution Generalization with Maximal Invariant Predictor", 2020,
    arXiv:2008.01883.
Equation: min_theta R(theta) + lambda sum_e |g_e - g|^2, g_e = grad_theta R_e, R and g the means over e
Agrees with: DomainBed's IGA and that of the invariance unit tests. Both sum over the domains; the gradient
    of the mean gradient cancels, so it makes no difference that DomainBed leaves it out.
    The domains pass the network one by one, as there.
Trust: core
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from dgharness.plugin import (
    Algorithm,
    Annotated,
    Descend,
    Hparams,
    LogUniform,
    Metrics,
    Needs,
    Step,
    algorithm,
)


class IGAHparams(Hparams):
    weight: Annotated[NonNegativeFloat, LogUniform(1e1, 1e5)] = 1000.0
    """Weight of the spread of the gradients."""


class IGA(Algorithm):
    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]

        def loss_fn() -> Tensor:
            # One by one, since a gradient through the pass of all domains costs as much for each of them.
            risks_E = torch.cat([row.risks_E for row in step.rows()])
            gradients = [
                torch.autograd.grad(risk, weights, create_graph=True, materialize_grads=True)
                for risk in risks_E
            ]
            spread = torch.stack([centred_square(torch.stack(g)) for g in zip(*gradients, strict=True)]).sum()
            loss = risks_E.mean() + self.hp.weight * spread
            if not metrics:
                metrics.update(loss=loss, risk=risks_E.mean(), penalty=spread, risks_E=risks_E)
            return loss

        descend("model", loss_fn)
        return metrics


def centred_square(g_E: Tensor) -> Tensor:
    """Sum over the rows of the squared distance to their mean.

    >>> centred_square(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor(2.)
    """
    return (g_E - g_E.mean(0)).square().sum()


iga = algorithm(IGAHparams, needs=Needs(min_domains=2, places=("tokens", "detection")))(IGA)
