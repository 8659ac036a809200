"""Instance normalisation inside a residual network, which takes out what a style adds to an image.

Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018,
arXiv:1807.09441, as in the authors' code, whose names of parameters are kept. Variant a: in the blocks of the
first three stages, the first norm treats the first half of its channels by instance and the rest by batch.
Variant b: the norm of the stem, and one more after the last addition of each of the first two stages, are by
instance. What normalises by instance has no statistics, so a frozen BatchNorm leaves it as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from dgharness.errors import UsageError


class FixedStatistics(nn.BatchNorm2d):
    """BatchNorm that always normalises by its running statistics and never moves them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eval()

    def train(self, mode: bool = True) -> FixedStatistics:
        return super().train(False)


class IBN(nn.Module):
    """The first half of the channels by instance, the others by batch."""

    def __init__(self, batch: nn.BatchNorm2d) -> None:
        super().__init__()
        self.by_instance = batch.num_features // 2
        self.IN = nn.InstanceNorm2d(self.by_instance, affine=True)
        self.BN = type(batch)(batch.num_features - self.by_instance)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.by_instance]), self.BN(x[:, self.by_instance :])], 1)


class NormedBasicBlock(BasicBlock):
    """A BasicBlock with InstanceNorm between its addition and its last ReLU."""

    IN: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.IN(out + (x if self.downsample is None else self.downsample(x))))


class NormedBottleneck(Bottleneck):
    """A Bottleneck with InstanceNorm between its addition and its last ReLU."""

    IN: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(self.IN(out + (x if self.downsample is None else self.downsample(x))))


def put_instance_norm(network: Any, variant: str, input_shape: tuple[int, ...]) -> None:
    """Change the norms of torchvision's residual network into those of ``ibn-a`` or ``ibn-b``."""
    stride = 16 if variant == "ibn-a" else 8  # of the last norm that is by instance
    if math.prod(math.ceil(side / stride) for side in input_shape[1:]) == 1:
        raise UsageError(
            f"model.norm={variant} normalises over positions, and images of {input_shape[1]} x "
            f"{input_shape[2]} pixels leave only one; --set model.norm=batch"
        )
    if variant == "ibn-a":
        for stage in (network.layer1, network.layer2, network.layer3):
            for block in stage:
                block.bn1 = IBN(block.bn1)
        return
    network.bn1 = nn.InstanceNorm2d(network.bn1.num_features, affine=True)
    for stage in (network.layer1, network.layer2):
        bottleneck = isinstance(stage[-1], Bottleneck)
        last = stage[-1].bn3 if bottleneck else stage[-1].bn2
        stage[-1].IN = nn.InstanceNorm2d(last.num_features, affine=True)
        stage[-1].__class__ = NormedBottleneck if bottleneck else NormedBasicBlock
