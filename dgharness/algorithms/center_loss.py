"""Draws the features of every class to a common centre, which follows them: the same for all domains.

Paper: Wen, Zhang, Li and Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition",
    ECCV 2016.
Equation: min R + lambda/2 mean_i |z_i - c_{y_i}|^2, then
    c_k <- c_k - alpha sum_{i in k} (c_k - z_i) / (1 + n_k), n_k examples of class k in the minibatch
Agrees with: the paper, with the mean over the minibatch in both terms; the centres start at 0. The popular
    PyTorch form has no 1/2, so its alpha is half of this weight, and it moves the centres by a gradient
    divided by the size of the minibatch instead of 1 + n_k.
Trust: verified
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from dgharness.distances import full_precision
from dgharness.plugin import Annotated, Choice, Dims, Hparams, LogUniform, Metrics, Needs, Step, objective


class CenterLossHparams(Hparams):
    weight: Annotated[NonNegativeFloat, LogUniform(1e-4, 1e-1)] = 3e-3
    """Weight of half the mean squared distance from the centre."""
    center_rate: Annotated[float, Choice((0.1, 0.5))] = 0.5
    """Step size of the centres, the paper's alpha."""


class CenterLoss(nn.Module):
    center_CD: Tensor

    def __init__(self, dims: Dims, hp: CenterLossHparams) -> None:
        super().__init__()
        self.register_buffer("center_CD", torch.zeros(dims.outputs, dims.features))

    def forward(self, step: Step, hp: CenterLossHparams) -> tuple[Tensor, Metrics]:
        z_ND, y_N = step.features_EBD.flatten(0, 1), step.targets_EB.flatten()
        penalty, pull_CD = center_distance(z_ND, y_N, self.center_CD)
        self.center_CD.copy_(self.center_CD - hp.center_rate * pull_CD)
        risk = step.risks_E.mean()
        return risk + hp.weight * penalty, {"risk": risk, "penalty": penalty}


@full_precision
def center_distance(z_ND: Tensor, y_N: Tensor, center_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Half the mean squared distance from the centres, and the counted pull on them."""
    classes_C = torch.arange(len(center_CD), device=y_N.device)
    member_NC = (y_N[:, None] == classes_C).to(z_ND.dtype)
    apart_ND = z_ND - member_NC @ center_CD.to(z_ND.dtype)
    pull_CD = -member_NC.T @ apart_ND.detach() / (1 + member_NC.sum(0))[:, None]
    return apart_ND.square().sum(1).mean() / 2, pull_CD


center_loss = objective(CenterLossHparams, needs=Needs(tasks=("classification",)))(CenterLoss)
