"""Digits rotated by an angle that is the domain (RotatedMNIST; Ghifary et al. 2015).

Shapes: N digits, H x W pixels.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from dgharness.data.dataset import Dataset, Defaults, InMemory
from dgharness.data.digits import DIGITS, brightness, categorical
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Hparams


class RotatingOptions(Hparams):
    """The domains."""

    angles: tuple[float, ...] = (0, 15, 30, 45, 60, 75)
    """Degrees counter-clockwise, one domain each."""


def rotated(
    name: str,
    digits_NHW: Tensor,
    labels_N: Tensor,
    generator: torch.Generator,
    options: RotatingOptions,
    defaults: Defaults,
    toy: bool = False,
) -> Dataset:
    """A rotated dataset of inputs [1, H, W] and ten classes, one domain for every angle.

    One permutation deals the uint8 digits out: domain i of K gets every K-th, from the i-th on.
    DomainBed's construction (``datasets.py``, RotatedMNIST).
    """
    domains = tuple(f"{angle:g}" for angle in options.angles)
    if not domains or len(set(domains)) < len(domains):
        raise UsageError(f"data.angles={options.angles} must name at least one domain, and none twice")
    order_N = torch.randperm(len(digits_NHW), generator=generator)
    taken = [order_N[number :: len(domains)] for number in range(len(domains))]
    images = [rotate(digits_NHW[rows], angle) for rows, angle in zip(taken, options.angles, strict=True)]
    domain_N = torch.arange(len(domains)).repeat_interleave(torch.tensor([len(rows) for rows in taken]))
    manifest = pd.DataFrame(
        {
            "y": categorical(labels_N[torch.cat(taken)], DIGITS),
            "domain": categorical(domain_N, domains),
        }
    )
    return Dataset(
        name=name,
        manifest=manifest,
        reader=InMemory(torch.cat(images).unsqueeze(1)),
        task=classification(10),
        input_shape=(1, *digits_NHW.shape[1:]),
        defaults=defaults,
        prepare=brightness,
        toy=toy,
    )


def rotate(digits_NHW: Tensor, angle: float) -> Tensor:
    """Square uint8 images, rotated counter-clockwise about their centre: bilinear, zeros come in.

    The same numbers as torchvision's ``rotate`` of tensors, whose import would cost more than the rotation.

    >>> rotate(torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8), 90)
    tensor([[[2, 4],
             [1, 3]]], dtype=torch.uint8)
    """
    if angle % 360 == 0:
        return digits_NHW
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    where_it_came_from = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(where_it_came_from, [1, 1, *digits_NHW.shape[1:]], align_corners=False)
    # All images share one grid, so they are the channels of a single image.
    turned = F.grid_sample(digits_NHW.float()[None], grid, align_corners=False)
    return turned[0].round().clamp(0, 255).to(torch.uint8)
