"""DomainBed's convolutional network for digits: four 3x3 convolutions with GroupNorm, 128 features.

Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization* (2021), ``MNIST_CNN``. Each convolution is
followed by ReLU and then by GroupNorm of 8 groups; the second one halves the resolution; the features are
the mean over positions.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from dgharness.models.model import ModelSpec, image_channels


def _block(channels: int, width: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), nn.GroupNorm(8, width))


def _featurizer(input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    layers = OrderedDict(
        block1=_block(image_channels("mnist-cnn", input_shape), 64),
        block2=_block(64, 128, stride=2),
        block3=_block(128, 128),
        block4=_block(128, 128),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    return nn.Sequential(layers), 128


mnist_cnn = ModelSpec(featurizer=_featurizer, doc=__doc__)
