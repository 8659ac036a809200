"""Learns features from which a discriminator cannot tell the domain, by turning its gradient around.

Paper: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv:1505.07818.
Equation: min_{f,w,D} R(w . f) + lambda mean CE(D(reverse(f(x))), domain), reverse(z) = z with gradient -1
Agrees with: WILDS's DANN on labelled data: the weight is on the discriminator's loss, hence in its own
    gradient too, and constant. There the discriminator and the classifier learn ten times faster than the
    featurizer; here the discriminator does by default, and optimizer.head_lr_multiplier=10 says the same of
    the classifier. The paper puts the weight into the reversal alone and lets it rise to 1. DomainBed takes
    turns instead: dann.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor, nn

from dgharness.adversaries import GradientReversalHparams, domain_loss, mlp, reverse
from dgharness.plugin import Dims, Metrics, Needs, Step, objective


class DANNGRL(nn.Module):
    def __init__(self, dims: Dims, hp: GradientReversalHparams) -> None:
        super().__init__()
        self.discriminator = mlp(
            dims.features, dims.domains, hp.width, hp.depth, dropout=hp.dropout, batch_norm=hp.batch_norm
        )

    def forward(self, step: Step, hp: GradientReversalHparams) -> tuple[Tensor, Metrics]:
        logits_EBK = self.discriminator(reverse(step.features_EBD))
        domain_risk = domain_loss(logits_EBK, step.domain_EB).mean()
        risk = step.risks_E.mean()
        return risk + hp.weight * domain_risk, {"risk": risk, "domain_risk": domain_risk}


dann_grl = objective(
    GradientReversalHparams,
    needs=Needs(min_domains=2),
    lr_multipliers=lambda hp: {"objective.discriminator.": hp.lr_multiplier},
)(DANNGRL)
