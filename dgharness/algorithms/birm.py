"""IRMv1 averaged over a posterior of each domain's classifier, so that a few examples cannot fake invariance.

Paper: Lin, Dong, Wang and Zhang, "Bayesian Invariant Risk Minimization", CVPR 2022.
Equation: min mean_e R_e(Phi) + lambda (1/S) sum_s mean_e |grad_w R_e(w Phi)|^2 at w = w_es ~ N(1, sigma^2)
Agrees with: the authors' ColoredMNIST script, S = 10, on domains of equal size: the script differentiates the
    pooled mean risk times m, which weights a domain of n_e of the N examples by m n_e / N before the square.
    As in its minibatch variant, the risk is taken at w = 1, and the slopes of two halves are multiplied, the
    even and odd examples here and a random split there; unbiased=false squares the slope on the whole batch.
    Its sigma is a constant (1200 for ColoredMNIST) over the number of training examples. It divides the loss
    by 1 + lambda (see rescale) and keeps one optimizer (restart=false).
Trust: unverified
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.func import jvp, vmap

from dgharness.algorithms.irmv1 import squared_means
from dgharness.plugin import (
    AnnealedHparams,
    Annotated,
    IntLogUniform,
    LogUniform,
    Needs,
    NonNegativeInt,
    Step,
    Structural,
    penalty,
)

DRAWS = 10  # S, of one classifier for every domain


class BIRMHparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e2, 1e5)] = 1e4
    """Weight of the penalty from anneal_steps on; before that it is 0."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 200
    """Updates before the penalty gets its weight."""
    sigma: Annotated[float, Field(ge=0), LogUniform(10**-2.5, 10**-0.5)] = 0.06
    """Standard deviation of a domain's classifier about 1; 0 is IRMv1."""
    unbiased: Annotated[bool, Structural] = True
    """Product of the slopes on two half batches; otherwise the squared slope on the whole batch."""


def draws(E: int, B: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers [E, S]."""
    return torch.randn(E, DRAWS, generator=generator)


@penalty("from_zero", hparams=BIRMHparams, needs=Needs(domain_rows=True), noise=draws)
def birm(step: Step, hp: BIRMHparams) -> Tensor:
    assert step.noise is not None
    z_EBC = step.logits_EBC.to(torch.promote_types(step.logits_EBC.dtype, torch.float32))
    w_ES = 1 + hp.sigma * step.noise.to(z_EBC).reshape(len(z_EBC), -1)

    def slopes(w_E: Tensor) -> Tensor:
        """Derivative [E, B] of every loss in a factor of its outputs, at w."""
        at_EBC = w_E[:, None, None] * z_EBC
        slope_EB: Tensor = jvp(lambda z: step.loss(z, step.targets_EB), (at_EBC,), (z_EBC,))[1]
        return slope_EB

    slope_EBS = vmap(slopes, in_dims=1, out_dims=2)(w_ES)
    return squared_means(slope_EBS, hp.unbiased).mean() / w_ES.shape[1]
