"""Moves the features of all domains towards one of them, which stays where it is: one-way invariance.

Paper: Chaudhuri, Georgescu and Dutta, "Learning Conditional Invariances through Non-Commutativity",
    ICLR 2024, arXiv:2402.11682.
Equation: min_D sum_e mean CE(D(f(x_e)), e), then
    min_{f,w} mean_e R_e(w . f) + (lambda / m) mean_{e != a} CE(D(f(x_e)), a), m domains other than a
Agrees with: the authors' code where unlabelled target data are there: a is the target, whose features the
    second step does not touch, and lambda = 1. Without them, a is the anchor, one of the training domains,
    which is no part of the paper.
Trust: unverified
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from dgharness.adversaries import domain_loss, model_and_discriminator
from dgharness.errors import UsageError
from dgharness.plugin import (
    Algorithm,
    Annotated,
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


class NCIHparams(Hparams):
    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e1)] = 1.0
    """Weight of the one-way alignment; 1 in the paper."""
    anchor: Annotated[NonNegativeInt, Structural] = 0
    """Training domain that the others are moved to, counted from 0, where no unlabelled target is there."""
    lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0
    """Learning rate of the discriminator, relative to the model's."""


class NCI(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        K = setup.dims.domains
        if setup.hp.anchor >= K:
            raise UsageError(
                f"hp.anchor={setup.hp.anchor} is no training domain of nci: there are {K}, counted from 0"
            )
        self.discriminator = nn.Linear(setup.dims.features, K + 1)  # the last one is the target

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        return model_and_discriminator(self, make, lr_multiplier=self.hp.lr_multiplier)

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        target = self.dims.domains
        goal_EB = torch.full_like(step.domain_EB, self.hp.anchor if step.unlabeled is None else target)

        def discriminator() -> Tensor:
            with torch.no_grad():
                z_EBD = step.fresh().features_EBD
                z_ND = None if step.unlabeled is None else step.model.features(step.unlabeled)
            loss = domain_loss(self.discriminator(z_EBD), step.domain_EB).mean(1).sum()
            if z_ND is not None:
                target_N = torch.full_like(z_ND[:, 0], target, dtype=torch.long)
                loss = loss + F.cross_entropy(self.discriminator(z_ND), target_N)
            metrics.setdefault("discriminator_loss", loss)
            return loss

        def model() -> Tensor:
            now = step.fresh()
            moved_EB = (step.domain_EB != goal_EB).to(now.risks_E.dtype)
            away_EB = domain_loss(self.discriminator(now.features_EBD), goal_EB)
            risk, moved_E = now.risks_E.mean(), moved_EB.mean(1)
            # The mean over the examples of m domains, and once more over m.
            penalty = (moved_EB * away_EB).mean(1).sum() / moved_E.sum().clamp(min=1).square()
            loss = risk + self.hp.weight * penalty
            if "loss" not in metrics:
                metrics.update({"loss": loss, "risk": risk, "penalty": penalty, "risks_E": now.risks_E})
            return loss

        descend("discriminator", discriminator)
        descend("model", model)
        return metrics


nci = algorithm(NCIHparams, needs=Needs(min_domains=2, unlabeled="optional"))(NCI)
