"""DomainBed's training augmentation, on a whole batch at once.

Random resized crop (scale .7 to 1), horizontal flip, colour jitter of .3, grayscale with probability .1;
every example draws its own. Against torchvision's one-image transforms: crops are not rounded to whole
pixels, and the order of the four colour changes is drawn once for a batch. Against DomainBed: crops are
taken from the image as it is stored, squashed to a square, so that on images that are far from square
their aspect ratio is another.

On a CPU what counts is the number of passes over the pixels, and what each costs: comparisons,
``torch.where``, ``torch.lerp`` by a factor per image and ``F.affine_grid`` cost several times as much as
arithmetic. The result of an operation is overwritten by the next where nobody else holds it; arguments never
are.

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
CPU_CHUNK = 4  # images at a time; the intermediate images of more do not stay in the cache of the cores


def augment(x_N3HW: Tensor, generator: torch.Generator, cropping: bool = True) -> Tensor:
    """Raw images of values 0..255 to augmented ones, as floats of the same range.

    All numbers come from the (CPU) generator, so that every device gets the same; without cropping the
    others stay as they are.
    """
    n = len(x_N3HW)
    draws = torch.rand(n, 2 * ATTEMPTS + 8, generator=generator)
    order = torch.randperm(4, generator=generator).tolist()
    whole_N4 = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(n, 4)
    boxes_N4 = crop_boxes(draws[:, : 2 * ATTEMPTS + 2]) if cropping else whole_N4
    flip_N1, strength_N4, gray_N1 = draws[:, 2 * ATTEMPTS + 2 :].split([1, 4, 1], dim=1)
    factors_N4 = JITTER * (2 * strength_N4 - 1) + torch.tensor([1.0, 1.0, 1.0, 0.0])  # the hue is shifted
    plan = torch.cat([boxes_N4, factors_N4, flip_N1 < 0.5], dim=1).to(x_N3HW.device)
    out_N3HW = x_N3HW.new_empty(x_N3HW.shape, dtype=torch.float32)
    size = CPU_CHUNK if x_N3HW.device.type == "cpu" else n
    for x, plan_NP, changed in zip(*(each.split(size) for each in (x_N3HW, plan, out_N3HW)), strict=True):
        boxes_N4, factors_N4, flip_N1 = plan_NP.split([4, 4, 1], dim=1)
        x = crop(x.float() / 255, boxes_N4, flip_N1.squeeze(1))
        for change in order:
            x = COLOR_CHANGES[change](x, factors_N4[:, change, None, None, None])
        torch.mul(x, 255, out=changed)
    gray = torch.nonzero(gray_N1[:, 0] < GRAYSCALE)[:, 0].to(x_N3HW.device)
    out_N3HW[gray] = luminance(out_N3HW[gray])
    return out_N3HW


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
    n, _, height, width = x_NCHW.shape
    left_N1, top_N1, wide_N1, high_N1 = boxes_N4.split(1, dim=1)
    # In grid_sample's units the image spans -1 to 1.
    columns_NW = 2 * left_N1 + wide_N1 - 1 + wide_N1 * (1 - 2 * flip_N[:, None]) * _centres(width, x_NCHW)
    rows_NH = 2 * top_N1 + high_N1 - 1 + high_N1 * _centres(height, x_NCHW)
    grid_NHW2 = x_NCHW.new_empty(n, height, width, 2)
    grid_NHW2[..., 0], grid_NHW2[..., 1] = columns_NW[:, None, :], rows_NH[:, :, None]
    return F.grid_sample(x_NCHW, grid_NHW2, padding_mode="border", align_corners=False)


def _centres(size: int, like: Tensor) -> Tensor:
    return (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1


# --- colour: factors are [N, 1, 1, 1], one for each image -------------------------------------------


def luminance(x: Tensor) -> Tensor:
    """[N, 1, H, W] of [N, 3, H, W], with the weights of ITU-R 601."""
    red, green, blue = x.split(1, dim=1)
    return torch.add(0.2989 * red, green, alpha=0.587).add_(blue, alpha=0.114)


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = luminance(x.mean(dim=(2, 3), keepdim=True))
    return (x * factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).add_(luminance(x).mul_(1 - factor)).clamp_(0, 1)


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` of a full circle, keeping saturation and value (HSV)."""
    red, green, blue = x.split(1, dim=1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    # In sixths of the circle the hue is so far from red, by way of green or, if there is more of it, of blue.
    from_red = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp(min=1e-12)).add_(1)
    hue = from_red.copysign_(green - blue).add_(6 * shift)
    hue.sub_((hue / 6).floor_(), alpha=6)
    # Of a hue in sixths, red is a trough at 3, green a crest at 2, blue a crest at 4, their tops cut off.
    middle, sign, height = hue.new_tensor(TRAPEZOIDS)[:, :, None, None]
    return (hue - middle).abs_().mul_(sign).add_(height).clamp_(0, 1).mul_(chroma).add_(lowest)


TRAPEZOIDS = ((3, 2, 4), (1, -1, -1), (-1, 2, 2))

COLOR_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brighten, contrast, saturate, shift_hue)
