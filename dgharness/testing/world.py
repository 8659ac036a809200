"""The small world of the conformance kit: three domains, three classes, a network of one hidden layer.

Shapes: E rows of a batch, B examples per row, N = E*B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.groups import grouping
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.source import TrainingSource
from dgharness.data.tasks import classification, cross_entropy
from dgharness.hparams import Structural
from dgharness.models.model import Model
from dgharness.plugin import AlgorithmSpec, Dims, Step
from dgharness.seeds import generator, seeded
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

E, B, FEATURES, CLASSES, INPUTS = 3, 8, 6, 3, 10
DIMS = Dims(CLASSES, FEATURES, E, E, input_shape=(INPUTS,))


@dataclass(frozen=True)
class Case:
    """An algorithm with hyperparameters, and the small world it is checked in."""

    spec: AlgorithmSpec
    hp: Any

    def learner(self, *, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> Learner:
        config = OptimizerConfig(lr=0.01, weight_decay=0.0)
        model = small_model(seed).to(dtype)
        learner = Learner(
            self.spec,
            model,
            DIMS,
            self.hp,
            config,
            seed,
            steps=40,
            new_model=lambda number: small_model(seed + number).to(dtype),
            views={view: jitter for view in self.spec.needs.views},
            source=small_source(),
            **options,
        )
        learner.algorithm.to(dtype)
        return learner

    def objective(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        assert self.spec.objective is not None
        with seeded(seed, "init/algorithm"):
            return self.spec.objective(DIMS, self.hp).to(dtype)

    def with_hp(self, **values: Any) -> Case:
        return replace(self, hp=self.hp.model_copy(update=values))


def small_model(seed: int) -> Model:
    """A network of one hidden layer whose initialisation depends on the seed alone."""
    with seeded(seed, "init/model"):
        return Model(nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh()), nn.Linear(FEATURES, CLASSES))


def small_batch(t: int, rows: int = E, examples: int = B) -> tuple[Tensor, Tensor]:
    """Three classes whose means the domains shift: ``x`` of [N, 10] and ``y_EB``."""
    draws = generator(0, "small batch", t)
    y_EB = torch.randint(CLASSES, (rows, examples), generator=draws)
    shift_E1 = torch.linspace(-0.5, 0.5, rows)[:, None] if rows > 1 else torch.zeros(1, 1)
    means_CI = 2 * torch.eye(CLASSES, INPUTS)
    x = means_CI[y_EB] + shift_E1[..., None] + 0.5 * torch.randn(rows, examples, INPUTS, generator=draws)
    return x.flatten(0, 1), y_EB


def small_source() -> TrainingSource:
    """Training data of three domains, for predictors that look at some."""
    x, y_EB = small_batch(0, 4, 40)
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical.from_codes(y_EB.flatten().numpy(), pd.Index(list("abc"))),
            "domain": pd.Categorical(np.repeat(["p", "q", "r", "s"], 40)),
        }
    )
    dataset = Dataset("small", manifest, InMemory(x), classification(CLASSES), (INPUTS,))
    splits = leave_one_domain_out(dataset, ("s",), 0)
    groups = grouping(manifest, ["domain"]).group_M
    return TrainingSource(dataset, splits, groups, torch.device("cpu"), splits.train_domains)


def small_step(case: Case, model: Any) -> Step:
    """One minibatch in float64, before any update but after every anneal step of 0."""
    x, y_EB = small_batch(0)
    rows_EB = torch.arange(E)[:, None].expand(E, B)
    return Step(
        x=x.double(),
        targets_EB=y_EB,
        domain_EB=rows_EB,
        group_EB=rows_EB,
        index_EB=torch.arange(E * B).view(E, B),
        t=1_000_000,
        model=model,
        loss=cross_entropy,
        noise=noise_of(case, 0),
        pretrained=small_model(0).double(),
        augment=lambda x, name: jitter(x, generator(0, name)),
        layers=case.spec.needs.feature_maps,
        source=small_source(),
    )


class Stateless:
    """A model's three calls with its state given from outside, for vmap."""

    def __init__(self, model: Model, state: Mapping[str, Tensor]) -> None:
        self.model, self.state = model, state

    def _call(self, part: str, value: Tensor) -> Tensor:
        own = {k.removeprefix(part + "."): v for k, v in self.state.items() if k.startswith(part + ".")}
        return torch.func.functional_call(self.model.get_submodule(part), own, (value,))

    def features(self, x: Tensor) -> Tensor:
        return self._call("featurizer", x)

    def classify(self, z: Tensor) -> Tensor:
        return self._call("classifier", z)

    def __call__(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def parameters(self) -> list[Tensor]:
        return [self.state[name] for name, _ in self.model.named_parameters()]

    @property
    def featurizer(self) -> nn.Module:
        return self.model.featurizer

    @property
    def classifier(self) -> StatelessClassifier:
        return StatelessClassifier(self)


class StatelessClassifier:
    """The linear classifier of a stateless model: a call, ``weight`` and ``bias``."""

    def __init__(self, model: Stateless) -> None:
        self.model = model
        self.weight, self.bias = model.state["classifier.weight"], model.state["classifier.bias"]

    def __call__(self, z: Tensor) -> Tensor:
        return self.model.classify(z)


def run(learner: Learner, steps: int) -> Mapping[str, Tensor]:
    """Some updates; gives the metrics of the last."""
    metrics: Mapping[str, Tensor] = {}
    for _ in range(steps):
        learner.enter_stage(small_source())
        x, y_EB = small_batch(learner.t)
        metrics = learner.step(x, y_EB)
    return metrics


def assert_same(one: Any, other: Any, path: str = "state") -> None:
    """Nested states equal to the last bit."""
    if isinstance(one, Tensor):
        assert one.equal(other), f"{path} differs"
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), f"{path} has other keys"
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}[{number}]")
    else:
        assert one == other, f"{path} differs"


def batchable(case: Case, factor: float) -> dict[str, Tensor]:
    """The float hyperparameters that may differ between trials, as tensors."""

    return {
        name: torch.tensor(getattr(case.hp, name) * factor, dtype=torch.float64)
        for name, field in case.spec.hparams.model_fields.items()
        if isinstance(getattr(case.hp, name), float) and Structural not in field.metadata
    }


def noise_of(case: Case, t: int) -> Tensor | None:
    return case.spec.noise(E, B, generator(0, "algorithm", t)) if case.spec.noise else None


def stack(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    if isinstance(parts[0], Tensor):
        return torch.stack(parts)
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]}


def leaves(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree
    return [leaf for part in parts for leaf in leaves(part)]


def jitter(x: Tensor, draws: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=draws).to(x)
