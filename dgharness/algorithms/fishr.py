"""Makes the variances of the per-example gradients of the classifier agree across the domains.

Paper: Rame, Dancette and Cord, "Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization",
    ICML 2022, arXiv:2109.02934.
Equation: min mean_e R_e + lambda mean_e |u_e - mean_e u_e|^2, v_e = Var_{i in e}(g_i (z_i, 1)^T), g_i the
    gradient of the loss in the logits, u_e = (gamma a_e + (1 - gamma) v_e) / (1 - gamma) with the past a_e
Agrees with: DomainBed's Fishr, whose norm is the mean over the classifier's weights and biases and whose
    moving averages start at 0. They are part of the checkpoint here, and belong to a domain and not to a
    place in the minibatch: a domain that is not drawn keeps its own. form=colored-mnist is the authors'
    script for two domains: sums over parameters and domains, no average, weight 1 and not 0 before the anneal
    step (with rescale, l2 and restart=false); where two softmax outputs stand for its one logit, the penalty
    is twice as large. Any loss per example will do. No matrix of examples by parameters is ever built.
Trust: core
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import grad

from dgharness.plugin import (
    AnnealedHparams,
    Annotated,
    Dims,
    IntUniform,
    LogUniform,
    Metrics,
    Needs,
    NonNegativeInt,
    Step,
    Structural,
    Uniform,
    objective,
)


class FishrHparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e1, 1e4)] = 1000.0
    """Weight of the penalty from anneal_steps on; before that it is 0."""
    anneal_steps: Annotated[NonNegativeInt, IntUniform(0, 5000)] = 1500
    """Updates before the penalty gets its weight."""
    gamma: Annotated[float, Field(ge=0, lt=1), Uniform(0.9, 0.99)] = 0.95
    """How much of its past a domain's moving average keeps at each update."""
    form: Annotated[Literal["domainbed", "colored-mnist"], Structural] = "domainbed"
    """Which Fishr: means and moving averages, or the ColoredMNIST script's sums over the minibatch alone."""


class Fishr(nn.Module):
    average_KCD: Tensor  # the bias stands last among the D + 1 features

    def __init__(self, dims: Dims, hp: FishrHparams) -> None:
        super().__init__()
        shape = (dims.domains, dims.outputs, dims.features + 1)
        self.register_buffer("average_KCD", torch.zeros(shape))

    def forward(self, step: Step, hp: FishrHparams) -> tuple[Tensor, Metrics]:
        variance_ECD = gradient_variance(step)
        if hp.form == "domainbed":
            _, C, D1 = variance_ECD.shape
            parameters = C * (D1 if has_bias(step) else D1 - 1)
            distance_E = squared_distance(self.averaged(variance_ECD, step, hp))
            before, penalty = 0.0, distance_E.mean() / parameters
        else:
            before, penalty = 1.0, squared_distance(variance_ECD).sum()
        risk = step.risks_E.mean()
        weight = before + (step.t >= hp.anneal_steps) * (hp.weight - before)
        loss = risk + weight * penalty
        if hp.l2:
            loss = loss + hp.l2 * torch.stack([p.square().sum() for p in step.model.parameters()]).sum()
        if hp.rescale:
            loss = loss / torch.clamp(torch.as_tensor(weight), min=1.0)
        return loss, {"risk": risk, "penalty": penalty}

    def averaged(self, variance_ECD: Tensor, step: Step, hp: FishrHparams) -> Tensor:
        domain_E = step.domain_EB[:, 0]
        average_ECD = hp.gamma * self.average_KCD[domain_E] + (1 - hp.gamma) * variance_ECD
        self.average_KCD[domain_E] = average_ECD.detach()
        # The past has no gradient: the division keeps the present's at full size.
        return average_ECD / (1 - hp.gamma)


def gradient_variance(step: Step) -> Tensor:
    """Variance [E, C, D+1], within each row, of every entry of the classifier's per-example gradients."""
    logits_EBC, z_EBD = step.logits_EBC, step.features_EBD
    dtype = torch.promote_types(logits_EBC.dtype, torch.float32)
    g_EBC = grad(lambda s: step.loss(s, step.targets_EB).sum())(logits_EBC.to(dtype))
    bias_EB1 = torch.full_like(z_EBD[..., :1], float(has_bias(step)))
    return product_variance(g_EBC, torch.cat([z_EBD, bias_EB1], -1)).to(dtype)


def product_variance(g_EBC: Tensor, z_EBD: Tensor) -> Tensor:
    """Variance [E, C, D] over the examples of g z^T.

    >>> product_variance(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0], [0.0]]]))
    tensor([[[1.]]], dtype=torch.float64)
    """
    # In float64 the difference of E[x^2] and E[x]^2 is exact enough, and needs no product per example.
    with torch.autocast(z_EBD.device.type, enabled=False):
        g_ECB, z_EBD = g_EBC.double().mT, z_EBD.double()
        examples = z_EBD.shape[1]
        return g_ECB.square() @ z_EBD.square() / examples - (g_ECB @ z_EBD / examples).square()


def squared_distance(value_ECD: Tensor) -> Tensor:
    """Squared distance [E] of each row's values from the mean over the rows."""
    return (value_ECD - value_ECD.mean(0)).square().sum((1, 2))


def has_bias(step: Step) -> bool:
    return getattr(step.classifier, "bias", True) is not None


fishr = objective(
    FishrHparams,
    needs=Needs(min_domains=2, linear_classifier=True),
    restarts=lambda hp: [(hp.anneal_steps, None)] if hp.restart else [],
)(Fishr)
