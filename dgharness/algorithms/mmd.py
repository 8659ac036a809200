"""Pulls the feature distributions of every pair of domains together by their maximum mean discrepancy.

Paper: Li, Pan, Wang and Kot, "Domain Generalization with Adversarial Feature Learning", CVPR 2018.
Equation: mean_{i<j} [ mean k(Z_i, Z_i) + mean k(Z_j, Z_j) - 2 mean k(Z_i, Z_j) ],
    k(a, b) = sum_gamma exp(-gamma |a - b|^2), gamma in {0.001, 0.01, 0.1, 1, 10, 100, 1000}
Agrees with: DomainBed's MMD, kernel sum and diagonal included. The paper's adversarial autoencoder is not
    part of it, there or here.
    All domains pass the network together; DomainBed passes them one by one, which differs where BatchNorm
    trains.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor

from dgharness.distances import gaussian_mmd, rows
from dgharness.plugin import Annotated, LogUniform, Needs, PenaltyHparams, Step, penalty


class MMDHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the penalty."""


@penalty("constant", hparams=MMDHparams, needs=Needs(min_domains=2), zero_on_identical_domains=True)
def mmd(step: Step, hp: MMDHparams) -> Tensor:
    z_EBD = step.features_EBD
    return gaussian_mmd(z_EBD.flatten(0, 1), rows(z_EBD))
