"""Penalises the variance of the features, so that the classifier cannot rest on more of them than it needs.

Paper: Ahuja et al., "Invariance Principle Meets Information Bottleneck for Out-of-Distribution
    Generalization", NeurIPS 2021, arXiv:2106.06607.
Equation: min mean_e R_e + lambda mean_e mean_j Var_e(z_j), with z the features
Agrees with: DomainBed's IB_ERM, the variance unbiased and within each domain. of=logits with pooled=true is
    the paper's form for the invariance unit tests: the variance of the output over all domains together
    (weight .1, anneal_steps 0 there).
Trust: core
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dgharness.distances import full_precision
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


class IBERMHparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of the variance from anneal_steps on; before that it is 0."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""
    of: Annotated[Literal["features", "logits"], Structural] = "features"
    """Whose variance."""
    pooled: Annotated[bool, Structural] = False
    """The variance over all domains together, and not the mean of the variances within them."""


@penalty("from_zero", hparams=IBERMHparams, needs=Needs(domain_rows=True))
def ib_erm(step: Step, hp: IBERMHparams) -> Tensor:
    return ib_penalty(step, hp.of, hp.pooled)


def ib_penalty(step: Step, of: Literal["features", "logits"], pooled: bool) -> Tensor:
    """Variance of the features or the logits, the mean over their entries and over the domains."""
    return _mean_variance(step.features_EBD if of == "features" else step.logits_EBC, pooled)


@full_precision
def _mean_variance(z_EBD: Tensor, pooled: bool) -> Tensor:
    rows = z_EBD.flatten(0, 1)[None] if pooled else z_EBD
    return rows.var(1, correction=min(1, rows.shape[1] - 1)).mean()
