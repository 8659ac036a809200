"""IRMv1 and V-REx together: one classifier optimal in every domain, and equal risks.

Paper: Chen et al., "Pareto Invariant Risk Minimization: Towards Mitigating the Optimization Dilemma in
    Out-of-Distribution Generalization", ICLR 2023, arXiv:2206.07766.
Equation: min mean_e R_e + lambda_1 mean_e |grad_{w|w=1.0} R_e(w Phi)|^2 + lambda_2 Var({R_1, ..., R_m})
Agrees with: irmv1 where rex_weight is 0 and vrex where irm_weight is 0, from anneal_steps on. The paper's
    scripts take the unbiased variance, m / (m - 1) times this one, and the squared slope on the whole batch
    (unbiased=false). DomainBed has no IRMX: anneal step and spaces are those of its IRM and V-REx, and before
    the anneal step both weights are 1, as there.
Trust: verified
"""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

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


class IRMXHparams(Hparams):
    irm_weight: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of IRMv1's penalty from anneal_steps on; before that it is 1."""
    rex_weight: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e5)] = 10.0
    """Weight of the variance of the risks from anneal_steps on; before that it is 1."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalties get their weights."""
    restart: Annotated[bool, Structural] = True
    """Start the optimizer afresh at that update."""
    unbiased: Annotated[bool, Structural] = True
    """IRMv1: product of the slopes on two half batches; otherwise the squared slope on the whole batch."""


def restarts(hp: IRMXHparams) -> list[tuple[int, None]]:
    return [(hp.anneal_steps, None)] if hp.restart else []


@objective(IRMXHparams, needs=Needs(min_domains=2), restarts=restarts)
def irmx(step: Step, hp: IRMXHparams) -> tuple[Tensor, Metrics]:
    risk = step.risks_E.mean()
    irm, rex = irm_penalty(step, hp.unbiased), step.risks_E.var(correction=0)
    annealed = step.t >= hp.anneal_steps
    irm_weight, rex_weight = 1 + annealed * (hp.irm_weight - 1), 1 + annealed * (hp.rex_weight - 1)
    return risk + irm_weight * irm + rex_weight * rex, {"risk": risk, "irm_penalty": irm, "rex_penalty": rex}
