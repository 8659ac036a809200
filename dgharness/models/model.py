"""A model: a featurizer and a classifier, and how the registry holds one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.plugin import API_VERSION
from dgharness.seeds import seeded
from dgharness.step import TokenShape

DropoutRate = Annotated[float, Field(ge=0, lt=1)]


class Model(nn.Module):
    """``classifier(featurizer(x))``: features of [N, D], outputs of [N, C]."""

    def __init__(self, featurizer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.featurizer, self.classifier = featurizer, classifier

    def features(self, x: Any) -> Tensor:
        return self.featurizer(x)

    def classify(self, z: Tensor) -> Tensor:
        return self.classifier(z)

    def forward(self, x: Any) -> Tensor:
        return self.classify(self.features(x))


@dataclass(frozen=True)
class ModelSpec:
    """A model as the registry holds it.

    ``featurizer(input_shape, options) -> (module, D)`` may draw from the global generator; the classifier
    is linear unless ``classifier(D, outputs, options)`` says otherwise. ``weights(options)`` names the
    weights (id, SHA-256 or None for scratch).
    """

    featurizer: Callable[[tuple[int, ...], Any], tuple[nn.Module, int]]
    classifier: Callable[[int, int, Any], nn.Module] = lambda features, outputs, options: nn.Linear(
        features, outputs
    )
    weights: Callable[[Any], tuple[str, str | None]] = lambda options: ("scratch", None)
    options: type[Hparams] = Hparams
    doc: str = ""
    version: int = 1
    api: int = API_VERSION
    group: ClassVar[str] = "models"


def build_model(
    spec: ModelSpec, input_shape: tuple[int, ...], outputs: int, options: Any, seed: int, copy: int = 0
) -> tuple[Model, int]:
    """A model and its number of features D; each module draws its initialisation from a stream of its own.

    ``copy`` numbers further networks of the same run, which start elsewhere.
    """
    with seeded(seed, "init/featurizer", copy):
        featurizer, features = spec.featurizer(input_shape, options)
    with seeded(seed, "init/classifier", copy):
        classifier = spec.classifier(features, outputs, options)
    return Model(featurizer, classifier), features


def image_channels(model: str, input_shape: tuple[int, ...]) -> int:
    """The channels of one [C, H, W] example, or a UsageError when the input is not an image.

    >>> image_channels("mnist-cnn", (2, 28, 28))
    2
    """
    _refuse_text(model, input_shape)
    if len(input_shape) != 3:
        raise UsageError(
            f"the model {model} takes images [channels, height, width], but an example of this dataset has "
            f"shape {list(input_shape)}; choose the model mlp or linear"
        )
    return input_shape[0]


def flat_size(model: str, input_shape: tuple[int, ...]) -> int:
    """How many numbers an example is, or a UsageError when it is a text.

    >>> flat_size("mlp", (2, 28, 28))
    1568
    """
    _refuse_text(model, input_shape)
    return math.prod(input_shape)


def _refuse_text(model: str, input_shape: tuple[int, ...]) -> None:
    if isinstance(input_shape, TokenShape):
        raise UsageError(
            f"the model {model} takes numbers, and this dataset is text; --set model.name=distilbert"
        )
