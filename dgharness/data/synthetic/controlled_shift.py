"""Drawn images whose shift between two domains is an exact number.

Paper: Friedman, Chowers, Control+Shift: Generating Controllable Distribution Shifts, 2024, arXiv 2409.07940.

From the paper are the intensity, and the kind ``covariate`` with its windows that overlap; the other kinds,
and shapes drawn by formula in place of a generative model, are additions.

An image shows a shape (the label) of a colour, solid or hollow, on a background of a hue and a texture. One
of these factors shifts. Domains lie on a line from 0 to 1: those at positions p and q are the total variation
distance ``intensity`` · |p - q| apart in the joint distribution of label and shifting factor, and in nothing
else. At intensity 1 the ends have no value of it in common; at 0 all domains are alike.

- ``covariate``: the hue of the background, uniform on a window that moves by its own width.
- ``concept``: the label; at the end every shape bears the name of the next.
- ``spurious``: the colour, which is that of the shape at 0 and another at 1.
- ``subpopulation``: the filling; every class is solid at 0 and hollow at 1.
- ``prevalence``: the classes, the first half of them at 0 and the other at 1.

Shapes: N examples, S x S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from dgharness.data.coloring import Probability
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import brightness
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.seeds import generator

Kind = Literal["covariate", "concept", "spurious", "subpopulation", "prevalence"]
SHAPES = ("disc", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow")
RGB = ((0.9, 0.15, 0.15), (0.1, 0.8, 0.2), (0.2, 0.35, 1.0), (0.95, 0.9, 0.2))
FILLS = ("solid", "hollow")
TEXTURES = ("plain", "stripes", "checks")
FACTORS = {"shape": SHAPES, "color": COLORS, "fill": FILLS, "texture": TEXTURES}
WINDOW = 0.5  # width of the hues of one domain, of the colour circle's 0 to 1
GROUPS: dict[Kind, tuple[str, ...]] = {
    "covariate": ("y",),
    "concept": ("y", "shape"),
    "spurious": ("y", "color"),
    "subpopulation": ("y", "fill"),
    "prevalence": ("y",),
}


def controlled(
    kind: Kind = "spurious",
    intensity: float = 1.0,
    positions: Sequence[float] = (0.0, 0.1, 1.0),
    n: int = 2000,
    size: int = 32,
    seed: int = 0,
) -> Generated:
    """A domain of ``n`` uint8 images [N, 3, S, S] for every position on the line of the shift.

    Attributes: codes of ``shape``, ``color``, ``fill`` and ``texture``, and the ``hue`` of the background.
    The mixture is exact: of a domain shifted by s, s · n examples (rounded) come from the end of the line.
    """
    domains = {}
    for number, position in enumerate(positions):
        stream = generator(seed, "generation/train", number)
        y_N, factors = _factors(kind, intensity * position, n, stream)
        domains[f"position {position:g}"] = Examples(drawn(factors, size, stream), y_N, factors)
    return Generated({"train": domains})


def _factors(kind: Kind, shift: float, n: int, stream: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels, and the factors of every image: uniform and independent but for the one that shifts."""
    at_end_N = (torch.randperm(n, generator=stream) < round(shift * n)).long()
    factors = {name: torch.randint(len(values), (n,), generator=stream) for name, values in FACTORS.items()}
    hue_N = WINDOW * torch.rand(n, generator=stream)
    half = len(SHAPES) // 2
    if kind == "prevalence":
        factors["shape"] = factors["shape"] % half + half * at_end_N
    shape_N = factors["shape"]
    if kind == "spurious":
        other_N = (shape_N + 1 + factors["color"] % (len(COLORS) - 1)) % len(COLORS)
        factors["color"] = torch.where(at_end_N > 0, other_N, shape_N)
    if kind == "subpopulation":
        factors["fill"] = at_end_N
    if kind == "covariate":
        hue_N = hue_N + WINDOW * shift
    y_N = (shape_N + at_end_N) % len(SHAPES) if kind == "concept" else shape_N
    return y_N, {**factors, "hue": hue_N}


