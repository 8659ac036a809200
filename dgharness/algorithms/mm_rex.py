"""Minimises the worst risk that extrapolating from the domains' risks by a bounded amount can reach.

Paper: Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation (REx)", ICML 2021,
    arXiv:2003.00688.
Equation: min_theta (1 - m lambda_min) max_e R_e(theta) + lambda_min sum_e R_e(theta), which is
    mean_e R_e + beta (max_e R_e - mean_e R_e) with beta = 1 - m lambda_min
Agrees with: the paper, with beta as the weight: 0 is the mean risk, 1 the worst one, more extrapolates
    (lambda_min < 0). The paper's script for two domains, R_1 + R_2 + weight |R_1 - R_2|, is twice this with
    beta = weight. DomainBed has no MM-REx: anneal step, weight before it and spaces are those of its V-REx.
Trust: verified
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


class MMRExHparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 10.0
    """1 - m lambda_min from anneal_steps on; before that it is 1, the worst risk alone."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""


@penalty(
    "from_one",
    hparams=MMRExHparams,
    needs=Needs(min_domains=2, places=("tokens", "detection")),
    zero_on_identical_domains=True,
)
def mm_rex(step: Step, hp: MMRExHparams) -> Tensor:
    return step.risks_E.max() - step.risks_E.mean()
