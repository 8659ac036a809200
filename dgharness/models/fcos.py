"""A dense one-stage detector: FCOS on ResNet-50 with a feature pyramid.

Tian et al., *FCOS: Fully Convolutional One-Stage Object Detection* (2019). WILDS trains Faster R-CNN on
GlobalWheat; that is another detector, whose two stages have no outputs of one shape for a loss to be a
function of, and its published numbers are not to be expected here.

The features [N, A, D] are those of every location of the five levels P3 to P7 (strides 8 to 128): what two
towers of convolutions, one for the class and one for the box, make of them. The classifier is one linear map
for all locations: logit, four distances, centerness, as ``dgharness.data.task_detection`` reads them.

The ResNet-50 starts from torchvision's ImageNet weights, found, checked and named as
``dgharness.models.weights`` says. The input is expected as they saw it: RGB, normalised by ImageNet's mean
and standard deviation. ``blocks`` and ``bottleneck`` make it smaller, from scratch.

Shapes: N images, A locations, W channels of the pyramid, D = 2*W features of a location.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Structural
from dgharness.models.ibn import FixedStatistics
from dgharness.models.model import ModelSpec, image_channels
from dgharness.models.resnet import CHECKPOINTS
from dgharness.models.weights import PretrainedOptions, find_weights, load_weights, named_weights

WIDTHS = [512, 1024, 2048]  # of ResNet-50's last three stages, on which the pyramid stands
GROUP = 8  # channels of a group in the towers' GroupNorm: 32 groups at the full width
PRIOR = 0.01  # probability at the start that a location is within a thing
RESNET_50 = (3, 4, 6, 3)


class FCOSOptions(PretrainedOptions):
    weights: Annotated[Literal["in1k-v1", "in1k-v2", "scratch"], Structural] = "in1k-v1"
    """What the ResNet-50 starts from: in1k-v1 or in1k-v2 (torchvision's ImageNet weights) or scratch."""
    blocks: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], Structural] = RESNET_50
    """Residual blocks of each stage."""
    bottleneck: Annotated[PositiveInt, Structural] = 64
    """Channels within the first stage's blocks; each stage doubles them."""
    width: Annotated[PositiveInt, Field(multiple_of=GROUP), Structural] = 256
    """Channels of the pyramid and of both towers."""
    tower: Annotated[NonNegativeInt, Structural] = 4
    """Convolutions of each tower."""

    @model_validator(mode="after")
    def _weights_fit(self) -> FCOSOptions:
        whole = self.blocks == RESNET_50 and self.bottleneck == 64
        if not whole and (self.weights != "scratch" or self.weights_file is not None):
            raise UsageError(
                f"there are no weights for model.blocks={list(self.blocks)}, "
                f"model.bottleneck={self.bottleneck}; leave them as they are or --set model.weights=scratch"
            )
        return self


class Locations(nn.Module):
    """Images [N, 3, H, W] to the features of every location, [N, A, D]."""

    def __init__(self, pyramid: nn.Module, options: FCOSOptions) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.class_tower = _tower(options)
        self.box_tower = _tower(options)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.pyramid(x).values()
        towers = [torch.cat([self.class_tower(level), self.box_tower(level)], dim=1) for level in levels]
        return self.dropout(torch.cat([level.flatten(2) for level in towers], dim=2).transpose(1, 2))


def _tower(options: FCOSOptions) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(options.tower):
        convolution = nn.Conv2d(options.width, options.width, 3, padding=1)
        nn.init.normal_(convolution.weight, std=0.01)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.GroupNorm(options.width // GROUP, options.width), nn.ReLU()]
    return nn.Sequential(*layers)


def _featurizer(input_shape: tuple[int, ...], options: FCOSOptions) -> tuple[nn.Module, int]:
    if image_channels("fcos-resnet50", input_shape) != 3:
        raise UsageError(
            f"the model fcos-resnet50 takes images of three channels, and these have {input_shape[0]}"
        )
    norm = FixedStatistics if options.batchnorm == "frozen" else nn.BatchNorm2d
    network = ResNet(Bottleneck, list(options.blocks), width_per_group=options.bottleneck, norm_layer=norm)
    network.fc = nn.Identity()
    path = find_weights("resnet50", options, CHECKPOINTS["resnet50"])
    if path is not None:
        load_weights(
            network,
            path,
            architecture="resnet50",
            whose="torchvision's resnet50",
            first="conv1.weight",
            head="fc.",
        )
    pyramid = BackboneWithFPN(
        network,
        {"layer2": "P3", "layer3": "P4", "layer4": "P5"},
        WIDTHS,
        options.width,
        LastLevelP6P7(options.width, options.width),
    )
    return Locations(pyramid, options), 2 * options.width


def _classifier(features: int, outputs: int, options: FCOSOptions) -> nn.Module:
    linear = nn.Linear(features, outputs)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    with torch.no_grad():
        linear.bias[0] = -math.log(1 / PRIOR - 1)
    return linear


fcos_resnet50 = ModelSpec(
    featurizer=_featurizer,
    classifier=_classifier,
    weights=lambda options: named_weights("resnet50", options, CHECKPOINTS["resnet50"]),
    options=FCOSOptions,
    doc=__doc__,
)
