"""Splits an input into what its class fixes and what varies: together they must give the input back.

Paper: Zhang, Zhang, Liu, Weller, Schölkopf and Xing, "Towards Principled Disentanglement for Domain
    Generalization", CVPR 2022, arXiv:2111.13839.
Equation: min R + w E l(h(f(D(v(x'), f(x)))), y) subject to E |D(v(x), f(x+)) - x| <= gamma, with x+ of the
    class of x and x' any example; beta <- clip(beta + eta (E |D(v(x), f(x+)) - x| - gamma), 0, 1)
Agrees with: the second stage of the authors' code in the constraint, the hinge that the primal step descends,
    the dual step before it, and the label of an input with another's variation, which is that of its semantic
    code as in their branch for MNIST (that for photographs takes the other's label). It is a small form of
    the method: there is no first stage, which trains an image decoder against a discriminator; encoder and
    decoder have two layers each; the variation code sees the mean over an image's channels, as theirs;
    partners come from the minibatch, where the code loads more examples and counts the loss of each; one
    optimizer serves all.
Trust: unverified
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgharness.errors import NotApplicable, UsageError
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Choice,
    Hparams,
    IntLogUniform,
    LogUniform,
    Metrics,
    Needs,
    Setup,
    Step,
    Structural,
    algorithm,
)

LARGEST_INPUT = 3 * 64 * 64  # numbers; beyond it a decoder of two layers makes no image


class DDGHparams(Hparams):
    margin: Annotated[float, Choice((0.025, 0.1, 0.25, 0.5))] = 0.025
    """Mean absolute error of a reconstruction that is good enough; 0.025 is for digits in [0, 1]."""
    dual_start: float = 0.5
    """Multiplier of the constraint at the start."""
    dual_step: Annotated[float, LogUniform(1e-3, 1e-1)] = 0.01
    """Step size of the multiplier."""
    swap_weight: Annotated[float, Choice((0.1, 0.2, 0.5, 1.0))] = 0.5
    """Weight of the loss on inputs with the variation of another example."""
    code: Annotated[int, Structural, IntLogUniform(8, 128)] = 32
    """Size of the variation code."""
    width: Annotated[int, Structural] = 256
    """Units of the hidden layers of encoder and decoder."""
    lr_multiplier: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Learning rate of encoder and decoder, relative to the configured one."""


class DDG(Algorithm):
    beta: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        shape, hp = setup.dims.input_shape, self.hp
        size = math.prod(shape)
        if not shape:
            raise UsageError(
                "ddg rebuilds its inputs, so it must know their shape: give Dims(input_shape=...)"
            )
        if size > LARGEST_INPUT:
            raise NotApplicable(
                f"ddg cannot run here: its small decoder makes inputs of up to {LARGEST_INPUT} numbers, and "
                f"these have {' x '.join(map(str, shape))}"
            )
        grey = size // shape[0] if len(shape) == 3 else size
        self.variation = nn.Sequential(
            nn.Flatten(), nn.Linear(grey, hp.width), nn.ReLU(), nn.Linear(hp.width, hp.code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(hp.code + setup.dims.features, hp.width),
            nn.ReLU(),
            nn.Linear(hp.width, size),
            nn.Unflatten(1, shape),
        )
        self.register_buffer("beta", torch.tensor(hp.dual_start))

    def update(self, step: Step, descend: Any) -> Metrics:
        metrics: Metrics = {}
        x, y_N, draw = step.x, step.targets_EB.flatten(), step.generator("partners")
        alike_N = partners(y_N, draw)
        any_N = torch.randperm(len(y_N), generator=draw).to(y_N.device)

        def loss() -> Tensor:
            now = step.fresh()
            f_ND = now.features_EBD.flatten(0, 1)
            v_ND = self.variation(x.mean(1) if x.dim() == 4 else x)
            error_N = (self.decode(v_ND, f_ND[alike_N]) - x).abs().flatten(1).mean(1)
            swapped = self.decode(v_ND[any_N], f_ND)
            risk, swap_risk = now.risks_E.mean(), step.loss(step.model(swapped), y_N).mean()
            beta = self.beta + self.hp.dual_step * (error_N.detach().mean() - self.hp.margin)
            self.beta.copy_(beta.clamp(0, 1))
            hinge = (error_N - self.hp.margin).clamp(min=0).mean()
            if not metrics:
                metrics.update(risk=risk, error=error_N.mean(), swap_risk=swap_risk, beta=self.beta)
                metrics["risks_E"] = now.risks_E
            return risk + self.beta * hinge + self.hp.swap_weight * swap_risk

        descend("model", loss)
        return metrics

    def decode(self, v_ND: Tensor, f_ND: Tensor) -> Tensor:
        return self.decoder(torch.cat([v_ND, f_ND], 1))


def partners(y_N: Tensor, draw: torch.Generator) -> Tensor:
    """For every example another of its class, or itself if it is alone: a random round through each class.

    >>> y_N = torch.tensor([0, 1, 0, 2])
    >>> partners(y_N, torch.Generator())
    tensor([2, 1, 0, 3])
    """
    key_N = torch.rand(len(y_N), generator=draw, dtype=torch.float64).to(y_N.device)
    order_N = (y_N + key_N).argsort()  # by class, and at random within a class
    sorted_N = y_N[order_N]
    first_N = order_N[torch.searchsorted(sorted_N, sorted_N)]
    last_N = torch.searchsorted(sorted_N, sorted_N, right=True) - 1 == torch.arange(
        len(y_N), device=y_N.device
    )
    partner_N = torch.empty_like(order_N)
    partner_N[order_N] = torch.where(last_N, first_N, order_N.roll(-1))
    return partner_N


ddg = algorithm(
    DDGHparams,
    needs=Needs(tasks=("classification",), one_tensor=True),
    lr_multipliers=lambda hp: {"variation.": hp.lr_multiplier, "decoder.": hp.lr_multiplier},
)(DDG)
