"""DomainBed's training augmentation, on a whole batch at once.

Random resized crop (scale .7 to 1), horizontal flip, colour jitter of .3, grayscale with probability .1;
every example draws its own. Against torchvision's one-image transforms: crops are not rounded to whole
pixels, and the order of the four colour changes is drawn once for a batch. Against DomainBed: crops are
taken from the image as it is stored, squashed to a square, so that on images that are far from square
their aspect ratio is another.

Shapes: N images, H x W pixels. Colours are floats in [0, 1] inside this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = (0.7, 1.0)
RATIO = (3 / 4, 4 / 3)
JITTER = 0.3
GRAYSCALE = 0.1
ATTEMPTS = 10  # crops drawn before the whole image is taken, as torchvision does
CPU_CHUNK = 4


def augment(x_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Raw images of values 0..255 to augmented ones, as floats of the same range.

    All numbers come from the (CPU) generator, so that every device gets the same.
    """
    n = len(x_N3HW)
    draws = torch.rand(n, 2 * ATTEMPTS + 8, generator=generator)
    order = torch.randperm(4, generator=generator).tolist()
    boxes_N4 = crop_boxes(draws[:, : 2 * ATTEMPTS + 2])
    flip_N1, strength_N4, gray_N1 = draws[:, 2 * ATTEMPTS + 2 :].split([1, 4, 1], dim=1)
    factors_N4 = JITTER * (2 * strength_N4 - 1) + torch.tensor([1.0, 1.0, 1.0, 0.0])  # the hue is shifted
    plan = torch.cat([boxes_N4, factors_N4, flip_N1 < 0.5, gray_N1 < GRAYSCALE], dim=1).to(x_N3HW.device)
    # On a CPU the intermediate images of a few stay in its cache, which makes it three times faster.
    size = CPU_CHUNK if x_N3HW.device.type == "cpu" else n
    parts = zip(x_N3HW.split(size), plan.split(size), strict=True)
    return torch.cat([_augment(x, plan_NP, order) for x, plan_NP in parts])


def _augment(x_N3HW: Tensor, plan_NP: Tensor, order: list[int]) -> Tensor:
    boxes_N4, factors_N4, flip_N1, gray_N1 = plan_NP.split([4, 4, 1, 1], dim=1)
    x = crop(x_N3HW.float() / 255, boxes_N4, flip_N1.squeeze(1))
    for change in order:
        x = COLOR_CHANGES[change](x, factors_N4[:, change, None, None, None])
    return torch.where(gray_N1[:, :, None, None] > 0, luminance(x), x) * 255


def crop_boxes(draws_NA: Tensor) -> Tensor:
    """Crops [N, 4] as (left, top, width, height), each a fraction of the image's side.

    ``draws_NA`` are uniform on [0, 1): ATTEMPTS of area and of ratio, then the place. The first attempt
    that fits is taken, else the whole image.
    """
    area = SCALE[0] + (SCALE[1] - SCALE[0]) * draws_NA[:, :ATTEMPTS]
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * draws_NA[:, ATTEMPTS : 2 * ATTEMPTS])
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.float().argmax(dim=1, keepdim=True)
    sides = torch.stack([width.gather(1, first), height.gather(1, first)], dim=-1).squeeze(1)
    sides = torch.where(fits.any(dim=1, keepdim=True), sides, 1.0)
    return torch.cat([(1 - sides) * draws_NA[:, -2:], sides], dim=1)


def crop(x_NCHW: Tensor, boxes_N4: Tensor, flip_N: Tensor) -> Tensor:
    """Cut the boxes out, mirror where ``flip_N`` is 1, and scale back to H x W (bilinear)."""
    start, sides = boxes_N4[:, :2], boxes_N4[:, 2:]
    centre = 2 * start + sides - 1  # in grid_sample's units: the image spans -1 to 1
    theta = x_NCHW.new_zeros(len(x_NCHW), 2, 3)
    theta[:, 0, 0] = sides[:, 0] * (1 - 2 * flip_N)
    theta[:, 1, 1] = sides[:, 1]
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, list(x_NCHW.shape), align_corners=False)
    return F.grid_sample(x_NCHW, grid, padding_mode="border", align_corners=False)


# --- colour: factors are [N, 1, 1, 1], one for each image -------------------------------------------


def luminance(x: Tensor) -> Tensor:
    """[N, 1, H, W] of [N, 3, H, W], with the weights of ITU-R 601."""
    red, green, blue = x.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = luminance(x).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, factor).clamp(0, 1)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luminance(x), x, factor).clamp(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` of a full circle, keeping saturation and value (HSV)."""
    value, lowest = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - lowest
    red, green, blue = ((x - lowest) / chroma.clamp(min=1e-12)).split(1, dim=1)
    sixths = torch.where(
        x[:, 0:1] == value,
        green - blue,
        torch.where(x[:, 1:2] == value, 2 + blue - red, 4 + red - green),
    )
    # Of a hue h in sixths, each channel is the value less the chroma times a trapezoid of h + 5, 3, 1.
    offset = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    k = torch.remainder(sixths + 6 * shift + offset, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


COLOR_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brighten, contrast, saturate, shift_hue)
