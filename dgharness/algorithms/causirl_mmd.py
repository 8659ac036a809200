"""Aligns the feature distributions of two random mixtures of the domains.

Paper: Chevalley, Bunne, Krause and Bauer, "Invariant Causal Mechanisms through Distribution Matching", 2022,
    arXiv:2206.11646.
Equation: min mean_e R_e + gamma D(P, Q), P = the first c_e examples of every domain e, Q = all the others,
    c_e uniform in {0, ..., B-1}; D = mean k(Z_P, Z_P) + mean k(Z_Q, Z_Q) - 2 mean k(Z_P, Z_Q), k as in mmd
Agrees with: DomainBed's CausIRL_MMD, 0 where a part has fewer than two examples included; but what is not
    finite stays so here and is reported, where DomainBed turns it into 0.
    All domains pass the network together; DomainBed passes them one by one, which differs where BatchNorm
    trains.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor

from dgharness.distances import both_have_two, cuts, gaussian_mmd, random_halves
from dgharness.plugin import Annotated, LogUniform, PenaltyHparams, Step, penalty


class CausIRLHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the penalty."""


@penalty("constant", hparams=CausIRLHparams, noise=cuts)
def causirl_mmd(step: Step, hp: CausIRLHparams) -> Tensor:
    assert step.noise is not None
    half_2N = random_halves(step.noise, step.features_EBD.shape[1])
    return gaussian_mmd(step.features_EBD.flatten(0, 1), half_2N) * both_have_two(half_2N)
