"""A game of one network per domain: each moves on its domain's risk of their common mean, in turn.

Paper: Ahuja, Shanmugam, Varshney and Dhurandhar, "Invariant Risk Minimization Games", ICML 2020,
    arXiv:2002.04692.
Equation: player e: min_{w_e} R_e( (1/m) sum_q w_q ) (fixed), or of (1/m) sum_q w_q(phi) (variable), where one
    more player moves the shared features: min_phi mean_e R_e
Agrees with: the authors' code in the turns: one player per update; with variable, the features first and then
    the players from the last to the first; the order starts over with every epoch, here a pass over the
    smallest domain, unless that is shorter than one round. The ensemble in training is the mean (their code
    takes half the sum, the same for two domains). They stop when the accuracy on all training data falls
    below a threshold; here it is that on the minibatch after the update, which costs little and is the
    same with train.batch_size=all. The optimizer is the configured one.
Trust: verified
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from dgharness.plugin import (
    Algorithm,
    Annotated,
    Descend,
    Hparams,
    MakeOptimizer,
    Metrics,
    Needs,
    Setup,
    Source,
    Step,
    Structural,
    Uniform,
    algorithm,
)

# Shapes beyond those of dgharness.plugin: P featurizers, one per player or one for all.

PHI = "representation"


class IRMGamesHparams(Hparams):
    variant: Annotated[Literal["fixed", "variable"], Structural] = "fixed"
    """fixed: every player owns a whole network; variable: a classifier on features that all share."""
    warm_start: Annotated[NonNegativeInt, Structural] = 100
    """Updates before the game may stop."""
    termination_acc: Annotated[float, Field(ge=0, le=1), Uniform(0.55, 0.75), Structural] = 0.6
    """The game stops when the ensemble's training accuracy falls below this; 0 never stops it."""
    representation_lr_multiplier: Annotated[PositiveFloat, Structural] = 0.1
    """Learning rate of the shared features, relative to the players'."""


class IRMGames(Algorithm):
    stopped: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        # The model of the run is the first player.
        others = [setup.new_model() for _ in range(1, self.dims.domains)]
        fixed = self.hp.variant == "fixed"
        self.others = nn.ModuleList(others if fixed else [other.classifier for other in others])
        self.register_buffer("stopped", torch.tensor(False))

    @property
    def finished(self) -> bool:  # type: ignore[override]
        return bool(self.stopped)

    @property
    def ensemble(self) -> Ensemble:
        if self.hp.variant == "variable":
            return Ensemble([self.model.featurizer], [self.model.classifier, *self.others])
        networks = [self.model, *self.others]
        return Ensemble([n.featurizer for n in networks], [n.classifier for n in networks])

    def players(self) -> dict[str, list[nn.Module]]:
        """What each player moves, in the order of their turns."""
        ensemble = self.ensemble
        if self.hp.variant == "fixed":
            pairs = zip(ensemble.featurizers, ensemble.classifiers, strict=True)
            return {str(e): [featurizer, classifier] for e, (featurizer, classifier) in enumerate(pairs)}
        own = {str(e): [classifier] for e, classifier in enumerate(ensemble.classifiers)}
        return {PHI: list(ensemble.featurizers), **dict(reversed(own.items()))}

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        return {
            name: make(
                [named for module in modules for named in module.named_parameters()],
                lr_multiplier=self.hp.representation_lr_multiplier if name == PHI else 1.0,
            )
            for name, modules in self.players().items()
        }

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        players, ensemble = self.players(), self.ensemble
        mover = list(players)[self.turn(step, len(players))]
        of_mover_EB = torch.ones_like(step.domain_EB) if mover == PHI else step.domain_EB == int(mover)

        def loss_fn() -> Tensor:
            with only(players[mover], self):
                logits_EBC = ensemble(step.x).unflatten(0, step.targets_EB.shape)
            loss_EB = step.loss(logits_EBC, step.targets_EB)
            loss = (of_mover_EB * loss_EB).sum() / of_mover_EB.sum().clamp(min=1)
            if not metrics:
                metrics.update(loss=loss, risk=loss_EB.mean(), risks_E=loss_EB.mean(1))
            return loss

        descend(mover, loss_fn)
        metrics["ensemble_accuracy"] = self.accuracy(step)
        if step.t + 1 >= self.hp.warm_start:
            self.stopped |= metrics["ensemble_accuracy"] < self.hp.termination_acc
        return metrics

    def turn(self, step: Step, players: int) -> int:
        """Whose turn it is, a function of the updates completed alone."""
        epoch = 0
        if step.source is not None:
            epoch = int(step.source.counts_K.min()) // step.targets_EB.shape[1]
        return (step.t % epoch if epoch >= players else step.t) % players

    @torch.no_grad()
    def accuracy(self, step: Step) -> Tensor:
        """Accuracy of the ensemble on the minibatch, without dropout."""
        self.eval()
        predicted_EB = self.ensemble(step.x).argmax(-1).view_as(step.targets_EB)
        self.train()
        return (predicted_EB == step.targets_EB).float().mean()

    def predictor(self, source: Source | None) -> Ensemble:
        return self.ensemble


class Ensemble(nn.Module):
    """The mean of the players' logits, on features of their own or on one for all."""

    def __init__(self, featurizers: Sequence[nn.Module], classifiers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.featurizers, self.classifiers = nn.ModuleList(featurizers), nn.ModuleList(classifiers)

    def features(self, x: Any) -> Tensor:
        """Features [N, P, D]."""
        return torch.stack([featurizer(x) for featurizer in self.featurizers], dim=1)

    def classify(self, z_NPD: Tensor) -> Tensor:
        z = z_NPD.expand(-1, len(self.classifiers), -1).unbind(1)
        return torch.stack([own(z_ND) for own, z_ND in zip(self.classifiers, z, strict=True)]).mean(0)

    def forward(self, x: Any) -> Tensor:
        return self.classify(self.features(x))


@contextmanager
def only(modules: Sequence[nn.Module], among: nn.Module) -> Iterator[None]:
    """Within, nothing but these modules asks for gradients, so that no graph is built for the others."""
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    resting = [p for p in among.parameters() if p.requires_grad and id(p) not in own]
    for parameter in resting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in resting:
            parameter.requires_grad_(True)


irm_games = algorithm(IRMGamesHparams, needs=Needs(min_domains=2, tasks=("classification",)))(IRMGames)
