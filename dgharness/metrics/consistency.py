"""Transformation consistency: how often a small shift, turn or change of scale leaves a prediction as it was.

Zhang, *Making Convolutional Networks Shift-Invariant Again* (2019) measures it for shifts. Here the
prediction of the image as it is is compared with that of every transformed copy, labels playing no part.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["shift", "rotation", "scale"]
KINDS: tuple[str, ...] = get_args(Kind)


def consistency(predict: Callable[[Tensor], Tensor], x_NCHW: Tensor, kind: Kind, amount: float) -> Tensor:
    """For each image the share [N] of its copies that are predicted as it is itself.

    The copies are those of ``transformed``; ``predict`` gives one number or name [N] for each image.

    >>> brightest_row = lambda x: x.mean((1, 3)).argmax(1)
    >>> x = torch.zeros(1, 1, 5, 5)
    >>> x[:, :, 2] = 1.0
    >>> consistency(brightest_row, x, "shift", 1)  # to the left and to the right, but not up and down
    tensor([0.5000])
    """
    itself_N = predict(x_NCHW)
    same = [predict(copy) == itself_N for copy in transformed(x_NCHW, kind, amount)]
    return torch.stack(same).float().mean(0)


def transformed(x_NCHW: Tensor, kind: Kind, amount: float) -> list[Tensor]:
    """Copies of the images: shifted by so many pixels left, right, up and down, turned by so many degrees
    each way, or smaller and larger by so many per cent.

    Bilinear; outside the image the colours of its border go on.
    """
    h, w = x_NCHW.shape[-2:]
    if kind == "shift":
        # In the units of affine_grid, where an image is two long: the copy at p shows the image at p + s.
        across, down = 2 * amount / w, 2 * amount / h
        maps = [[[1, 0, s], [0, 1, t]] for s, t in ((across, 0), (-across, 0), (0, down), (0, -down))]
    elif kind == "rotation":
        maps = [
            [[math.cos(a), -math.sin(a) * h / w, 0], [math.sin(a) * w / h, math.cos(a), 0]]
            for a in (math.radians(amount), -math.radians(amount))
        ]
    else:
        maps = [[[1 / s, 0, 0], [0, 1 / s, 0]] for s in (1 - amount / 100, 1 + amount / 100)]
    copies = []
    for affine in maps:
        theta = torch.tensor([affine], dtype=x_NCHW.dtype, device=x_NCHW.device).expand(len(x_NCHW), 2, 3)
        grid = F.affine_grid(theta, list(x_NCHW.shape), align_corners=False)
        copies.append(F.grid_sample(x_NCHW, grid, padding_mode="border", align_corners=False))
    return copies
