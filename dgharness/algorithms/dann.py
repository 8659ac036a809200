"""Learns features from which a discriminator cannot tell the domain; the two take turns.

Paper: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv:1505.07818.
Equation: min_D L_D and min_{f,w} R(w . f) - lambda L_D in turns, L_D = mean CE(D(f(x)), domain) + gp P,
    P = mean over examples of |gradient in f(x) of the summed CE|^2
Agrees with: DomainBed's DANN, turn for turn: d discriminator updates per update of the model, of which the
    d-th of 1 + d updates is the model's, so d = 1 begins with it; all count as updates of the run. The
    penalty P has the sign of -lambda in the model's turn, there as here. DomainBed draws the two learning
    rates independently, here the discriminator's is a multiple. The paper turns the gradient around in one
    backward pass instead: dann-grl.
Trust: verified
"""

from __future__ import annotations

from torch import Tensor

from dgharness.adversaries import Alternating, AlternatingHparams, domain_loss
from dgharness.plugin import Needs, Step, algorithm


class DANN(Alternating):
    def discriminator_loss(self, step: Step, z_EBD: Tensor) -> Tensor:
        loss_EB = domain_loss(self.discriminator(z_EBD), step.domain_EB)
        return loss_EB.mean() + self.gradient_penalty(loss_EB, z_EBD)


dann = algorithm(AlternatingHparams, needs=Needs(min_domains=2))(DANN)
