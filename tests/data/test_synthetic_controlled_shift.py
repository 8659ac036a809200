"""Drawn images: the shift between domains is the number asked for, in one factor, and shapes are shapes."""

from __future__ import annotations

import math

import pytest
import torch

from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.synthetic.controlled_shift import (
    FACTORS,
    RGB,
    SHAPES,
    ControlledShiftOptions,
    controlled,
    controlled_shift,
    drawn,
)
from dgharness.errors import UsageError

SHIFTING = {  # kind -> the column in which domains differ, beside the label
    "concept": "shape",
    "spurious": "color",
    "subpopulation": "fill",
    "prevalence": "shape",
}
N = 4000


def ends(kind: str, intensity: float, positions=(0.0, 1.0), n: int = N):
    generated = controlled(kind, intensity, positions, n=n, size=8)
    return [generated["train"][f"position {position:g}"] for position in positions]


def cells(examples, factor: str) -> torch.Tensor:
    """How often each combination of label and factor occurs, as parts of 1."""
    values = examples.attributes[factor]
    if factor == "hue":
        values = (100 * values).long()
    return torch.bincount(100 * examples.y_N + values, minlength=400).double() / len(values)


def total_variation(one, other, factor: str) -> float:
    return (cells(one, factor) - cells(other, factor)).abs().sum().item() / 2


@pytest.mark.parametrize("kind", SHIFTING)
@pytest.mark.parametrize("intensity", [0.0, 0.25, 0.6, 1.0])
def test_the_ends_are_the_intensity_apart_in_total_variation(kind, intensity):
    near, far = ends(kind, intensity)
    # Of c cells, each uncertain by √(2 p / n), the sum that chance alone gives is below √(c / (π n)).
    by_chance = math.sqrt(16 / (math.pi * N))
    assert total_variation(near, far, SHIFTING[kind]) == pytest.approx(intensity, abs=1.5 * by_chance)
    # At the near end no example is of the far end's cells, so that the number of those is exact.
    only_far = cells(near, SHIFTING[kind]) == 0
    assert cells(far, SHIFTING[kind])[only_far].sum().item() == pytest.approx(intensity, abs=1e-9)


@pytest.mark.parametrize("intensity", [0.0, 0.25, 0.6, 1.0])
def test_windows_of_hue_overlap_by_what_the_intensity_leaves(intensity):
    near, far = (examples.attributes["hue"] for examples in ends("covariate", intensity))
    for hue in (near, far):
        assert (hue.max() - hue.min()).item() == pytest.approx(0.5, abs=0.002)
    overlap = ((near.max() - far.min()) / (near.max() - near.min())).item()
    assert 1 - overlap == pytest.approx(intensity, abs=0.005)
    outside = (far > near.max()).double().mean().item()
    assert outside == pytest.approx(intensity, abs=4 * 0.5 / math.sqrt(N))


@pytest.mark.parametrize("kind", [*SHIFTING, "covariate"])
def test_between_the_ends_the_distance_is_that_of_the_positions(kind):
    factor = SHIFTING.get(kind, "hue")
    one, other = ends(kind, 0.8, (0.25, 0.75), n=3 * N)
    if kind == "covariate":
        outside = (other.attributes["hue"] > one.attributes["hue"].max()).double().mean().item()
        assert outside == pytest.approx(0.4, abs=0.02)
    else:
        by_chance = math.sqrt(16 / (math.pi * 3 * N))
        assert total_variation(one, other, factor) == pytest.approx(0.4, abs=1.5 * by_chance)


@pytest.mark.parametrize("kind", [*SHIFTING, "covariate"])
def test_nothing_but_the_factor_of_the_kind_shifts(kind):
    near, far = ends(kind, 1.0)
    for factor, values in {**FACTORS, "hue": range(5)}.items():
        if factor == SHIFTING.get(kind, "hue") or (kind == "spurious" and factor == "color"):
            continue
        found = []
        for examples in (near, far):
            column = examples.attributes[factor]
            codes = (10 * column).long().clamp(max=4) if factor == "hue" else column
            found.append(torch.bincount(codes, minlength=len(values)).double() / N)
        assert (found[0] - found[1]).abs().max() < 4 * math.sqrt(2 * 0.25 / N), factor


def test_at_intensity_0_the_colour_is_that_of_the_shape_and_the_label_that_of_the_shape_everywhere():
    for kind in ("spurious", "concept"):
        for examples in ends(kind, 0.0):
            assert torch.equal(examples.y_N, examples.attributes["shape"])
            if kind == "spurious":
                assert torch.equal(examples.attributes["color"], examples.attributes["shape"])


AREAS = {  # in squares of the radius: solid, and without what lies further within than 0.3 radii
    "disc": (math.pi * 0.85**2, math.pi * (0.85**2 - 0.55**2)),
    "square": (1.5**2, 1.5**2 - 0.9**2),
    "triangle": (3 * math.sqrt(3) * 0.55**2, 3 * math.sqrt(3) * (0.55**2 - 0.25**2)),
    "cross": (20 / 9, 20 / 9 - (4 * 0.7 / 15 - 1 / 225)),
}


@pytest.mark.parametrize("fill", ["solid", "hollow"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_areas(shape, fill):
    n = 600
    stream = torch.Generator().manual_seed(0)
    codes = {"shape": SHAPES.index(shape), "color": 0, "texture": 0, "fill": ("solid", "hollow").index(fill)}
    factors = {name: torch.full((n,), code) for name, code in codes.items()}
    image = drawn({**factors, "hue": torch.full((n,), 0.5)}, 64, stream).double() / 255
    ground = image[:, :, :2, :2].mean((0, 2, 3))  # no shape reaches a corner
    towards = torch.tensor(RGB[0], dtype=torch.float64) - ground
    covered = (
        torch.einsum("nchw,c->n", image - ground[:, None, None], towards) / towards.square().sum() / 64**2
    )
    mean_square_radius = (0.7**3 - 0.5**3) / (3 * 0.2)
    expected = AREAS[shape][fill == "hollow"] * mean_square_radius / 4  # of an image of side 2
    assert covered.mean().item() == pytest.approx(expected, rel=0.03)


def test_the_seed_decides_everything_and_other_domains_nothing():
    one, again, other = (controlled(n=20, seed=seed)["train"]["position 0.1"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)
    assert torch.equal(one.x, controlled(positions=(0.5, 0.1), n=20)["train"]["position 0.1"].x)


def test_as_a_dataset_groups_are_label_by_what_shifts():
    dataset = controlled_shift.load(None, None, 0, ControlledShiftOptions(n=30, kind="subpopulation"))
    assert dataset.domains == ("position 0", "position 0.1", "position 1")
    assert dataset.input_shape == (3, 32, 32) and dataset.toy and dataset.groups == ("y", "fill")
    assert list(dataset.manifest["y"].cat.categories) == list(SHAPES)
    assert dataset.prepare(dataset.reader(torch.arange(3))).max() <= 1
    assert len(leave_one_domain_out(dataset, ["position 1"], 0).train_domains) == 2


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="must not name a value twice"):
        controlled_shift.load(None, None, 0, ControlledShiftOptions(positions=(0.5, 0.5)))
