"""Filters of images: smoothing, convolution, trails, enlargement, resampling, and fractal noise.

Every image is treated alike whatever batch it is in.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Border = Callable[[Tensor, int], Tensor]  # places, some outside, and the side -> places inside


def mirrored(place: Tensor, side: int) -> Tensor:
    place = place % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def mirrored_within(place: Tensor, side: int) -> Tensor:
    """The outermost pixel is the mirror, and does not appear twice."""
    place = place % max(2 * side - 2, 1)
    return torch.minimum(place, 2 * side - 2 - place)


def nearest(place: Tensor, side: int) -> Tensor:
    return place.clamp(0, side - 1)


def smoothing(side: int, sigma: float, taps: int, border: Border) -> Tensor:
    """Gaussian smoothing of one axis as a matrix [side, side], ``taps`` pixels to either side."""
    at = torch.arange(-taps, taps + 1)
    weights = (-0.5 * (at.double() / max(sigma, 1e-6)) ** 2).softmax(0)
    source = border(torch.arange(side)[:, None] + at, side)
    zeros = torch.zeros(side, side, dtype=torch.float64)
    return zeros.scatter_add_(1, source, weights.expand(side, -1))


def blurred(x: Tensor, sigma: float, truncate: float = 4, border: Border = nearest) -> Tensor:
    # In double precision, so that no colour depends on the order in which a batch is summed.
    taps = int(truncate * sigma + 0.5)
    rows, columns = (smoothing(side, sigma, taps, border) for side in x.shape[2:])
    return (rows @ x.double() @ columns.T).float()


def filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution with a symmetric kernel of odd sides, by Fourier transform; mirrored at the border."""
    half, (h, w) = len(kernel) // 2, x.shape[2:]
    rows, columns = (mirrored_within(torch.arange(-half, side + half), side) for side in (h, w))
    padded = x.double()[:, :, rows][:, :, :, columns]
    size = list(padded.shape[2:])
    found = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, size), size)
    return found[:, :, 2 * half :, 2 * half :].float()


def taken(x_NCHW: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The colours at these places, [N, H, W] when broadcast; the nearest pixel for a place outside."""
    n = torch.arange(len(x_NCHW))[:, None, None]
    h, w = x_NCHW.shape[2:]
    return x_NCHW.permute(0, 2, 3, 1)[n, nearest(rows, h), nearest(columns, w)].permute(0, 3, 1, 2)


def smeared(x: Tensor, radius: int, sigma: float, degrees_N: Tensor) -> Tensor:
    """A one-sided Gaussian trail of 2 * radius + 1 pixels in a direction of each image's own."""
    steps = torch.arange(2 * radius + 1)
    weights = (-0.5 * (steps / sigma) ** 2).softmax(0)
    angle_N11 = degrees_N.double().deg2rad()[:, None, None]
    rows, columns = (torch.arange(side) for side in x.shape[2:])
    total = torch.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        down, across = ((step * f(angle_N11) - 0.5).ceil().long() for f in (torch.sin, torch.cos))
        total += weight * taken(x, rows[:, None] + down, columns + across)
    return total


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the image, enlarged to its size."""
    h, w = x.shape[2:]
    inner = [math.ceil(side / factor) for side in (h, w)]
    top, left = (h - inner[0]) // 2, (w - inner[1]) // 2
    middle = x[:, :, top : top + inner[0], left : left + inner[1]]
    large = F.interpolate(
        middle, [round(side * factor) for side in inner], mode="bilinear", align_corners=True
    )
    top, left = (large.shape[2] - h) // 2, (large.shape[3] - w) // 2
    return large[:, :, top : top + h, left : left + w]


def fractal(uniform: Callable[..., Tensor], n: int, sides: Sequence[int], decay: float) -> Tensor:
    """Noise [N, *sides] from 0 to 1 by the diamond-square algorithm; the larger the decay, the smoother.

    ``uniform(low, high, *shape)`` draws [N, *shape].
    """
    step = 2 ** math.ceil(math.log2(max(*sides, 2)))
    z = torch.zeros(n, step, step)
    roughness = 1.0

    def around(sum_of_four: Tensor) -> Tensor:
        return sum_of_four / 4 + roughness * uniform(-1, 1, *sum_of_four.shape[1:])

    while step > 1:
        half = step // 2
        corners = z[:, ::step, ::step]
        above = corners + corners.roll(-1, 2)
        centres = around(above + above.roll(-1, 1))
        z[:, half::step, half::step] = centres
        z[:, ::step, half::step] = around(above + centres + centres.roll(1, 1))
        z[:, half::step, ::step] = around(corners + corners.roll(-1, 1) + centres + centres.roll(1, 2))
        step, roughness = half, roughness / decay**2
    lowest, highest = z.amin((1, 2), keepdim=True), z.amax((1, 2), keepdim=True)
    return ((z - lowest) / (highest - lowest))[:, : sides[0], : sides[1]]


def sampled(x: Tensor, place_NHW2: Tensor, align_corners: bool) -> Tensor:
    """Bilinear colours at (column, row); mirrored at the border, within it if ``align_corners``."""
    sides = torch.tensor([x.shape[3], x.shape[2]])
    grid = 2 * place_NHW2 / (sides - 1) - 1 if align_corners else (2 * place_NHW2 + 1) / sides - 1
    return F.grid_sample(x, grid.float(), padding_mode="reflection", align_corners=align_corners)
