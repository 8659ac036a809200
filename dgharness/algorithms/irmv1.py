"""Asks that scaling the logits by a constant would help in no domain: one classifier optimal for all.

Paper: Arjovsky, Bottou, Gulrajani and Lopez-Paz, "Invariant Risk Minimization", 2019, arXiv:1907.02893.
Equation: min_Phi sum_e R_e(Phi) + lambda sum_e |grad_{w|w=1.0} R_e(w Phi)|^2, here with means over e.
Agrees with: DomainBed's IRM, which estimates the square by the product of the slopes on even and odd
    examples: unbiased, but at times negative. unbiased=false gives the squared slope of the paper's script,
    whose other options are rescale, l2 and restart=false. The slope comes from a forward-mode derivative, so
    that any loss per example works; one example per domain has no second half, and its penalty is 0.
    affine=true with unbiased=false is the penalty of the invariance unit tests (Aubin et al. 2021,
    arXiv:2102.10867), which minimise (1 - lambda) R + lambda penalty: that is weight lambda / (1 - lambda)
    here, up to a constant factor of the loss that Adam does not notice without weight decay.
Trust: core
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, jvp

from dgharness.plugin import (
    AnnealedHparams,
    Annotated,
    IntLogUniform,
    LogUniform,
    Needs,
    Neutral,
    NonNegativeInt,
    Step,
    Structural,
    penalty,
)


class IRMv1Hparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of the penalty from anneal_steps on; before that it is 1."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""
    unbiased: Annotated[bool, Structural] = True
    """Product of the slopes on two half batches; otherwise the squared slope on the whole batch."""
    affine: Annotated[bool, Structural, Neutral(False)] = False
    """Adds a shift of every output to the scale, and sums over the domains, as the unit tests do."""


@penalty("from_one", hparams=IRMv1Hparams, needs=Needs(domain_rows=True, places=("tokens",)))
def irmv1(step: Step, hp: IRMv1Hparams) -> Tensor:
    return irm_penalty(step, hp.unbiased, hp.affine)


def irm_penalty(step: Step, unbiased: bool = True, affine: bool = False) -> Tensor:
    """Squared slope of the risk in a scale of the logits: mean over the domains, or with shifts their sum."""
    if not affine:
        return squared_means(_scale_slopes(step)[..., None], unbiased).mean()
    shift_EBC = grad(lambda z: step.loss(z, step.targets_EB).sum())(step.logits_EBC)
    return squared_means(torch.cat([_scale_slopes(step)[..., None], shift_EBC], -1), unbiased).sum()


def _scale_slopes(step: Step) -> Tensor:
    # d/dw loss(w z) at w = 1 is the derivative of the loss along z.
    logits_EBC = step.logits_EBC
    slope_EB: Tensor = jvp(lambda z: step.loss(z, step.targets_EB), (logits_EBC,), (logits_EBC,))[1]
    return slope_EB


def squared_means(slope_EBS: Tensor, unbiased: bool) -> Tensor:
    """Squared norm [E] of the mean of S slopes, from the whole batch or unbiased from its halves."""
    if not unbiased:
        return slope_EBS.mean(1).square().sum(-1)
    even_EBS, odd_EBS = slope_EBS[:, ::2], slope_EBS[:, 1::2]
    return (even_EBS.mean(1) * odd_EBS.sum(1) / max(odd_EBS.shape[1], 1)).sum(-1)
