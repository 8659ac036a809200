"""The turning boundary: where it stands, how evenly time passes, and what an old rule is worth later."""

from __future__ import annotations

import math

import pytest
import torch

from dgharness.data.protocols import default_targets, temporal
from dgharness.data.synthetic.drifting import DriftingOptions, direction, drifting, turning


def all_of(generated):
    examples = generated["train"].values()
    return (
        torch.cat([each.x for each in examples]),
        torch.cat([each.y_N for each in examples]),
        torch.cat([each.attributes["time"] for each in examples]),
    )


def test_without_noise_the_label_is_the_side_of_the_boundary_at_that_very_time():
    x, y, time = all_of(turning(noise=0.0, speed=120.0, n=2000))
    angle = torch.atan2(x[:, 1], x[:, 0]).double()
    assert torch.equal(y == 1, (angle - math.radians(120) * time).cos() > 0)


def test_noise_flips_as_many_labels_as_it_says():
    clean, noisy = (all_of(turning(noise=noise, n=5000)) for noise in (0.0, 0.1))
    assert torch.equal(clean[0], noisy[0])
    assert (clean[1] != noisy[1]).double().mean().item() == pytest.approx(0.1, abs=0.006)


def test_time_is_even_and_buckets_follow_one_another():
    generated = turning(buckets=4, n=1000)
    assert list(generated["train"]) == ["0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1"]
    for number, examples in enumerate(generated["train"].values()):
        time = examples.attributes["time"] - number / 4
        assert 0 <= time.min() < 0.002 and 0.248 < time.max() < 0.25
        assert time.mean().item() == pytest.approx(0.125, abs=4 * 0.25 / math.sqrt(12 * 1000))


@pytest.mark.parametrize("speed", [0.0, 45.0, 180.0])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_rule_of_time_0_loses_what_the_angle_says(speed, noise):
    n = 20_000
    generated = turning(buckets=4, speed=speed, noise=noise, n=n)
    for number, examples in enumerate(generated["train"].values()):
        right = ((examples.x[:, 0] > 0) == (examples.y_N == 1)).double().mean().item()
        turned = speed / 180 * (number + 0.5) / 4  # in parts of a half turn, on average over the bucket
        expected = (1 - noise) * (1 - turned) + noise * turned
        assert right == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(n))


def test_inputs_never_shift():
    for examples in turning(n=20_000, dim=3)["train"].values():
        assert examples.x.mean(0).abs().max() < 0.03
        assert (torch.cov(examples.x.T) - torch.eye(3)).abs().max() < 0.05


def test_at_speed_0_the_boundary_stands_still():
    for examples in turning(speed=0.0, noise=0.0, n=500)["train"].values():
        assert torch.equal(examples.y_N == 1, examples.x[:, 0] > 0)


def test_the_direction_is_a_unit_vector_that_has_turned_by_the_speed():
    time = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    expected = [[1, 0], [math.cos(math.pi / 6), 0.5], [0.5, math.sin(math.pi / 3)]]
    assert direction(time, 60.0).tolist() == [pytest.approx(pair, abs=1e-12) for pair in expected]


def test_the_seed_decides_everything_and_other_buckets_nothing():
    one, again, other = (turning(n=50, seed=seed)["train"]["0.5 to 0.6"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_it_is_trained_on_the_past_and_tested_on_the_future():
    dataset = drifting.load(None, None, 0, DriftingOptions(n=40))
    assert dataset.toy and dataset.defaults.protocol == "temporal"
    assert dataset.manifest["time"].dtype == "float64"
    splits = temporal(dataset, default_targets("temporal", dataset), 0)
    assert len(splits.train_domains) == 5 and splits.targets[0] == "0.5 to 0.6"
    assert [len(rows) for rows in splits.rows["test"].values()] == [40] * 5
