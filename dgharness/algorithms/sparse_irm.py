"""Learns which weights to keep, within a budget, together with their values under an invariance penalty.

Paper: Zhou, Lin, Zhang and Zhang, "Sparse Invariant Risk Minimization", ICML 2022 (PMLR 162).
Equation: min_{w, s} E_m[ R(m * w) + lambda P(m * w) ], m_j binary concrete, which in the limit is 1 with
    probability s_j, subject to 0 <= s <= 1 and sum s <= kept * number of weights
Agrees with: the authors' code, as read and not run: one draw of the masks per update, on weights of two
    dimensions and more; s starts at 1 and is trained, projected and tempered along a fixed share of the run;
    the loss is divided by 1 + lambda once lambda is in force. One optimizer serves weights and
    probabilities, so what decay the run has acts on both; theirs has none. Prediction is by one hard draw,
    the same for all examples.
Trust: unverified
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from dgharness.algorithms.irmv1 import irm_penalty
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Descend,
    Hparams,
    LogUniform,
    Metrics,
    Needs,
    Predictor,
    Setup,
    Source,
    Step,
    Structural,
    Uniform,
    algorithm,
)
from dgharness.seeds import generator

# Shapes beyond those of dgharness.plugin: P weights of all layers together.

DENSE_UNTIL, TIGHT_FROM = 0.28, 0.6  # shares of the horizon
COLDEST = 0.03


class SparseIRMHparams(Hparams):
    penalty: Annotated[Literal["irmv1", "vrex"], Structural] = "irmv1"
    """The invariance penalty."""
    weight: Annotated[NonNegativeFloat, LogUniform(1e1, 1e5)] = 1e4
    """Weight of the penalty from anneal_steps on; before that it is 0."""
    anneal_steps: NonNegativeInt = 200
    """Updates before the penalty gets its weight."""
    kept: Annotated[float, Field(gt=0, le=1), Uniform(0.5, 1.0)] = 0.95
    """Share of the weights that the budget allows in the end."""
    horizon: Annotated[PositiveInt, Structural] = 1500
    """Updates over which masks go from none (until 28 %) over the full budget (from 60 %) to hard ones."""
    probability_lr_multiplier: PositiveFloat = 10.0
    """Learning rate of the probabilities, relative to the weights'."""
    l2: NonNegativeFloat = 0.0
    """Adds l2 times the squared norm of the model's parameters, as the authors' script does."""


class SparseIRM(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.names = [name for name, weight in self.model.named_parameters() if weight.dim() > 1]
        weights = dict(self.model.named_parameters())
        self.probabilities = nn.ParameterList([torch.ones_like(weights[name]) for name in self.names])

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        logistic = self.logistic_noise(step)
        weight = self.hp.weight if step.t >= self.hp.anneal_steps else 0.0

        def loss_fn() -> Tensor:
            now = replace(step, model=Masked(self.model, self.drawn(logistic, step.t)))
            risk = now.risks_E.mean()
            if self.hp.penalty == "vrex":
                penalty = now.risks_E.var(correction=0)
            else:
                penalty = irm_penalty(now, unbiased=False)
            norm = torch.stack([w.square().sum() for w in self.model.parameters()]).sum()
            loss = risk + self.hp.l2 * norm + weight * penalty
            loss = loss / (1 + weight if weight > 1 else 1)
            if not metrics:
                metrics.update(loss=loss, risk=risk, penalty=penalty, risks_E=now.risks_E)
            return loss

        descend("model", loss_fn)
        self.project(step.t)
        metrics["kept"] = torch.cat([s.flatten() for s in self.probabilities]).mean()
        return metrics

    def logistic_noise(self, step: Step) -> list[Tensor]:
        draws = step.generator("masks")
        uniform = [torch.rand(s.shape, generator=draws).clamp(1e-6, 1 - 1e-6) for s in self.probabilities]
        return [u.logit().to(s) for u, s in zip(uniform, self.probabilities, strict=True)]

    def drawn(self, logistic: list[Tensor], t: int) -> dict[str, Tensor]:
        """The weights under soft masks, which are the harder the later."""
        progress = min(t / self.hp.horizon, 1.0)
        temperature = (1 - COLDEST) * (1 - progress) + COLDEST
        weights = dict(self.model.named_parameters())
        masked = {}
        for name, s, noise in zip(self.names, self.probabilities, logistic, strict=True):
            s = s if progress >= DENSE_UNTIL else s.detach()
            odds = (s + 1e-20).log() - (1 - s + 1e-20).log()
            masked[name] = weights[name] * ((odds + noise) / temperature).sigmoid()
        return masked

    @torch.no_grad()
    def project(self, t: int) -> None:
        """Bring the probabilities to the nearest point within the budget, which tightens as a cube."""
        done = (t / self.hp.horizon - DENSE_UNTIL) / (TIGHT_FROM - DENSE_UNTIL)
        share = self.hp.kept + (1 - self.hp.kept) * (1 - min(max(done, 0.0), 1.0)) ** 3
        s_P = torch.cat([s.flatten() for s in self.probabilities])
        excess = lowering(s_P, share)
        for s in self.probabilities:
            s.sub_(excess).clamp_(0, 1)

    def predictor(self, source: Source | None) -> Predictor:
        draws = generator(0, "sparse-irm/mask")
        model = copy.deepcopy(self.model).requires_grad_(False)
        weights = dict(model.named_parameters())
        for name, s in zip(self.names, self.probabilities, strict=True):
            weights[name] *= torch.rand(s.shape, generator=draws).to(s) < s
        return model


class Masked:
    """A model's calls with some of its weights given from outside."""

    def __init__(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        self.model, self.weights, self.featurizer = model, weights, model.featurizer

    def _call(self, part: str, x: Any) -> Tensor:
        own = {k.removeprefix(f"{part}."): w for k, w in self.weights.items() if k.startswith(f"{part}.")}
        result: Tensor = functional_call(self.model.get_submodule(part), own, (x,))
        return result

    def features(self, x: Any) -> Tensor:
        return self._call("featurizer", x)

    def classify(self, z: Tensor) -> Tensor:
        return self._call("classifier", z)


def lowering(s_P: Tensor, share: float) -> Tensor:
    """The least v >= 0 with which clamp(s - v, 0, 1) sums to at most ``share`` of its length, by bisection.

    >>> lowering(torch.tensor([1.0, 1.0, 0.0, 0.0]), 0.4)
    tensor(0.2000)
    >>> lowering(torch.tensor([0.5, 0.5]), 0.9)
    tensor(0.)
    """
    low, high = torch.zeros_like(s_P[0]), s_P.max().clamp(min=0)
    fits = (s_P.clamp(0, 1).mean() <= share).to(s_P)
    for _ in range(40):
        middle = (low + high) / 2
        too_much = (s_P - middle).clamp(0, 1).mean() > share
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return high * (1 - fits)


sparse_irm = algorithm(
    SparseIRMHparams,
    needs=Needs(domain_rows=True),
    lr_multipliers=lambda hp: {"probabilities.": hp.probability_lr_multiplier},
)(SparseIRM)
