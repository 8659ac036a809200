"""Transformation consistency: what the transformations do, what is counted, and where a run logs it."""

import pytest
import torch
from small_runs import curve, run_small, small_config

from dgharness.errors import UsageError
from dgharness.metrics.consistency import KINDS, consistency, transformed
from dgharness.resolution import flat
from dgharness.training.prepare import prepare


@pytest.fixture
def images():
    return torch.rand(5, 3, 9, 14, generator=torch.Generator().manual_seed(0))


def test_a_shift_moves_whole_pixels_to_every_side_and_the_border_goes_on(images):
    copies = transformed(images, "shift", 2)
    first = images[:, :, :, :1].expand(-1, -1, -1, 2)
    last = images[:, :, :, -1:].expand(-1, -1, -1, 2)
    top, bottom = images[:, :, :1].expand(-1, -1, 2, -1), images[:, :, -1:].expand(-1, -1, 2, -1)
    expected = [
        torch.cat([images[..., 2:], last], 3),
        torch.cat([first, images[..., :-2]], 3),
        torch.cat([images[:, :, 2:], bottom], 2),
        torch.cat([top, images[:, :, :-2]], 2),
    ]
    for copy, moved in zip(copies, expected, strict=True):
        torch.testing.assert_close(copy, moved, atol=1e-5, rtol=0)


def test_a_rotation_turns_both_ways_about_the_centre(images):
    both_ways = transformed(images[..., :9], "rotation", 90)
    for copy, turns in zip(both_ways, (1, -1), strict=True):
        torch.testing.assert_close(copy, images[..., :9].rot90(turns, (2, 3)), atol=1e-5, rtol=0)
    for copy in transformed(images, "rotation", 180):  # also where the image is no square
        torch.testing.assert_close(copy, images.flip(2, 3), atol=1e-5, rtol=0)


def test_a_rotation_keeps_shapes_where_the_image_is_no_square():
    x = torch.zeros(1, 1, 21, 41)
    x[:, :, 10, 25] = 1  # five to the right of the centre
    found = {tuple((copy[0, 0] > 0.5).nonzero()[0].tolist()) for copy in transformed(x, "rotation", 90)}
    assert found == {(5, 20), (15, 20)}


def test_a_scale_makes_smaller_and_larger_about_the_centre():
    x = torch.zeros(1, 1, 41, 41)
    x[:, :, 10:31, 10:31] = 1  # a square of 21
    smaller, larger = (copy.sum().sqrt().item() for copy in transformed(x, "scale", 20))
    assert smaller == pytest.approx(21 * 0.8, rel=0.02) and larger == pytest.approx(21 * 1.2, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_no_transformation_at_all_leaves_everything_as_it_is(images, kind):
    for copy in transformed(images, kind, 0):
        torch.testing.assert_close(copy, images, atol=1e-5, rtol=0)
    assert (consistency(lambda x: x.mean((1, 2, 3)) > 0.5, images, kind, 0) == 1).all()


def test_consistency_is_the_share_of_copies_that_are_predicted_as_the_image(images):
    seen = []

    def predict(x):
        seen.append(x)
        return torch.tensor([0, 1, 2, 0, 1]) if len(seen) % 2 else torch.tensor([0, 1, 0, 1, 0])

    found = consistency(predict, images, "shift", 1)
    assert len(seen) == 5 and torch.equal(seen[0], images)
    assert found.tolist() == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_a_prediction_that_ignores_places_is_consistent_under_shifts_of_a_texture():
    x = torch.eye(4).repeat(1, 1, 8, 8)
    assert consistency(lambda x: x.mean((1, 2, 3)).round(decimals=1), x, "shift", 4).tolist() == [1.0]
    assert consistency(lambda x: x[:, 0, 5, 5] > 0.5, x, "shift", 1).tolist() == [0.0]


# --- in a run --------------------------------------------------------------------------------------

ASKED = {"shift": 1, "rotation": 20, "scale": 10}


def test_a_run_logs_the_consistency_of_its_targets_when_asked(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path, selection={"rules": ["last"], "consistency": ASKED})
    for kind in ASKED:
        (value,) = curve(mlflow_store, result.path, f"test/consistency/{kind}").values()
        assert 0 < value <= 1
        assert result.chosen["last"].metrics[f"test/consistency/{kind}"] == value
    plain = run_small(mlflow_store, tmp_path / "plain", selection={"rules": ["last"]})
    assert not any("consistency" in key for key in plain.chosen["last"].metrics)
    assert plain.chosen["last"].metrics["test/acc_avg"] == result.chosen["last"].metrics["test/acc_avg"]


def test_it_decides_the_hash_only_where_it_is_asked_for(tmp_path):
    plain, asked = (
        prepare(small_config("sqlite://", tmp_path, selection={"consistency": found}))
        for found in ({}, ASKED)
    )
    unset = prepare(small_config("sqlite://", tmp_path))
    assert plain.config_hash == unset.config_hash != asked.config_hash
    assert not any("consistency" in key for key in flat(unset.config))
    assert flat(asked.config)["selection.consistency.rotation"] == "20.0"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"name": "synthetic:slabs"}},
            r"selection.consistency.shift is measured on classified images",
        ),
        ({"selection": {"consistency": {"scale": 100}}}, r"selection.consistency.scale=100 leaves no image"),
        ({"selection": {"consistency": {"blur": 1}}}, r"selection.consistency"),
        ({"selection": {"consistency": {"shift": -1}}}, r"selection.consistency"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(tmp_path, sections, message):
    with pytest.raises(UsageError, match=message):
        prepare(
            small_config("sqlite://", tmp_path, **{"selection": {"consistency": {"shift": 1}}, **sections})
        )
