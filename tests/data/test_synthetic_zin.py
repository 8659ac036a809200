"""ZIN's toy: how often the inputs tell the truth, and when."""

from __future__ import annotations

import pytest
import torch

from dgharness.data.protocols import official
from dgharness.data.synthetic.zin import ZinOptions, temporal, zin

TRAIN = {"+99.9%": 0.999, "+90%": 0.9}
TEST = {"+99.9%": 0.999, "+80%": 0.8, "-80%": 0.2, "-99.9%": 0.001}


def test_spurious_inputs_agree_as_often_as_their_environment_says_and_invariant_ones_always_alike():
    generated = temporal(n=40_000)
    for split, agreements in (("train", TRAIN), ("val", TRAIN), ("test", TEST)):
        assert list(generated[split]) == list(agreements)
        for name, agree in agreements.items():
            examples = generated[split][name]
            y, spurious = examples.y_N, examples.attributes["spurious"]
            assert (spurious == y).double().mean().item() == pytest.approx(agree, abs=0.015)
            assert y.double().mean().item() == pytest.approx(0.5, abs=0.03)
            sign = 2.0 * spurious[:, None] - 1
            assert (examples.x[:, 5:] - sign).mean().item() == pytest.approx(0.0, abs=0.02)
            # An input of the right sign nine times in ten has mean 0.8 along it.
            along = examples.x[:, :5] * (2.0 * y[:, None] - 1)
            assert along.mean().item() == pytest.approx(0.8, abs=0.03)


def test_noise_is_that_of_unit_gaussians_about_either_sign():
    examples = temporal(noise=0.0, n=40_000)["train"]["+90%"]
    residual = examples.x[:, :5] - (2.0 * examples.y_N[:, None] - 1)
    assert residual.std().item() == pytest.approx(1.0, abs=0.01)


def test_time_runs_through_the_environments_in_order():
    generated = temporal(n=400)
    for split in generated.splits:
        time = torch.cat([examples.attributes["time"] for examples in generated[split].values()])
        assert (time.diff() > 0).all() and (time[0], time[-1]) == (0, 1)


def test_the_seed_decides_everything():
    one, again, other = (temporal(n=80, seed=seed)["test"]["-80%"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_a_domain_may_be_trained_on_and_tested():
    dataset = zin.load(None, None, 0, ZinOptions(n=400))
    splits = official(dataset, list(TEST), 0)
    assert splits.train_domains == tuple(TRAIN) and splits.targets == tuple(TEST)
    assert [len(rows) for rows in splits.rows["train"].values()] == [200, 200]
    assert sum(len(rows) for rows in splits.rows["val"].values()) == 100
    assert dataset.attributes_M["time"].dtype == torch.float32 and "split" not in dataset.attributes_M
