"""Pulls the feature distributions of every pair of domains together, at kernel widths that follow them.

Paper: Long, Cao, Wang and Jordan, "Learning Transferable Features with Deep Adaptation Networks", ICML 2015,
    arXiv:1502.02791.
Equation: mean_{i<j} [ mean k(Z_i, Z_i) + mean k(Z_j, Z_j) - 2 mean k(Z_i, Z_j) ],
    k(a, b) = sum_{u=-2..2} exp(-|a - b|^2 / (2^u s)), s = mean of |a - b|^2 over both domains, a constant
Agrees with: the common implementation of the paper's loss for two domains of equal size, diagonal included
    (that of FedKA and COD); each mean is its own here, so that sizes may differ. The paper weights its
    kernels by a quadratic program, here they count alike. Unlike in mmd, no width has to suit the scale of
    the features.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor

from dgharness.distances import adaptive_mmd, mean_pair, pairs
from dgharness.plugin import Annotated, LogUniform, Needs, PenaltyHparams, Step, penalty


class MKMMDHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the penalty."""


@penalty("constant", hparams=MKMMDHparams, needs=Needs(min_domains=2), zero_on_identical_domains=True)
def mk_mmd(step: Step, hp: MKMMDHparams) -> Tensor:
    return mean_pair(adaptive_mmd(*pairs(step.features_EBD)))
