"""Aligns the first two moments of the features of two random mixtures of the domains.

Paper: Chevalley, Bunne, Krause and Bauer, "Invariant Causal Mechanisms through Distribution Matching", 2022,
    arXiv:2206.11646.
Equation: min mean_e R_e + gamma D(P, Q), P = the first c_e examples of every domain e, Q = all the others,
    c_e uniform in {0, ..., B-1}; D = |mu_P - mu_Q|^2 / d + |C_P - C_Q|_F^2 / d^2
Agrees with: DomainBed's CausIRL_CORAL, 0 where a part has fewer than two examples included; but what is not
    finite stays so here and is reported, where DomainBed turns it into 0.
    All domains pass the network together; DomainBed passes them one by one, which differs where BatchNorm
    trains.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor

from dgharness.distances import both_have_two, cuts, moments, pairwise, random_halves
from dgharness.plugin import Annotated, LogUniform, PenaltyHparams, Step, penalty


class CausIRLHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the penalty."""


@penalty("constant", hparams=CausIRLHparams, noise=cuts)
def causirl_coral(step: Step, hp: CausIRLHparams) -> Tensor:
    assert step.noise is not None
    half_2N = random_halves(step.noise, step.features_EBD.shape[1])
    mean_2D, cov_2DD = moments(step.features_EBD.flatten(0, 1).expand(2, -1, -1), half_2N)
    return (pairwise(mean_2D) + pairwise(cov_2DD)) * both_have_two(half_2N)
