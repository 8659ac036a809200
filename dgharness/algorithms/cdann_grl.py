"""Learns features from which a discriminator that knows the class cannot tell the domain, in one pass.

Paper: Li et al., "Deep Domain Generalization via Conditional Invariant Adversarial Networks", ECCV 2018.
Equation: min_{f,w,D,v} R(w . f) + lambda sum_i CE(D(reverse(f(x_i)) + v_{y_i}), domain_i) / (C n_{y_i}),
    reverse(z) = z with gradient -1
Agrees with: DomainBed's CDANN in the discriminator's loss (see cdann), which is here descended as WILDS does
    for DANN: together with the model's, through a reversed gradient (see dann-grl). WILDS has no CDANN.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor, nn

from dgharness.adversaries import GradientReversalHparams, class_shares, domain_loss, mlp, reverse
from dgharness.plugin import Dims, Metrics, Needs, Step, objective


class CDANNGRL(nn.Module):
    def __init__(self, dims: Dims, hp: GradientReversalHparams) -> None:
        super().__init__()
        self.discriminator = mlp(
            dims.features, dims.domains, hp.width, hp.depth, dropout=hp.dropout, batch_norm=hp.batch_norm
        )
        self.class_embedding = nn.Embedding(dims.outputs, dims.features)

    def forward(self, step: Step, hp: GradientReversalHparams) -> tuple[Tensor, Metrics]:
        inputs_EBD = reverse(step.features_EBD) + self.class_embedding(step.targets_EB)
        loss_EB = domain_loss(self.discriminator(inputs_EBD), step.domain_EB)
        share_EB = class_shares(step.targets_EB, len(self.class_embedding.weight))
        domain_risk = (share_EB * loss_EB).sum()
        risk = step.risks_E.mean()
        return risk + hp.weight * domain_risk, {"risk": risk, "domain_risk": domain_risk}


cdann_grl = objective(
    GradientReversalHparams,
    needs=Needs(min_domains=2, tasks=("classification",)),
    lr_multipliers=lambda hp: {
        "objective.discriminator.": hp.lr_multiplier,
        "objective.class_embedding.": hp.lr_multiplier,
    },
)(CDANNGRL)
