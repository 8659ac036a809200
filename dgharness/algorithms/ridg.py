"""Keeps how each feature contributes to each class alike for all examples of a class, whatever their domain.

Paper: Chen, Zhang, Song, van den Hengel and Liu, "Domain Generalization via Rationale Invariance", ICCV 2023,
    arXiv:2308.11158.
Equation: min R + alpha sum_{k present} mean_{i in k} |M_i - B_k|^2 / C, M_i[c, j] = W[c, j] z_i[j],
    B_k <- (1 - m) B_k + m mean_{i in k} M_i, or that mean itself when class k is met first
Agrees with: the authors' code: a sum over the classes of the minibatch, the mean over the C rows of M, the
    bank B moved before the loss and held constant in it; "momentum" m is the share of what is new. The norm
    is computed as the spread of z within the class, weighted by the columns of W, plus the distance of the
    class's mean, which is the same and needs no matrix per example.
Trust: verified
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from dgharness.distances import full_precision
from dgharness.plugin import Annotated, Dims, Hparams, LogUniform, Metrics, Needs, Step, objective


class RIDGHparams(Hparams):
    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e-1)] = 0.01
    """Weight of the penalty."""
    momentum: Annotated[float, LogUniform(1e-4, 1e-1)] = 1e-3
    """Share of the minibatch's mean in the bank's next value."""


class RIDG(nn.Module):
    bank_CCD: Tensor  # by class of the examples, then as W
    met_C: Tensor  # 1 for a class whose row of the bank has a value

    def __init__(self, dims: Dims, hp: RIDGHparams) -> None:
        super().__init__()
        self.register_buffer("bank_CCD", torch.zeros(dims.outputs, dims.outputs, dims.features))
        self.register_buffer("met_C", torch.zeros(dims.outputs))

    def forward(self, step: Step, hp: RIDGHparams) -> tuple[Tensor, Metrics]:
        z_ND, y_N = step.features_EBD.flatten(0, 1), step.targets_EB.flatten()
        classes_C = torch.arange(len(self.met_C), device=y_N.device)
        classifier: Any = step.classifier
        penalty = self.penalty(z_ND, classifier.weight, (classes_C[:, None] == y_N).float(), hp)
        risk = step.risks_E.mean()
        return risk + hp.weight * penalty, {"risk": risk, "penalty": penalty}

    def penalty(self, z_ND: Tensor, W_CD: Tensor, member_CN: Tensor, hp: RIDGHparams) -> Tensor:
        mean_CD, spread_CD = class_moments(z_ND, member_CN)
        rationale_CCD = W_CD * mean_CD[:, None]
        present_C, first_C = member_CN.amax(1), 1 - self.met_C
        rate_C = present_C * (first_C + self.met_C * hp.momentum)
        bank_CCD = torch.lerp(self.bank_CCD, rationale_CCD.detach(), rate_C[:, None, None].to(W_CD.dtype))
        self.bank_CCD.copy_(bank_CCD)
        self.met_C.copy_(torch.maximum(self.met_C, present_C))
        within_C = (spread_CD * W_CD.square().sum(0)).sum(1)
        between_C = (rationale_CCD - bank_CCD).square().sum((1, 2))
        return (present_C * (within_C + between_C)).sum() / len(W_CD)


@full_precision
def class_moments(z_ND: Tensor, member_CN: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C, D] of every class; 0 for one that is missing."""
    member_CN = member_CN.to(z_ND.dtype)
    share_CN = member_CN / member_CN.sum(1, keepdim=True).clamp(min=1)
    mean_CD = share_CN @ z_ND
    centred_ND = z_ND - member_CN.T @ mean_CD
    return mean_CD, share_CN @ centred_ND.square()


ridg = objective(RIDGHparams, needs=Needs(tasks=("classification",), linear_classifier=True))(RIDG)
