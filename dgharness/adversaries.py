"""Discriminators that tell the domain from the features, and two ways to train the features against them.

Taking turns, as in a generative adversarial network: ``Alternating``. All at once, by a layer that turns
the gradient around: ``reverse``.

Shapes: E rows of a batch, B examples per row, C outputs, D features, K training domains.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from dgharness.algorithm import Algorithm, Descend, MakeOptimizer, Metrics, Setup
from dgharness.distances import full_precision
from dgharness.hparams import Annotated, Choice, Hparams, IntLogUniform, LogUniform, Structural
from dgharness.step import Step


class BatchNorm(nn.Module):
    """Batch normalisation by the minibatch alone, which may be a single vector: it keeps no running means."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, z: Tensor) -> Tensor:
        return standardised(z) * self.weight + self.bias


@full_precision
def standardised(z: Tensor) -> Tensor:
    """Mean 0 and variance 1 of every feature, over all other dimensions."""
    others = tuple(range(z.dim() - 1))
    centred = z - z.mean(others)
    return centred * (centred.square().mean(others) + 1e-5).rsqrt()


def mlp(
    inputs: int,
    outputs: int,
    width: int,
    depth: int,
    *,
    dropout: float = 0.0,
    batch_norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """``depth`` linear layers with dropout or batch normalisation before each activation."""
    layers: list[nn.Module] = []
    for before in [inputs] + [width] * (depth - 2):
        layers.append(nn.Linear(before, width))
        layers += [BatchNorm(width)] * batch_norm + [nn.Dropout(dropout)] * (dropout > 0) + [activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def domain_loss(logits_EBK: Tensor, domain_EB: Tensor) -> Tensor:
    """Cross-entropy [E, B] of a discriminator."""
    return F.cross_entropy(logits_EBK.flatten(0, 1), domain_EB.flatten(), reduction="none").view_as(domain_EB)


def class_shares(targets_EB: Tensor, classes: int) -> Tensor:
    """Weights [E, B] that give every class of the minibatch 1/C in all, however many examples it has.

    They are in single precision, as DomainBed's are.

    >>> class_shares(torch.tensor([[0, 0], [0, 2]]), 4)
    tensor([[0.0833, 0.0833],
            [0.0833, 0.2500]])
    """
    member_EBC = (targets_EB[..., None] == torch.arange(classes, device=targets_EB.device)).float()
    return 1 / (classes * (member_EBC * member_EBC.sum((0, 1))).sum(-1))


def model_and_discriminator(
    algorithm: Algorithm,
    make: MakeOptimizer,
    *,
    lr_multiplier: float,
    weight_decay: float | None = None,
    betas: tuple[float, float] | None = None,
) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for the model and one for all else; rate and decay are the latter's, betas both's."""
    adversary = [(name, p) for name, p in algorithm.named_parameters() if not name.startswith("model.")]
    return {
        "model": make(algorithm.model.named_parameters(prefix="model"), betas=betas),
        "discriminator": make(adversary, lr_multiplier=lr_multiplier, weight_decay=weight_decay, betas=betas),
    }


# --- all at once -----------------------------------------------------------------------------------


def reverse(z: Tensor) -> Tensor:
    """The same value with the opposite gradient.

    >>> z = torch.tensor(3.0, requires_grad=True)
    >>> reverse(z).square().backward()
    >>> z.grad
    tensor(-6.)
    """
    return z.detach() - (z - z.detach())


class GradientReversalHparams(Hparams):
    """What both methods have that turn a discriminator's gradient around; WILDS's defaults."""

    weight: Annotated[NonNegativeFloat, LogUniform(1e-1, 1e1)] = 1.0
    """Weight of the discriminator's loss."""
    lr_multiplier: Annotated[PositiveFloat, LogUniform(1.0, 1e2)] = 10.0
    """Learning rate of the discriminator, relative to the model's."""
    width: Annotated[PositiveInt, Structural] = 1024
    """Width of the discriminator."""
    depth: Annotated[int, Field(ge=2), Structural] = 3
    """Linear layers of the discriminator."""
    batch_norm: Annotated[bool, Structural] = True
    """Batch normalisation in the discriminator, as WILDS has; DomainBed's discriminator has none."""
    dropout: Annotated[float, Field(ge=0, lt=1), Structural, Choice((0.0, 0.5))] = 0.0
    """Dropout in the discriminator."""


# --- taking turns ----------------------------------------------------------------------------------


class AlternatingHparams(Hparams):
    """What every method has in which a discriminator and the model take turns; DomainBed's defaults."""

    weight: Annotated[NonNegativeFloat, LogUniform(1e-2, 1e2)] = 1.0
    """Weight of the discriminator's loss, which the model is to make large."""
    d_steps: Annotated[PositiveInt, Structural, IntLogUniform(1, 8)] = 1
    """Updates of the discriminator for one of the model; all of them count as updates of the run."""
    grad_penalty: Annotated[NonNegativeFloat, Structural, LogUniform(1e-2, 1e1)] = 0.0
    """Weight of the squared gradient of the domains' cross-entropy in the discriminator's input."""
    beta1: Annotated[float, Field(ge=0, lt=1), Structural, Choice((0.0, 0.5))] = 0.5
    """Decay of Adam's mean gradient, for the model too; that of the squared gradient is 0.9."""
    width: Annotated[PositiveInt, Structural, IntLogUniform(64, 1024)] = 256
    """Width of the discriminator."""
    depth: Annotated[int, Field(ge=2), Structural, Choice((3, 4, 5))] = 3
    """Linear layers of the discriminator."""
    dropout: Annotated[float, Field(ge=0, lt=1), Structural, Choice((0.0, 0.1, 0.5))] = 0.0
    """Dropout in the discriminator."""
    discriminator_weight_decay: Annotated[NonNegativeFloat, LogUniform(1e-6, 1e-2)] = 0.0
    """Weight decay of the discriminator, in place of the model's."""
    lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-1, 1e1)] = 1.0
    """Learning rate of the discriminator, relative to the model's."""


