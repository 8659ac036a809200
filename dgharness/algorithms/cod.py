"""Aligns the distribution of the features given the label across every pair of domains.

Paper: Yang, Ren and Luo, "COD: Learning Conditional Invariant Representation for Domain Adaptation
    Regression", ECCV 2024, arXiv:2408.06638.
Equation: mean_{s<t} [ C_s + C_t - 2 C_st + V_s + V_t - 2 |B_t' H K^Z_ts H B_s|_* / sqrt(n_s n_t) ],
    C_st = tr(K^Y_ts I_s K^Z_st I_t), I_s = (K^Y_ss^2 + eps)^-1 K^Y_ss, V_s = eps tr(H K^Z_ss H A_s),
    A_s = (n_s eps + H K^Y_ss H)^-1, B_s = (n_s eps A_s)^1/2, C_s = C_ss, H centres, K as in mk-mmd
Agrees with: under mode=official, the authors' released loss: it rewards what the conditional means of the
    domains share, -(C_s + C_t + 2 C_st)^1/2, where the definition has their distance, leaves out the smallest
    singular value and adds 1e-4 to the eigenvalues under the root. The default mode=metric is the discrepancy
    itself, 0 where two domains agree. Both domains have true labels here, one-hot for classes; there the
    second has predictions, four columns of noise are joined to the labels, and another loss aligns first.
Trust: unverified
"""

# Shapes: P pairs of rows, N and M examples, D features, L columns of the label.

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from dgharness.distances import adaptive_kernel, full_precision, mean_pair, pairs
from dgharness.plugin import Annotated, LogUniform, Needs, PenaltyHparams, Step, Structural, penalty


class CODHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(1e-4, 1e-1)] = 1e-2
    """Weight of the penalty."""
    ridge: Annotated[PositiveFloat, LogUniform(1e-3, 1.0)] = 0.05
    """Ridge eps of the inverted kernel matrices."""
    mode: Annotated[Literal["metric", "official"], Structural] = "metric"
    """The discrepancy as defined, or as the authors' code has it."""


@penalty(
    "constant",
    hparams=CODHparams,
    needs=Needs(min_domains=2, tasks=("classification", "regression")),
    zero_on_identical_domains=True,
)
def cod(step: Step, hp: CODHparams) -> Tensor:
    y_EBL = label_columns(step.targets_EB, step.logits_EBC.shape[-1])
    return mean_pair(discrepancy(*pairs(step.features_EBD), *pairs(y_EBL), hp.ridge, hp.mode == "official"))


def label_columns(targets_EB: Tensor, outputs: int) -> Tensor:
    """Labels as vectors: classes one-hot, numbers as they are."""
    if not targets_EB.is_floating_point():
        return (targets_EB[..., None] == torch.arange(outputs, device=targets_EB.device)).double()
    return targets_EB[..., None] if targets_EB.dim() == 2 else targets_EB


@full_precision
def discrepancy(
    z_ND: Tensor, z_MD: Tensor, y_NL: Tensor, y_ML: Tensor, ridge: Tensor | float, official: bool
) -> Tensor:
    """The conditional operator discrepancy of two samples, in double precision."""
    N, M = z_ND.shape[-2], z_MD.shape[-2]
    Z = adaptive_kernel(torch.cat([z_ND, z_MD], -2).double())
    Y = adaptive_kernel(torch.cat([y_NL, y_ML], -2).double())
    I_s, C_s, V_s, HB_s = conditional(Z[..., :N, :N], Y[..., :N, :N], ridge, official)
    I_t, C_t, V_t, HB_t = conditional(Z[..., N:, N:], Y[..., N:, N:], ridge, official)
    C_st = trace(Y[..., N:, :N] @ I_s @ Z[..., :N, N:] @ I_t)
    singular = torch.linalg.svdvals(HB_t.mT @ Z[..., N:, :N] @ HB_s)
    if official:
        means, shared = -(C_s + C_t + 2 * C_st).sqrt(), singular[..., :-1].sum(-1)
    else:
        means, shared = C_s + C_t - 2 * C_st, singular.sum(-1)
    return means + V_s + V_t - 2 * shared / (N * M) ** 0.5


def conditional(
    Z_NN: Tensor, Y_NN: Tensor, ridge: Tensor | float, official: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """I, C and V of one sample, and H B up to a rotation, which no singular value sees."""
    N = Y_NN.shape[-1]
    eye_NN = torch.eye(N, dtype=Y_NN.dtype, device=Y_NN.device)
    H_NN = eye_NN - 1 / N
    I_NN = torch.linalg.solve(Y_NN @ Y_NN + ridge * eye_NN, Y_NN)
    A_NN = torch.linalg.inv(N * ridge * eye_NN + H_NN @ Y_NN @ H_NN)
    C, V = trace(Y_NN @ I_NN @ Z_NN @ I_NN), ridge * trace(H_NN @ Z_NN @ H_NN @ A_NN)
    eigenvalues_N, vectors_NN = torch.linalg.eigh(N * ridge * A_NN)
    root_N = (eigenvalues_N.clamp(min=0) + 1e-4 * official).sqrt()
    return I_NN, C, V, H_NN @ vectors_NN * root_N[..., None, :]


def trace(matrix_NN: Tensor) -> Tensor:
    return matrix_NN.diagonal(dim1=-2, dim2=-1).sum(-1)
