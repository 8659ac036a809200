"""Aligns where the features of the domains can lie, and not how often: labels may be distributed differently.

Paper: Tong, Garipov, Zhang, Chang and Jaakkola, "Adversarial Support Alignment", ICLR 2022,
    arXiv:2203.08908.
Equation: min_D mean CE(D(f(x)), domain), then min_{f,w} R(w . f) + lambda mean_{i<j} SSD(U, V),
    SSD(U, V) = mean_u min_v |u - v| + mean_v min_u |u - v|, U and V the values of D_i - D_j on both domains
Agrees with: the authors' code for two domains, whose one logit is the difference of the two here: a step of
    the discriminator, then one of the model against it, with values remembered from the last minibatches and
    a weight that rises linearly. More domains, each pair of which has a difference of its own, are no part of
    the paper; nor is its unlabelled target.
Trust: unverified
"""

# Shapes: H values remembered per domain, T = H + B of them with those of the minibatch.

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from dgharness.adversaries import domain_loss, mlp, model_and_discriminator
from dgharness.distances import full_precision, mean_pair, pairs
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Choice,
    Descend,
    Hparams,
    LogUniform,
    MakeOptimizer,
    Metrics,
    Needs,
    Setup,
    Step,
    Structural,
    algorithm,
)


class SupportAlignmentHparams(Hparams):
    weight: Annotated[NonNegativeFloat, LogUniform(1e-3, 1e1)] = 1.0
    """Weight of the support difference once it has risen."""
    ramp_steps: NonNegativeInt = 500
    """Updates over which the weight rises linearly; a sixth of the run in the paper."""
    distance: Annotated[Literal["absolute", "squared"], Structural] = "absolute"
    """Between two values of the discriminator."""
    history: Annotated[NonNegativeInt, Structural, Choice((0, 500, 1000, 2000))] = 1000
    """Values remembered per domain."""
    width: Annotated[PositiveInt, Structural] = 512
    """Width of the discriminator, of three layers."""
    lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0
    """Learning rate of the discriminator, relative to the model's."""


class SupportAlignment(Algorithm):
    past_KHK: Tensor  # the discriminator's last outputs by domain, the newest at the end
    filled_K: Tensor  # how many there are

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        K = setup.dims.domains
        self.discriminator = mlp(setup.dims.features, K, setup.hp.width, 3, activation=nn.LeakyReLU)
        self.register_buffer("past_KHK", torch.zeros(K, setup.hp.history, K))
        self.register_buffer("filled_K", torch.zeros(K, dtype=torch.long))

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        return model_and_discriminator(self, make, lr_multiplier=self.hp.lr_multiplier)

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}

        def discriminator() -> Tensor:
            with torch.no_grad():
                z_EBD = step.fresh().features_EBD
            loss = domain_loss(self.discriminator(z_EBD), step.domain_EB).mean()
            metrics.setdefault("discriminator_loss", loss)
            return loss

        def model() -> Tensor:
            now = step.fresh()
            risk, penalty = now.risks_E.mean(), self.penalty(now)
            loss = risk + self.hp.weight * min(1.0, step.t / max(1, self.hp.ramp_steps)) * penalty
            if "loss" not in metrics:
                metrics.update({"loss": loss, "risk": risk, "penalty": penalty, "risks_E": now.risks_E})
            return loss

        descend("discriminator", discriminator)
        descend("model", model)
        return metrics

    def penalty(self, step: Step) -> Tensor:
        """Mean support difference over the pairs of rows; remembers the minibatch's values."""
        logits_EBK, domain_E = self.discriminator(step.features_EBD), step.domain_EB[:, 0]
        values_ETK = torch.cat([self.past_KHK[domain_E], logits_EBK.to(self.past_KHK)], 1)
        filled_E = self.filled_K[domain_E]
        T, H = values_ETK.shape[1], self.hp.history
        there_ET = torch.arange(T, device=domain_E.device) >= H - filled_E[:, None]
        self.past_KHK.index_copy_(0, domain_E, values_ETK[:, T - H :].detach())
        self.filled_K.index_copy_(0, domain_E, (filled_E + T - H).clamp(max=H))

        i_P, j_P = pairs(domain_E[:, None])
        u_PTK, v_PTK = pairs(values_ETK)
        u_PT, v_PT = difference(u_PTK, i_P, j_P), difference(v_PTK, i_P, j_P)
        return mean_pair(support_difference(u_PT, v_PT, *pairs(there_ET), self.hp.distance == "squared"))


def difference(values_PTK: Tensor, i_P1: Tensor, j_P1: Tensor) -> Tensor:
    """Output i less output j [P, T]: the discriminator's log odds of the two domains."""
    take = values_PTK.take_along_dim
    return (take(i_P1[..., None], 2) - take(j_P1[..., None], 2)).squeeze(2)


@full_precision
def support_difference(
    u_PT: Tensor, v_PT: Tensor, u_there_PT: Tensor, v_there_PT: Tensor, squared: bool
) -> Tensor:
    """Mean distance to the nearest value of the other sample, of both samples, over those that are there."""
    mean_P = torch.zeros_like(u_PT[:, 0])
    for a_PT, a_there_PT, b_PT, b_there_PT in [
        (u_PT, u_there_PT, v_PT, v_there_PT),
        (v_PT, v_there_PT, u_PT, u_there_PT),
    ]:
        apart_PT = nearest(a_PT, b_PT, b_there_PT)
        apart_PT = apart_PT.square() if squared else apart_PT
        mean_P = mean_P + (a_there_PT * apart_PT).sum(1) / a_there_PT.sum(1)
    return mean_P


def nearest(a_PT: Tensor, b_PT: Tensor, there_PT: Tensor) -> Tensor:
    """Distance of every a from the nearest b that is there: from its two neighbours among the sorted."""
    b_PT = b_PT.masked_fill(~there_PT, torch.inf).sort(1).values
    above_PT = torch.searchsorted(b_PT.detach(), a_PT.detach().contiguous()).clamp(max=b_PT.shape[1] - 1)
    below_PT = (above_PT - 1).clamp(min=0)
    return torch.minimum((a_PT - b_PT.gather(1, above_PT)).abs(), (a_PT - b_PT.gather(1, below_PT)).abs())


support_alignment = algorithm(SupportAlignmentHparams, needs=Needs(min_domains=2))(SupportAlignment)
