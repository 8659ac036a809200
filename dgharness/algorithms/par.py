"""Keeps the label from being read off small patches: an early layer must not predict it position by position.

Paper: Wang, Ge, Xing and Lipton, "Learning Robust Global Representations by Penalizing Local Predictive
    Power", NeurIPS 2019, arXiv:1905.13549.
Equation: min_theta R(theta) - lambda R_loc(theta, q) and min_q R_loc(theta, q), where R_loc is the mean over
    examples and positions of the loss of the local classifier q on the map of an early layer
Agrees with: the authors' CIFAR-10 script: the network moves first, then the local classifier, which learns
    from the start while lambda is 0 until anneal_steps. Here both learn from one forward pass, where the
    script passes the batch again for the local classifier. By default the map is the output of the first
    convolution; the scripts take it behind BatchNorm and ReLU, which is layer=relu of a ResNet and
    layer=block1 of mnist-cnn. A featurizer without convolutions is taken at its first linear layer, as if it
    had one position.
Trust: unverified
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor, nn

from dgharness.layers import as_images, channels_of, first_layer
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Hparams,
    IntLogUniform,
    LogUniform,
    Metrics,
    Needs,
    NonNegativeInt,
    Setup,
    Step,
    Structural,
    algorithm,
)


class PARHparams(Hparams):
    weight: Annotated[float, LogUniform(1e-3, 1.0)] = 1.0
    """What the failure of the local classifier is worth to the network, from anneal_steps on."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates in which the local classifier learns and the network ignores it."""
    layer: Annotated[str, Structural] = ""
    """Layer of the featurizer whose map is classified; empty takes the first convolution."""
    local: Annotated[Literal["linear", "broad", "deep"], Structural] = "linear"
    """The local classifier: one position, the 3 x 3 positions around it, or three layers on one position."""
    lr_multiplier: Annotated[float, LogUniform(1e-2, 1e2)] = 1.0
    """Learning rate of the local classifier, relative to the configured one."""


class PAR(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.layer = self.hp.layer or first_layer(self.model, "par")
        (channels,) = channels_of(self.model, [self.layer], setup.dims, "par")
        self.q = local_classifier(self.hp.local, channels, setup.dims.outputs)

    def optimizers(self, make: Any) -> dict[str, Any]:
        named = list(self.named_parameters())
        return {
            "model": make((name, p) for name, p in named if name.startswith("model.")),
            "local": make(
                ((name, p) for name, p in named if name.startswith("q.")),
                lr_multiplier=self.hp.lr_multiplier,
            ),
        }

    def update(self, step: Step, descend: Any) -> Metrics:
        metrics: Metrics = {}
        weight = self.hp.weight if step.t >= self.hp.anneal_steps else 0.0
        maps: list[Tensor] = []

        def network_loss() -> Tensor:
            now = dataclasses.replace(step, layers=(self.layer,))
            risk = now.risks_E.mean()
            local_risk = self.local_risk(step, now.feature_maps[self.layer])
            if not maps:
                maps.append(now.feature_maps[self.layer].detach())
                metrics.update(risk=risk, local_risk=local_risk, risks_E=now.risks_E)
            return risk - weight * local_risk

        descend("model", network_loss)
        descend("local", lambda: self.local_risk(step, maps[0]))
        return metrics

    def local_risk(self, step: Step, map_N: Tensor) -> Tensor:
        """Mean loss of the local classifier, L positions in every example."""
        logits_NLC = self.q(as_images(map_N)).flatten(2).mT
        logits_EBLC = logits_NLC.unflatten(0, step.targets_EB.shape)
        targets_EBL = step.targets_EB[..., None].expand(logits_EBLC.shape[:3])
        return step.loss(logits_EBLC, targets_EBL).mean()


def local_classifier(kind: str, channels: int, outputs: int) -> nn.Module:
    """From maps [N, channels, H, W] to outputs at every position."""
    if kind == "deep":
        return nn.Sequential(
            nn.Conv2d(channels, 100, 1),
            nn.ReLU(),
            nn.Conv2d(100, 50, 1),
            nn.ReLU(),
            nn.Conv2d(50, outputs, 1),
        )
    side = 3 if kind == "broad" else 1
    return nn.Conv2d(channels, outputs, side, padding=side // 2)


par = algorithm(PARHparams, needs=Needs(one_tensor=True, tasks=("classification", "regression")))(PAR)
