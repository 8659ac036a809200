"""The fifteen common corruptions of images, in five severities each.

Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*
(2019): the parameters are those by which ImageNet-C and CIFAR-10-C were made; lengths in pixels are not
scaled to the size of the image. What is drawn for an image depends on its row, the corruption and the
severity alone, so that it is the same in every batch, trial and run; all is computed on the CPU, so that it
is the same on every device.

These are not the published files, and scores on both do not compare to the last digit: the random numbers
are others, and nothing is rounded to whole colours before the end. Frost is drawn (ridges of fractal noise,
with a tint of blue), where the published one lays photographs of frost over the image. Glass blur moves all
pixels at once and not one after the other.

Shapes: N images, C channels, H x W pixels. Colours are floats in [0, 1] inside this module.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgharness.data import filters
from dgharness.data.augmentation import luminance
from dgharness.errors import UsageError, did_you_mean
from dgharness.seeds import generator

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64  # pixels: up to this side the parameters of CIFAR-10-C are taken
Table = Literal["auto", "imagenet-c", "cifar-10-c"]


def corrupt(
    x_N3HW: Tensor, row_N: Sequence[int], corruption: str, severity: int, table: Table = "auto"
) -> Tensor:
    """uint8 RGB images to corrupted ones, as uint8; ``row_N`` numbers them for the random stream.

    ``table`` says whose parameters; auto takes those of CIFAR-10-C for sides up to 64 pixels.

    >>> x = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    >>> corrupt(x, [0, 1], "brightness", 4)[0, 0, 0, 0].item() - 100  # 0.2 of 255
    51
    """
    if corruption not in CORRUPTIONS:
        raise UsageError(f"there is no corruption {corruption!r}; {did_you_mean(corruption, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UsageError(f"a corruption has the severities 1 to 5, and not {severity}")
    if table == "auto":
        table = "cifar-10-c" if max(x_N3HW.shape[-2:]) <= SMALL else "imagenet-c"
    parameter = PARAMETERS[table][corruption][severity - 1]
    draw = Streams(tuple(generator(0, f"{corruption}-{severity}", row) for row in row_N))
    y_N3HW = CORRUPTIONS[corruption](x_N3HW.float() / 255, parameter, draw)
    return (y_N3HW * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Streams:
    """A generator for each image: what is drawn for one depends on no other of its batch."""

    generators: tuple[torch.Generator, ...]

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """From low to high - 1."""
        return torch.stack([torch.randint(low, high, shape, generator=g) for g in self.generators])

    def poisson(self, rate_N: Tensor) -> Tensor:
        return torch.stack([torch.poisson(r, g) for r, g in zip(rate_N, self.generators, strict=True)])


# --- noise -----------------------------------------------------------------------------------------


def gaussian_noise(x: Tensor, scale: float, draw: Streams) -> Tensor:
    return x + scale * draw.normal(*x.shape[1:])


def shot_noise(x: Tensor, photons: float, draw: Streams) -> Tensor:
    """As if so many photons made a full colour."""
    return draw.poisson(x * photons) / photons


def impulse_noise(x: Tensor, share: float, draw: Streams) -> Tensor:
    """This share of the colours becomes 0 or 1, one as likely as the other."""
    u = draw.uniform(0, 1, *x.shape[1:])
    return torch.where(u < share, (u < share / 2).float(), x)


# --- blur ------------------------------------------------------------------------------------------


def defocus_blur(x: Tensor, parameter: tuple[float, float], draw: Streams) -> Tensor:
    """A disk, its own edge smoothed."""
    radius, softness = parameter
    half, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    at = torch.arange(-half, half + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).double()
    edge = filters.smoothing(len(at), softness, taps, filters.mirrored_within)
    return filters.filtered(x, edge @ (disk / disk.sum()) @ edge.T)


def glass_blur(x: Tensor, parameter: tuple[float, int, int], draw: Streams) -> Tensor:
    """Blurred; every pixel takes the colour of one within reach, for some passes; blurred again."""
    sigma, reach, passes = parameter
    _, _, h, w = x.shape
    x = filters.blurred(x, sigma)
    for _ in range(passes):
        step_N2HW = draw.integers(-reach, reach, 2, h, w)
        x = filters.taken(x, torch.arange(h)[:, None] + step_N2HW[:, 0], torch.arange(w) + step_N2HW[:, 1])
    return filters.blurred(x, sigma)


def motion_blur(x: Tensor, parameter: tuple[int, float], draw: Streams) -> Tensor:
    return filters.smeared(x, *parameter, draw.uniform(-45, 45))


def zoom_blur(x: Tensor, factors: Sequence[float], draw: Streams) -> Tensor:
    """The mean of the image and its enlargements."""
    total = x
    for factor in factors:
        total = total + filters.zoomed(x, factor)
    return total / (len(factors) + 1)


# --- weather ---------------------------------------------------------------------------------------


def snow(x: Tensor, parameter: tuple[float, ...], draw: Streams) -> Tensor:
    """Flakes that the wind smears, twice, over a whitened image."""
    mean, scale, zoom, threshold, radius, sigma, kept = parameter
    flakes = filters.zoomed(mean + scale * draw.normal(1, *x.shape[2:]), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = filters.smeared(flakes, int(radius), sigma, draw.uniform(-135, -45))
    white = torch.maximum(x, 1.5 * luminance(x) + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))


def frost(x: Tensor, parameter: tuple[float, float], draw: Streams) -> Tensor:
    """Ridges of fractal noise laid over the image, in place of photographs of frost."""
    image, layer = parameter
    ridges = 1 - (2 * filters.fractal(draw.uniform, len(x), x.shape[2:], 1.3) - 1).abs()
    tint = torch.tensor([0.85, 0.95, 1.0])[:, None, None]
    return image * x + layer * tint * ridges[:, None]


def fog(x: Tensor, parameter: tuple[float, float], draw: Streams) -> Tensor:
    thickness, decay = parameter
    brightest = x.amax((1, 2, 3), keepdim=True)
    fogged = x + thickness * filters.fractal(draw.uniform, len(x), x.shape[2:], decay)[:, None]
    return fogged * brightest / (brightest + thickness)


def brightness(x: Tensor, added: float, draw: Streams) -> Tensor:
    """More value, at the same hue and saturation (HSV)."""
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x / value.clamp(min=1e-6), 1.0) * (value + added).clamp(max=1)


# --- digital ---------------------------------------------------------------------------------------


def contrast(x: Tensor, factor: float, draw: Streams) -> Tensor:
    """Towards the mean of every channel."""
    return torch.lerp(x.mean((2, 3), keepdim=True), x, factor)


def elastic_transform(x: Tensor, parameter: tuple[float, float, float], draw: Streams) -> Tensor:
    """A random affine map, then every pixel displaced by smooth noise."""
    strength, sigma, affine = parameter
    h, w = x.shape[2:]
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * (min(h, w) // 3)
    before_32 = (corners + torch.tensor([w // 2, h // 2])).double()
    after_N32 = before_32 + draw.uniform(-affine, affine, 3, 2)
    # The map from where a pixel lands back to where it came from, in homogeneous coordinates.
    ones = torch.ones(len(x), 3, 1)
    back_N32 = torch.linalg.solve(torch.cat([after_N32, ones], 2), before_32.expand_as(after_N32))
    row_HW, column_HW = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place_HW3 = torch.stack([column_HW, row_HW, torch.ones(h, w)], -1).double()
    x = filters.sampled(x, torch.einsum("hwi,nij->nhwj", place_HW3, back_N32), align_corners=True)
    noise_N2HW = filters.blurred(draw.uniform(-1, 1, 2, h, w), sigma, truncate=3, border=filters.mirrored)
    return filters.sampled(x, place_HW3[..., :2] + strength * noise_N2HW.movedim(1, -1), align_corners=False)


def pixelate(x: Tensor, share: float, draw: Streams) -> Tensor:
    """This share of the side as so many squares, each of its mean colour."""
    same_HH, same_WW = (
        (cell[:, None] == cell).double()
        for side in x.shape[2:]
        for cell in [((torch.arange(side) + 0.5) * int(side * share) / side).floor()]
    )
    total = same_HH @ (x * 255).round().double() @ same_WW  # whole numbers: exact in any order
    return (total / (same_HH.sum(1)[:, None] * same_WW.sum(0)) / 255).float()


def jpeg_compression(x: Tensor, quality: int, draw: Streams) -> Tensor:
    decoded = []
    for image_HW3 in (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image_HW3).save(file, "JPEG", quality=quality)
        decoded.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


# --- parameters by severity ------------------------------------------------------------------------

CORRUPTIONS: Mapping[str, Callable[[Tensor, Any, Streams], Tensor]] = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "defocus-blur": defocus_blur,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "zoom-blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic-transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg-compression": jpeg_compression,
}

PARAMETERS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "imagenet-c": {
        "gaussian-noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot-noise": (60, 25, 12, 5, 3),
        "impulse-noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus-blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass-blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion-blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom-blur": tuple(
            np.arange(1, end, step)
            for end, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic-transform": (
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg-compression": (25, 18, 15, 10, 7),
    },
    "cifar-10-c": {
        "gaussian-noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot-noise": (500, 250, 100, 75, 50),
        "impulse-noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus-blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass-blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion-blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom-blur": tuple(np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic-transform": (
            (0, 0, 2.56),
            (1.6, 6.4, 2.24),
            (2.56, 1.92, 1.92),
            (3.2, 1.28, 1.6),
            (3.2, 0.96, 0.96),
        ),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg-compression": (80, 65, 58, 50, 40),
    },
}
