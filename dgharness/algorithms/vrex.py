"""Penalises the variance of the domains' risks.

Paper: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation (REx)", ICML 2021,
    arXiv:2003.00688.
Equation: min_theta sum_e R_e(theta) + beta Var({R_1(theta), ..., R_m(theta)}), here with the mean over e.
Agrees with: DomainBed's VREx. The paper's script sums the risks of its two domains and takes their squared
    difference, which is four times this variance, and keeps one optimizer throughout (restart=false).
Trust: core
"""

from __future__ import annotations

from torch import Tensor

from dgharness.plugin import (
    AnnealedHparams,
    Annotated,
    IntLogUniform,
    LogUniform,
    Needs,
    NonNegativeInt,
    Step,
    penalty,
)


class VRExHparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 10.0
    """Weight of the penalty from anneal_steps on; before that it is 1."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""


@penalty(
    "from_one",
    hparams=VRExHparams,
    needs=Needs(min_domains=2, places=("tokens", "detection")),
    zero_on_identical_domains=True,
)
def vrex(step: Step, hp: VRExHparams) -> Tensor:
    return step.risks_E.var(correction=0)
