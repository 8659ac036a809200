"""Grounds the features in those of a frozen precursor, by a bound on shared information and a divergence.

Paper: Luo, Feinglass, Gokhale, Lee, Baral and Yang, "Grounding Stylistic Domain Generalization with
    Quantitative Domain Shift Measures and Synthetic Scene Images", CVPR Workshops 2024, arXiv:2405.15961.
Equation: min R + (lambda / m) sum_l mean[(f_l - T_l)^2 / s_l + log s_l] / 2 + lambda JS(softmax(f / tau),
    softmax(T / tau)), with T the precursor, s_l a variance per channel, m the multiplier of its learning rate
Agrees with: the authors' SMOS_JS and SMOS_KL in the weights of the terms, the variances (softplus(b) + 1e-5,
    which start at 0.1) and their rate. Their code gives raw features to a routine that expects logarithms of
    probabilities, so that its divergence may be negative; legacy=true does the same, for features that are
    not negative. The precursor here is the model as it was before training, where the network starts too; the
    paper's has the same architecture and other weights. Their layers are maxpool, layer1, ..., layer4 of a
    ResNet; where no layer is named, the bound is on the features.
Trust: unverified
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgharness.distances import full_precision
from dgharness.layers import channels_of
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Hparams,
    LogUniform,
    Metrics,
    Needs,
    Setup,
    Step,
    Structural,
    algorithm,
)

LEAST_VARIANCE = 1e-5


class SMOSHparams(Hparams):
    weight: Annotated[float, LogUniform(1e-2, 1.0)] = 0.15
    """Weight of the divergence, and, divided by lr_multiplier, of the bound."""
    lr_multiplier: float = 10.0
    """Learning rate of the variances, relative to the configured one."""
    layers: Annotated[tuple[str, ...], Structural] = ()
    """Layers of the featurizer that the bound is on; none takes the features."""
    divergence: Annotated[Literal["js", "kl"], Structural] = "js"
    """Jensen-Shannon, or the Kullback-Leibler divergence from the precursor's features."""
    temperature: float = 1.0
    """What features are divided by before the softmax."""
    legacy: Annotated[bool, Structural] = False
    """The authors' code to the letter: raw features in place of probabilities, mean over entries."""


class SMOS(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.layers = tuple(self.hp.layers)
        channels = channels_of(self.model, self.layers, setup.dims, "smos") or [setup.dims.features]
        start = math.log(math.expm1(0.1 - LEAST_VARIANCE))  # softplus of it is the 0.1
        self.variances = nn.ParameterList([nn.Parameter(torch.full((c,), start)) for c in channels])

    def update(self, step: Step, descend: Any) -> Metrics:
        metrics: Metrics = {}
        with torch.no_grad():
            before = dataclasses.replace(step, model=step.pretrained, layers=self.layers)
            precursor_ND, precursor_maps = before.features_EBD.flatten(0, 1), self.compared(before)

        def loss() -> Tensor:
            now = dataclasses.replace(step, layers=self.layers)
            terms = zip(self.compared(now), precursor_maps, self.variances, strict=True)
            bound = torch.stack([unlikelihood(f, target, b) for f, target, b in terms]).sum()
            apart = divergence(now.features_EBD.flatten(0, 1), precursor_ND, self.hp)
            risk = now.risks_E.mean()
            if not metrics:
                metrics.update(risk=risk, bound=bound, divergence=apart, risks_E=now.risks_E)
            return risk + self.hp.weight * (bound / self.hp.lr_multiplier + apart)

        descend("model", loss)
        return metrics

    def compared(self, step: Step) -> list[Tensor]:
        """What the bound is on, N first and then the channels."""
        if not self.layers:
            return [step.features_EBD.flatten(0, 1)]
        return [step.feature_maps[name] for name in self.layers]


@full_precision
def unlikelihood(f: Tensor, target: Tensor, b: Tensor) -> Tensor:
    """Of the precursor's values, under Gaussians around the network's with a variance per channel."""
    variance = (F.softplus(b) + LEAST_VARIANCE).view(-1, *[1] * (f.dim() - 2))
    return ((f - target).square() / variance + variance.log()).mean() / 2


@full_precision
def divergence(f_ND: Tensor, target_ND: Tensor, hp: SMOSHparams) -> Tensor:
    target_ND = target_ND.to(f_ND)
    if hp.legacy:
        if hp.divergence == "kl":
            return as_if_logarithms(target_ND, f_ND)
        middle_ND = (f_ND + target_ND) / 2
        return (as_if_logarithms(target_ND, middle_ND) + as_if_logarithms(f_ND, middle_ND)) / 2
    log_p, log_q = (z.div(hp.temperature).log_softmax(-1) for z in (f_ND, target_ND))
    if hp.divergence == "kl":
        return relative_entropy(log_p, log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (relative_entropy(log_p, log_m) + relative_entropy(log_q, log_m)) / 2


def as_if_logarithms(log_q: Tensor, p: Tensor) -> Tensor:
    """What PyTorch's kl_div gives: mean over entries of p (log p - log q), whatever the two are."""
    return (torch.xlogy(p, p) - p * log_q).mean()


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, mean over examples."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


smos = algorithm(
    SMOSHparams,
    needs=Needs(pretrained=True),
    lr_multipliers=lambda hp: {"variances.": hp.lr_multiplier},
)(SMOS)
