"""Asks that scaling the logits by a constant would help in no domain: one classifier optimal for all.

Paper: Arjovsky, Bottou, Gulrajani and Lopez-Paz, "Invariant Risk Minimization", 2019, arXiv:1907.02893.
Equation: min_Phi sum_e R_e(Phi) + lambda sum_e |grad_{w|w=1.0} R_e(w Phi)|^2, here with means over e.
Agrees with: DomainBed's IRM, which estimates the square by the product of the slopes on even and odd
    examples: unbiased, but at times negative. unbiased=false gives the squared slope of the paper's script,
    whose other options are rescale, l2 and restart=false. The slope comes from a forward-mode derivative, so
    that any loss per example works; one example per domain has no second half, and its penalty is 0.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor
from torch.func import jvp

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


class IRMv1Hparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of the penalty from anneal_steps on; before that it is 1."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""
    unbiased: Annotated[bool, Structural] = True
    """Product of the slopes on two half batches; otherwise the squared slope on the whole batch."""


@penalty("from_one", hparams=IRMv1Hparams, needs=Needs(domain_rows=True))
def irmv1(step: Step, hp: IRMv1Hparams) -> Tensor:
    # d/dw loss(w z) at w = 1 is the derivative of the loss along z.
    logits_EBC = step.logits_EBC
    slope_EB: Tensor = jvp(lambda z: step.loss(z, step.targets_EB), (logits_EBC,), (logits_EBC,))[1]
    if not hp.unbiased:
        return slope_EB.mean(1).square().mean()
    even_EB, odd_EB = slope_EB[:, ::2], slope_EB[:, 1::2]
    return (even_EB.mean(1) * odd_EB.sum(1) / max(odd_EB.shape[1], 1)).mean()
