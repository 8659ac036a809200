"""Aligns the feature distributions of the domains by the Sinkhorn divergence, optimal transport made smooth.

Paper: Lee, Jeon, Kang and Park, "Feature-aligned N-BEATS with Sinkhorn divergence", ICLR 2024,
    arXiv:2305.15196.
Equation: mean_{i<j} [ OT(Z_i, Z_j) - OT(Z_i, Z_i) / 2 - OT(Z_j, Z_j) / 2 ],
    OT(X, Y) = min_{P in U} sum_{ij} P_ij |x_i - y_j|^2 / 2 + eps KL(P | uniform), U the couplings of X and Y
Agrees with: the paper's loss on one layer of features under pairs=worst and softmax=true; its forecasting
    network sums it over stacks. Fifty iterations, of which the first half let eps fall from the squared
    diameter; what they leave undone favours one side of a pair, so both orders are averaged.
Trust: verified
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from dgharness import distances
from dgharness.plugin import Annotated, LogUniform, Needs, PenaltyHparams, Step, Structural, penalty


class SinkhornHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-2, 1e2)] = 1.0
    """Weight of the penalty."""
    eps: Annotated[PositiveFloat, LogUniform(1e-3, 1e-1)] = 2.5e-3
    """Weight of the entropy: the square of the length below which two points are alike."""
    pairs: Annotated[Literal["mean", "worst"], Structural] = "mean"
    """The mean over all pairs of domains, or the pair that is furthest apart."""
    softmax: Annotated[bool, Structural] = False
    """Make every feature vector a probability vector first."""


@penalty("constant", hparams=SinkhornHparams, needs=Needs(min_domains=2), zero_on_identical_domains=True)
def sinkhorn(step: Step, hp: SinkhornHparams) -> Tensor:
    z_EBD = step.features_EBD.softmax(-1) if hp.softmax else step.features_EBD
    cost_EE = distances.entropic_ot(z_EBD[:, None], z_EBD, hp.eps)
    own_E = cost_EE.diagonal()
    divergence_EE = (cost_EE + cost_EE.T - own_E[:, None] - own_E) / 2
    i_P, j_P = torch.triu_indices(len(own_E), len(own_E), 1, device=own_E.device)
    divergence_P = divergence_EE[i_P, j_P]
    return distances.worst_pair(divergence_P) if hp.pairs == "worst" else distances.mean_pair(divergence_P)