def drawn(factors: dict[str, Tensor], size: int, stream: torch.Generator) -> Tensor:
    """Images [N, 3, S, S] as uint8 of these factors; place, size, angle and grain are drawn anew."""
    n = len(factors["hue"])
    u_6N = torch.rand(6, n, 1, 1, generator=stream)
    across_S = (2 * torch.arange(size) + 1) / size - 1  # centres of the pixels, from -1 to 1
    down_S = across_S[:, None]
    thirds_3 = torch.arange(3) / 3
    ground_N3 = 0.35 + 0.25 * (2 * math.pi * (factors["hue"][:, None] - thirds_3)).cos()
    stripes_NSS = _wave(across_S, u_6N[0]).expand(n, size, size)
    checks_NSS = stripes_NSS * _wave(down_S, u_6N[1])
    textures = torch.stack([torch.zeros(n, size, size), stripes_NSS, checks_NSS])
    light_NSS = 1 + 0.15 * textures[factors["texture"], torch.arange(n)]

    x_NSS, y_NSS = across_S - 0.4 * (u_6N[2] - 0.5), down_S - 0.4 * (u_6N[3] - 0.5)
    angle_N, radius_N = math.pi / 3 * (u_6N[4] - 0.5), 0.5 + 0.2 * u_6N[5]
    cos_N, sin_N = angle_N.cos(), angle_N.sin()
    x_NSS, y_NSS = x_NSS * cos_N + y_NSS * sin_N, y_NSS * cos_N - x_NSS * sin_N
    outside_NSS = torch.empty(n, size, size)
    for number, shape in enumerate(SHAPES):
        rows = factors["shape"] == number
        outside_NSS[rows] = _outside(shape, x_NSS[rows], y_NSS[rows], radius_N[rows])
    hollow_N = (factors["fill"] == FILLS.index("hollow"))[:, None, None]
    rim_NSS = torch.maximum(outside_NSS, -outside_NSS - 0.3 * radius_N)
    outside_NSS = torch.where(hollow_N, rim_NSS, outside_NSS)
    covered_NSS = (0.5 - outside_NSS * size / 2).clamp(0, 1)  # of a pixel; in part along the edge

    ground_N3SS = ground_N3[..., None, None] * light_NSS[:, None]
    shape_N3 = torch.tensor(RGB)[factors["color"]]
    image_N3SS = torch.lerp(ground_N3SS, shape_N3[..., None, None], covered_NSS[:, None])
    image_N3SS += 0.02 * torch.randn(image_N3SS.shape, generator=stream)
    return (255 * image_N3SS).round_().clamp_(0, 255).to(torch.uint8)


def _wave(along: Tensor, phase_N: Tensor) -> Tensor:
    """Bands of +1 and -1, four of each across the image."""
    return (2 * math.pi * (2 * along + phase_N)).sin().sign()


def _outside(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How far points lie outside a shape about the origin; negative within."""
    if shape == "disc":
        return (x.square() + y.square()).sqrt() - 0.85 * radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.75 * radius
    if shape == "triangle":
        slanted = math.sqrt(3) / 2 * x.abs() + y / 2
        return torch.maximum(slanted, -y) - 0.55 * radius
    bars = torch.maximum(x.abs() - radius, y.abs() - radius / 3)
    return torch.minimum(bars, torch.maximum(x.abs() - radius / 3, y.abs() - radius))


class ControlledShiftOptions(Hparams):
    """What shifts, how far, and where the domains lie."""

    kind: Kind = "spurious"
    """What shifts: the background's hue, the labels, the colour that goes with a shape, the filling, or how
    common the classes are."""
    intensity: Probability = 1.0
    """The dial: total variation distance between the ends of the line on which the domains lie."""
    positions: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.0, 0.1, 1.0)
    """Where on that line each domain lies."""
    n: PositiveInt = 2000
    """Images of each domain."""
    size: Annotated[int, Field(ge=8)] = 32
    """Side of an image in pixels."""


def load(
    argument: str | None, root: Path | None, trial_seed: int, options: ControlledShiftOptions
) -> Dataset:
    """Draw the dataset from the trial's own stream."""
    if len(set(options.positions)) < len(options.positions):
        raise UsageError(f"data.positions={options.positions} must not name a value twice")
    return dataset_of(
        "synthetic:controlled-shift",
        controlled(**options.model_dump(), seed=trial_seed),
        classification(len(SHAPES)),
        Defaults(model="mnist-cnn", steps=2000, eval_every=200),
        groups=GROUPS[options.kind],
        levels={"y": SHAPES, **FACTORS},
        prepare=brightness,
    )


controlled_shift = DatasetSpec(load, ControlledShiftOptions, doc=__doc__)
