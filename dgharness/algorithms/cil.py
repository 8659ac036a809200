"""Asks that the label add nothing to what the features say about a continuous domain index, such as time.

Paper: Lin et al., "Continuous Invariance Learning", ICLR 2024, arXiv:2310.05348.
Equation: min_{Phi, w, h} max_g E[l(w(Phi), y)] + lambda E[(h(Phi) - t)^2 - (g(Phi, y) - t)^2]
Agrees with: the objective as published abstracts and reviews state it; no code was published. Both regressors
    descend their own errors, at the pace of the model times lr_multiplier, while only the features see
    lambda times the difference; one update of everything per minibatch. The schedule is proposed here: before
    anneal_steps the regressors learn and the features do not hear them. t is the attribute "time", or the
    number of the domain where there is none, less its mean and over its deviation in the minibatches so far.
    Only the mean of t given features and label is compared: a periodic index should be unrolled first.
Trust: unverified
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from dgharness.plugin import (
    Annotated,
    Dims,
    Hparams,
    IntLogUniform,
    LogUniform,
    Metrics,
    Needs,
    NonNegativeInt,
    Step,
    Structural,
    objective,
)


class CILHparams(Hparams):
    weight: Annotated[float, Field(ge=0), LogUniform(1e-1, 1e4)] = 10.0
    """Weight, in the gradient of the features, of the difference of the errors from anneal_steps on."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the difference gets its weight; before that it is 0."""
    restart: Annotated[bool, Structural] = True
    """Start the optimizer afresh at that update."""
    width: Annotated[int, Structural, Field(gt=0)] = 128
    """Units in each of the two hidden layers of the regressors."""
    lr_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the regressors, as a multiple of the model's."""


class CIL(nn.Module):
    moments_3: Tensor  # of t: number of values, mean, sum of squared deviations

    def __init__(self, dims: Dims, hp: CILHparams) -> None:
        super().__init__()
        self.h = regressor(dims.features, hp.width)
        self.g = regressor(dims.features + dims.outputs, hp.width)
        self.register_buffer("moments_3", torch.zeros(3))

    def forward(self, step: Step, hp: CILHparams) -> tuple[Tensor, Metrics]:
        z_EBD, risk = step.features_EBD, step.risks_E.mean()
        t_EB = self.standardised(step.attributes.get("time", step.domain_EB).to(risk.dtype))
        weight = (step.t >= hp.anneal_steps) * hp.weight
        error_h = mean_squared(self.h(scaled_gradient(z_EBD, weight)), t_EB)
        with_y_EBD = torch.cat([scaled_gradient(z_EBD, -weight), label(step).to(z_EBD.dtype)], -1)
        error_g = mean_squared(self.g(with_y_EBD), t_EB)
        # The regressors' share of this sum is their own error; the features' is weight (error_h - error_g).
        loss = risk + error_h + error_g
        return loss, {"risk": risk, "penalty": error_h - error_g, "error_h": error_h, "error_g": error_g}

    def standardised(self, t_EB: Tensor) -> Tensor:
        past, mean_past, squares_past = self.moments_3.unbind()
        now, mean_now = t_EB.numel(), t_EB.mean()
        count, gap = past + now, mean_now - mean_past
        mean = mean_past + gap * now / count
        squares = squares_past + (t_EB - mean_now).square().sum() + gap.square() * past * now / count
        self.moments_3.copy_(torch.stack([count, mean, squares]))
        deviation = (squares / count).sqrt()
        return (t_EB - mean) / torch.where(deviation > 0, deviation, 1.0)


def regressor(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )


def scaled_gradient(z: Tensor, factor: float | Tensor) -> Tensor:
    """The same values, whose gradient arrives multiplied by the factor.

    >>> z = torch.tensor([3.0], requires_grad=True)
    >>> scaled_gradient(z, -2.0).backward(); z.grad
    tensor([-2.])
    """
    return z.detach() + factor * (z - z.detach())


def label(step: Step) -> Tensor:
    """Classes as 0/1 vectors [E, B, C], a real target as it is [E, B, C = 1]."""
    y_EB1 = step.targets_EB[..., None]
    if y_EB1.is_floating_point():
        return y_EB1
    return y_EB1 == torch.arange(step.logits_EBC.shape[-1], device=y_EB1.device)


def mean_squared(t_EB1: Tensor, t_EB: Tensor) -> Tensor:
    return (t_EB1[..., 0].to(t_EB.dtype) - t_EB).square().mean()


cil = objective(
    CILHparams,
    needs=Needs(tasks=("classification", "regression")),
    restarts=lambda hp: [(hp.anneal_steps, None)] if hp.restart else [],
    lr_multipliers=lambda hp: {"objective.": hp.lr_multiplier},
)(CIL)