class Alternating(Algorithm):
    """Of 1 + d updates the d-th is the model's, all others the discriminator's: DomainBed's order."""

    hp: AlternatingHparams

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        dims, hp = setup.dims, setup.hp
        self.discriminator = mlp(dims.features, dims.domains, hp.width, hp.depth, dropout=hp.dropout)

    @abstractmethod
    def discriminator_loss(self, step: Step, z_EBD: Tensor) -> Tensor:
        """What the discriminator makes small and the model makes large."""

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        hp = self.hp
        return model_and_discriminator(
            self,
            make,
            lr_multiplier=hp.lr_multiplier,
            weight_decay=hp.discriminator_weight_decay,
            betas=(hp.beta1, 0.9),
        )

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}

        def discriminator() -> Tensor:
            now = step.fresh()
            with torch.no_grad():
                z_EBD = now.features_EBD
            loss = self.discriminator_loss(now, z_EBD.detach().requires_grad_(self.hp.grad_penalty > 0))
            metrics.setdefault("discriminator_loss", loss)
            return loss

        def model() -> Tensor:
            now = step.fresh()
            risk, adversary = now.risks_E.mean(), self.discriminator_loss(now, now.features_EBD)
            loss = risk - self.hp.weight * adversary
            if not metrics:
                terms = {"risk": risk, "discriminator_loss": adversary}
                metrics.update({"loss": loss, **terms, "risks_E": now.risks_E})
            return loss

        if step.t % (1 + self.hp.d_steps) == self.hp.d_steps - 1:
            descend("model", model)
        else:
            descend("discriminator", discriminator)
        return metrics

    def gradient_penalty(self, loss_EB: Tensor, inputs_EBD: Tensor) -> Tensor | float:
        """Mean squared gradient of the summed loss in the discriminator's inputs, times its weight."""
        if not self.hp.grad_penalty:  # spares the graph of the gradient
            return 0.0
        (slope_EBD,) = torch.autograd.grad(loss_EB.sum(), inputs_EBD, create_graph=True)
        return self.hp.grad_penalty * slope_EBD.square().sum(-1).mean()
