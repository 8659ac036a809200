"""IRMv1 with an information bottleneck: also penalises the variance of the features.

Paper: Ahuja et al., "Invariance Principle Meets Information Bottleneck for Out-of-Distribution
    Generalization", NeurIPS 2021, arXiv:2106.06607.
Equation: min mean_e R_e + lambda_irm mean_e |grad_{w|w=1.0} R_e(w Phi)|^2
    + lambda_ib mean_e mean_j Var_e(z_j), with z the features
Agrees with: DomainBed's IB_IRM, whose optimizer starts afresh when either penalty gets its weight. The
    options of both penalties are those of irmv1 and ib-erm. The paper's form for the invariance unit tests is
    unbiased=false, affine=true, of=logits, both anneal steps 0; it weights the risk by 1 - lambda_irm, which
    is irm_weight = lambda_irm / (1 - lambda_irm) and ib_weight = lambda_ib / (1 - lambda_irm) here.
Trust: verified
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from dgharness.algorithms.ib_erm import ib_penalty
from dgharness.algorithms.irmv1 import irm_penalty
from dgharness.plugin import (
    Annotated,
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


class IBIRMHparams(Hparams):
    irm_weight: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of IRMv1's penalty from irm_anneal_steps on; before that it is 1."""
    irm_anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before IRMv1's penalty gets its weight."""
    ib_weight: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of the variance from ib_anneal_steps on; before that it is 0."""
    ib_anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the variance gets its weight."""
    restart: Annotated[bool, Structural] = True
    """Start the optimizer afresh at both of these updates."""
    unbiased: Annotated[bool, Structural] = True
    """IRMv1: product of the slopes on two half batches; otherwise the squared slope on the whole batch."""
    affine: Annotated[bool, Structural] = False
    """IRMv1: adds a shift of every output to the scale, and sums over the domains."""
    of: Annotated[Literal["features", "logits"], Structural] = "features"
    """Whose variance."""
    pooled: Annotated[bool, Structural] = False
    """The variance over all domains together, and not the mean of the variances within them."""


def restarts(hp: IBIRMHparams) -> list[tuple[int, None]]:
    return [(hp.irm_anneal_steps, None), (hp.ib_anneal_steps, None)] if hp.restart else []


@objective(IBIRMHparams, needs=Needs(domain_rows=True), restarts=restarts)
def ib_irm(step: Step, hp: IBIRMHparams) -> tuple[Tensor, Metrics]:
    risk = step.risks_E.mean()
    irm = irm_penalty(step, hp.unbiased, hp.affine)
    ib = ib_penalty(step, hp.of, hp.pooled)
    irm_weight = 1 + (step.t >= hp.irm_anneal_steps) * (hp.irm_weight - 1)
    ib_weight = (step.t >= hp.ib_anneal_steps) * hp.ib_weight
    return risk + irm_weight * irm + ib_weight * ib, {"risk": risk, "irm_penalty": irm, "ib_penalty": ib}
