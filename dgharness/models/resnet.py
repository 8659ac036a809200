"""Residual networks from torchvision.

He et al., *Deep Residual Learning for Image Recognition* (2016). The features are what enters ``fc``: 512
for resnet18, 2048 for resnet50. The input is expected as the weights saw it: RGB, normalised by ImageNet's
mean and standard deviation.

The weights are found, checked and named as ``dgharness.models.weights`` says: a file of your own, else
torch's download folder, else a download; their SHA-256 is their identity.

With ``norm`` some of the BatchNorms normalise by instance (``dgharness.models.ibn``). Weights for that are
IBN-Net's, which torchvision does not have; they are given as ``weights_file``.

For input of C channels and not three, channel i starts from the filters of channel i modulo 3, as in
DomainBed; from scratch, the first convolution is just C wide.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import model_validator
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, get_model

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Neutral, Structural
from dgharness.models.ibn import FixedStatistics, put_instance_norm
from dgharness.models.model import ModelSpec, image_channels
from dgharness.models.weights import PretrainedOptions, find_weights, load_weights, named_weights

CHECKPOINTS = {
    "resnet18": {"in1k-v1": ResNet18_Weights.IMAGENET1K_V1.url},
    "resnet50": {
        "in1k-v1": ResNet50_Weights.IMAGENET1K_V1.url,
        "in1k-v2": ResNet50_Weights.IMAGENET1K_V2.url,
    },
}


class ResNetOptions(PretrainedOptions):
    norm: Annotated[Literal["batch", "ibn-a", "ibn-b"], Structural, Neutral("batch")] = "batch"
    """Normalisation layers: BatchNorm, or with InstanceNorm in part of them as IBN-Net's variants a and b
    (unverified: no published number was reproduced)."""

    @model_validator(mode="after")
    def _weights_fit_the_norm(self) -> ResNetOptions:
        weights = getattr(self, "weights", "scratch")
        if self.norm != "batch" and weights != "scratch" and self.weights_file is None:
            raise UsageError(
                f"there are no weights {weights} for model.norm={self.norm}: give those of IBN-Net with "
                "--set model.weights_file=PATH, or --set model.weights=scratch"
            )
        return self


class ResNet18Options(ResNetOptions):
    weights: Annotated[Literal["in1k-v1", "scratch"], Structural] = "in1k-v1"
    """What training starts from: in1k-v1 (torchvision's ImageNet weights) or scratch."""


class ResNet50Options(ResNetOptions):
    weights: Annotated[Literal["in1k-v1", "in1k-v2", "scratch"], Structural] = "in1k-v1"
    """What training starts from: in1k-v1 or in1k-v2 (torchvision's ImageNet weights) or scratch."""


def _featurizer(architecture: str, input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    channels = image_channels(architecture, input_shape)
    norm = FixedStatistics if options.batchnorm == "frozen" else nn.BatchNorm2d
    network = get_model(architecture, weights=None, norm_layer=norm)
    if options.norm != "batch":
        put_instance_norm(network, options.norm, input_shape)
    features = network.fc.in_features
    network.fc = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    path = find_weights(architecture, options, CHECKPOINTS[architecture])
    if path is not None:
        whose = "torchvision's" if options.norm == "batch" else "IBN-Net's"
        load_weights(
            network,
            path,
            architecture=architecture,
            whose=f"{whose} {architecture}",
            first="conv1.weight",
            head="fc.",
        )
    return network, features


def _spec(architecture: str, options: type[ResNetOptions]) -> ModelSpec:
    return ModelSpec(
        featurizer=partial(_featurizer, architecture),
        weights=lambda options: named_weights(architecture, options, CHECKPOINTS[architecture]),
        options=options,
        doc=__doc__,
    )


resnet18 = _spec("resnet18", ResNet18Options)
resnet50 = _spec("resnet50", ResNet50Options)
