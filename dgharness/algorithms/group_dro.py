"""Weights the groups by their losses, the worst one most; the groups are the domains unless others are given.

Paper: Sagawa, Koh, Hashimoto and Liang, "Distributionally Robust Neural Networks for Group Shifts: On the
    Importance of Regularization for Worst-Case Generalization", ICLR 2020, arXiv:1911.08731.
Equation: q_g <- q_g exp(eta R_g), q <- q / sum q, then min_theta sum_g q_g R_g(theta)
Agrees with: DomainBed's GroupDRO where the groups are the domains. A group that the minibatch lacks counts
    as R_g = 0, as in the paper's script: its q moves only by the normalisation, and its share of the loss is
    lost for that step. Examples of unknown group are left out. No generalization adjustment C / sqrt(n_g).
    All domains pass the network together; DomainBed passes them one by one, which differs where BatchNorm
    trains.
Trust: verified
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgharness.plugin import Annotated, Dims, Hparams, LogUniform, Metrics, Needs, Step, objective


class GroupDROHparams(Hparams):
    eta: Annotated[float, LogUniform(1e-3, 1e-1)] = 1e-2
    """Step size of the group weights."""


class GroupDRO(nn.Module):
    q_G: Tensor

    def __init__(self, dims: Dims, hp: GroupDROHparams) -> None:
        super().__init__()
        self.register_buffer("q_G", torch.full((dims.groups,), 1 / dims.groups))

    def forward(self, step: Step, hp: GroupDROHparams) -> tuple[Tensor, Metrics]:
        loss_EB = step.loss(step.logits_EBC, step.targets_EB)
        groups_G = torch.arange(len(self.q_G), device=loss_EB.device)
        member_EBG = (step.group_EB[..., None] == groups_G).to(loss_EB.dtype)
        count_G = member_EBG.sum((0, 1))
        risk_G = (member_EBG * loss_EB[..., None]).sum((0, 1)) / count_G.clamp(min=1)
        # The softmax of log q + eta R is the normalised q exp(eta R), without its overflow.
        q_G = (self.q_G.log() + hp.eta * risk_G.detach()).softmax(0)
        self.q_G.copy_(q_G)
        return (q_G * risk_G).sum(), {"risk": step.risks_E.mean(), "q_max": q_G.max()}


group_dro = objective(GroupDROHparams, needs=Needs(groups=True, places=("tokens", "detection")))(GroupDRO)
