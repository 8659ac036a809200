"""Aligns the first two moments of the features across every pair of domains.

Paper: Sun and Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV Workshops 2016,
    arXiv:1607.01719.
Equation: mean_{i<j} [ |mu_i - mu_j|^2 / d + |C_i - C_j|_F^2 / d^2 ] (domainbed);
    mean_{i<j} |C_i - C_j|_F^2 / (4 d^2) (sun2016)
Agrees with: DomainBed's CORAL by default. The paper's own loss, under scaling=sun2016, has no term for the
    means and a quarter of the rest. Covariances are unbiased in both.
    All domains pass the network together; DomainBed passes them one by one, which differs where BatchNorm
    trains.
Trust: verified
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dgharness.distances import moments, pairwise
from dgharness.plugin import Annotated, LogUniform, Needs, PenaltyHparams, Step, Structural, penalty


class CORALHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the penalty."""
    scaling: Annotated[Literal["domainbed", "sun2016"], Structural] = "domainbed"
    """Which CORAL: DomainBed's with means, or the paper's covariances over 4d²."""


@penalty("constant", hparams=CORALHparams, needs=Needs(min_domains=2), zero_on_identical_domains=True)
def coral(step: Step, hp: CORALHparams) -> Tensor:
    mean_ED, cov_EDD = moments(step.features_EBD)
    if hp.scaling == "sun2016":
        return pairwise(cov_EDD) / 4
    return pairwise(mean_ED) + pairwise(cov_EDD)
