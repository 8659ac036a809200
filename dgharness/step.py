"""What a method sees: the minibatch, what the model makes of it, and the training data behind it.

Shapes: E rows of a batch (one domain or group each), B examples per row, N = E*B, C outputs,
D features, K training domains, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dgharness import seeds


class Predictor(Protocol):
    """What predicts: per example and deterministic. The model itself is one."""

    def features(self, x: Any) -> Tensor: ...

    def classify(self, z: Tensor) -> Tensor: ...


class TokenShape(NamedTuple):
    """The input shape of text: at most ``length`` tokens, each a number below ``vocabulary``."""

    length: int
    vocabulary: int


@dataclass(frozen=True)
class Dims:
    """The sizes an algorithm may need to build its own parameters."""

    outputs: int
    features: int
    domains: int
    groups: int
    rows: int = 0  # of the manifest, for state per example
    input_shape: tuple[int, ...] = ()  # of one example


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the sampler drew. ``x`` is whatever the model takes, flat: N = E*B, row by row."""

    x: Any
    targets_EB: Tensor
    domain_EB: Tensor  # 0..K-1 over the training domains
    group_EB: Tensor  # -1 is unknown
    index_EB: Tensor  # row of the manifest, for ever
    attributes: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [E, B]
    unlabeled: Any = None
    t: int = 0  # updates completed


@dataclass(frozen=True, kw_only=True)
class Step(Batch):
    """A batch and what the model makes of it, each computed on first use."""

    model: Any  # features(x), classify(z), model(x)
    loss: Callable[[Tensor, Tensor], Tensor]  # the task's loss per example, of (logits, targets)
    noise: Tensor | None = None  # what the method's own ``noise`` drew for this step
    pretrained: Any = None  # a frozen snapshot of the initial model, when declared as a need
    text_CD: Tensor | None = None  # class embeddings, when declared as a need
    augment: Callable[[Any, str], Any] | None = None  # (x, name of a view) -> another view
    handed_over: Mapping[str, Tensor] = field(default_factory=dict)  # what earlier stages left
    layers: tuple[str, ...] = ()  # featurizer layers whose outputs ``feature_maps`` holds
    source: Source | None = None  # the training data at large; a learner without one gives none
    seed: int = 0  # of the learner

    @cached_property
    def features_EBD(self) -> Tensor:
        return self._passed[0]

    @cached_property
    def feature_maps(self) -> dict[str, Tensor]:
        """Outputs of the declared featurizer layers, flat (N first)."""
        return self._passed[1]

    @cached_property
    def logits_EBC(self) -> Tensor:
        return self._rows(self.model.classify(self.features_EBD.flatten(0, 1)))

    @cached_property
    def risks_E(self) -> Tensor:
        return self.loss(self.logits_EBC, self.targets_EB).mean(1)

    @property
    def classifier(self) -> nn.Module:
        return self.model.classifier

    def fresh(self) -> Step:
        """The same batch and noise with nothing computed yet."""
        return dataclasses.replace(self)

    def rows(self) -> Iterator[Step]:
        """Each row as a step of its own, for what passes the network domain by domain."""
        rows, examples = self.domain_EB.shape
        per_row = ("targets_EB", "domain_EB", "group_EB", "index_EB")
        for e in range(rows):
            part = slice(e * examples, (e + 1) * examples)
            x = _examples(self.x, part)
            fields = {name: getattr(self, name)[e : e + 1] for name in per_row}
            attributes = {name: value_EB[e : e + 1] for name, value_EB in self.attributes.items()}
            yield dataclasses.replace(self, x=x, attributes=attributes, **fields)

    def generator(self, name: str) -> torch.Generator:
        """This update's own stream, on the CPU, for draws that ``noise`` cannot hold."""
        return seeds.generator(self.seed, f"algorithm/{name}", self.t)

    def _rows(self, value_N: Tensor) -> Tensor:
        return value_N.unflatten(0, self.domain_EB.shape)

    @cached_property
    def _passed(self) -> tuple[Tensor, dict[str, Tensor]]:
        maps: dict[str, Tensor] = {}
        hooks = [
            self.model.featurizer.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: maps.update({name: output})
            )
            for name in self.layers
        ]
        z_ND = self.model.features(self.x)
        for hook in hooks:
            hook.remove()
        return self._rows(z_ND), maps


def _examples(x: Any, part: slice) -> Any:
    if isinstance(x, Mapping):
        return {key: value[part] for key, value in x.items()}
    # A batch of graphs is indexed into a list of them, and knows how to make a batch of that.
    return x.from_data_list(x[part]) if hasattr(x, "from_data_list") else x[part]


class Source(Protocol):
    """Read-only access to the training data."""

    counts_K: Tensor  # training examples of each domain
    columns: Mapping[str, Tensor]  # y, domain, group, index and every attribute, one value per row

    def sample(self, where: Mapping[str, int], n: int, generator: torch.Generator) -> Batch:
        """``n`` examples (one row, with replacement) whose columns equal ``where``."""
        ...

    def batches(self, split: Literal["train", "val"], size: int) -> Iterator[Batch]:
        """Every example of a split once, in order and without augmentation; one row per batch."""
        ...
