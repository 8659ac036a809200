"""The ``hparams`` of a DomainBed class: what it may read, and where each entry comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Choice, Hparams
from dgharness.plugin import Setup

CONFIGURED = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "optimizer": "optimizer.name",
    "batch_size": "train.batch_size",
}


class DomainBedHparams(Hparams):
    """What every class of DomainBed may read; what it reads besides is given as hp.NAME=VALUE."""

    model_config = ConfigDict(extra="allow")

    data_augmentation: bool = True
    """For a class that asks; the harness augments as the dataset says."""
    resnet18: bool = False
    """ResNet-18 instead of ResNet-50."""
    resnet50_augmix: bool = True
    """Start ResNet-50 from weights trained with AugMix."""
    dinov2: bool = False
    """A DINOv2 featurizer."""
    vit: bool = False
    """A vision transformer."""
    vit_attn_tune: bool = False
    """Tune the attention layers of the vision transformer alone."""
    freeze_bn: bool = False
    """Keep the statistics of BatchNorm as they are."""
    resnet_dropout: Annotated[float, Choice((0.0, 0.1, 0.5))] = 0.0
    """Share of the features dropped."""
    vit_dropout: Annotated[float, Choice((0.0, 0.1, 0.5))] = 0.0
    """The same of the vision transformer."""
    class_balanced: bool = False
    """For a class that asks; batches are drawn by train.sampler."""
    nonlinear_classifier: bool = False
    """A classifier of three layers."""
    lars: bool = False
    """LARS as the optimizer of ERM++."""
    linear_steps: int = 500
    """Updates of the classifier alone in ERM++."""

    @model_validator(mode="before")
    @classmethod
    def _configured_elsewhere(cls, values: Any) -> Any:
        for name, setting in CONFIGURED.items():
            if isinstance(values, Mapping) and name in values:
                raise UsageError(f"hp.{name} comes from the training configuration: --set {setting}=VALUE")
        return values


class ForkHparams(DomainBedHparams):
    """What the forks that pass lists may read; some of their defaults differ."""

    resnet50_augmix: bool = False
    """Start ResNet-50 from weights trained with AugMix."""
    freeze_bn: bool = True
    """Keep the statistics of BatchNorm as they are."""
    pretrained: bool = True
    """Start from ImageNet's weights."""
    val_augment: bool = False
    """For a class that asks; validation data is never augmented."""


class _Missing(UsageError, KeyError, AttributeError):
    __str__ = Exception.__str__


class GivenHparams(dict[str, Any]):
    """The dict ``hparams`` of a class, readable as attributes too; a missing entry says how to give it."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401, dict's own get would not be noticed

    def __missing__(self, key: str) -> Any:
        raise _Missing(f"the class reads hparams[{key!r}], which nobody gave; --set hp.{key}=VALUE does")

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        return self[key]


def given_hparams(setup: Setup) -> GivenHparams:
    """DomainBed's common entries, the training configuration, and what ``hp`` adds."""
    config = setup.optimizer
    return GivenHparams(
        {
            **setup.hp.model_dump(),
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "optimizer": config.name,
            "batch_size": setup.batch_size or 32,
        }
    )
