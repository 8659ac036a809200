"""Descends only along those coordinates of the gradient whose sign the domains agree on.

Paper: Parascandolo, Neitz, Orvieto, Gresele and Schölkopf, "Learning Explanations That Are Hard to Vary",
    ICLR 2021, arXiv:2009.00329.
Equation: m_j = 1[ |mean_e sign g_ej| >= tau ], step along m_j g_j / (1e-10 + mean of m over the parameter's
    tensor), g_e = grad_theta R_e, g their mean
Agrees with: DomainBed's ANDMask, with whatever optimizer is configured; its share and divisor are float32.
    variant=unit-tests is the one of the invariance unit tests: the gradient of every weight matrix has norm 1
    in each domain, the mask needs more than tau, and nothing is divided. Their plain steps with decay are
    optimizer.name=sgd with momentum=0. A sign of zero counts as no agreement in both.
    The domains pass the network one by one, as there.
Trust: core
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dgharness.plugin import (
    Algorithm,
    Annotated,
    Descend,
    Hparams,
    Metrics,
    Needs,
    Step,
    Structural,
    Uniform,
    algorithm,
)


class ANDMaskHparams(Hparams):
    tau: Annotated[float, Field(ge=0, le=1), Uniform(0.5, 1.0)] = 1.0
    """Agreement that a coordinate needs: the share of domains with one sign less that with the other."""
    variant: Annotated[Literal["domainbed", "unit-tests"], Structural] = "domainbed"
    """unit-tests: weight gradients of norm 1, strictly more agreement than tau, no rescaling."""


class ANDMask(Algorithm):
    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]

        def loss_fn() -> Tensor:
            # One by one, since a gradient through the pass of all domains costs as much for each of them.
            risks = [row.risks_E.sum() for row in step.rows()]
            gradients = [torch.autograd.grad(risk, weights, materialize_grads=True) for risk in risks]
            risks_E = torch.stack(risks).detach()
            masked = [self.masked(torch.stack(g)) for g in zip(*gradients, strict=True)]
            if not metrics:
                kept = torch.cat([g.flatten() != 0 for g in masked]).to(risks_E).mean()
                metrics.update(loss=risks_E.mean(), kept=kept, risks_E=risks_E)
            # A function whose gradient is the masked one.
            return torch.stack([(w * g).sum() for w, g in zip(weights, masked, strict=True)]).sum()

        descend("model", loss_fn)
        return metrics

    def masked(self, g_E: Tensor) -> Tensor:
        """The mean over the domains of one parameter's gradients, zero where their signs disagree."""
        if self.hp.variant == "unit-tests":
            if g_E.dim() > 2:
                norm_E = g_E.flatten(1).norm(dim=1).clamp(min=torch.finfo(g_E.dtype).tiny)
                g_E = g_E / norm_E.view(-1, *[1] * (g_E.dim() - 1))
            return (g_E.sign().sum(0).abs() > len(g_E) * self.hp.tau) * g_E.mean(0)
        agrees = g_E.sign().mean(0).abs() >= self.hp.tau
        share = agrees.to(torch.float32).mean()
        return agrees * g_E.mean(0) * (1 / (1e-10 + share))


and_mask = algorithm(ANDMaskHparams, needs=Needs(min_domains=2, places=("tokens", "detection")))(ANDMask)
