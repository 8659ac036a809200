"""The linear unit tests: noise, margins and rates as published, and least squares on them in closed form."""

from __future__ import annotations

import pytest
import torch

from dgharness.data.protocols import official
from dgharness.data.synthetic.unit_tests import (
    UnitTestOptions,
    example_1,
    example_2,
    example_3,
    unit_test_1,
    unit_test_1s,
    unit_test_3,
)

EXAMPLES = [example_1, example_2, example_3]


def least_squares(environments):
    """Coefficients of the inputs and of a constant, fitted to all environments together."""
    x = torch.cat([examples.x.double() for examples in environments.values()])
    y = torch.cat([examples.y_N.double() for examples in environments.values()])
    return torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution[:, 0]


def test_error(generated):
    """Mean over environments of the squared test error of least squares."""
    w = least_squares(generated["train"])
    errors = [
        (examples.x.double() @ w[:-1] + w[-1] - examples.y_N).square().mean()
        for examples in generated["test"].values()
    ]
    return torch.stack(errors).mean()


test_error.__test__ = False


@pytest.mark.parametrize("scramble", [False, True])
def test_least_squares_on_example_1_has_the_published_errors(scramble):
    errors = {
        oracle: torch.stack(
            [test_error(example_1(n=1000, scramble=scramble, oracle=oracle, seed=s)) for s in range(40)]
        ).mean()
        for oracle in (False, True)
    }
    assert errors[False] == pytest.approx(13.36, abs=0.7)  # 1.49 is the deviation of one seed
    assert errors[True] == pytest.approx(10.42, abs=0.2)


def test_example_1_scales_the_noise_of_causes_and_target_and_not_that_of_effects():
    generated = example_1(n=40_000)
    for name, sigma in (("E0", 0.1), ("E1", 1.5), ("E2", 2.0)):
        examples = generated["train"][name]
        x, y = examples.x[:, :5].double(), examples.y_N.double()
        assert x.std().item() == pytest.approx(sigma, rel=0.01)
        residual = y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
        assert residual.var().item() == pytest.approx(5 * sigma**2, rel=0.03)
    assert generated["train"]["E0"].x[:, 5:].std().item() == pytest.approx(1.0, abs=0.02)


def test_the_solution_of_example_1_leaves_only_noise():
    for scramble in (False, True):
        generated = example_1(n=40_000, scramble=scramble)
        for name, sigma in (("E0", 0.1), ("E2", 2.0)):
            examples = generated["test"][name]
            error = (examples.x @ generated.solution_F - examples.y_N).square().mean()
            assert error.item() == pytest.approx(5 * sigma**2, rel=0.03)


def test_example_2_goes_by_a_faint_foreground_and_a_strong_background():
    generated = example_2(n=40_000)
    for name, p, s in (("E0", 0.95, 0.3), ("E1", 0.97, 0.5), ("E2", 0.99, 0.7)):
        examples = generated["train"][name]
        foreground, background = examples.x[:, :5], examples.x[:, 5:]
        assert torch.equal(examples.y_N, (foreground.sum(1) > 0).long())
        assert examples.y_N.double().mean().item() == pytest.approx(s, abs=0.01)
        agree = (background.mean(1) > 0) == (examples.y_N == 1)
        assert agree.double().mean().item() == pytest.approx(p, abs=0.005)
        of_cows = examples.x[(examples.y_N == 1) & agree]
        assert of_cows.mean(0).tolist() == pytest.approx([0.01] * 5 + [1.0] * 5, rel=0.05)
        assert of_cows[:, :5].std().item() == pytest.approx(0.01 / 10**0.5, rel=0.02)
        assert of_cows[:, 5:].std().item() == pytest.approx(1 / 10**0.5, rel=0.02)


def test_example_3_has_one_small_margin_everywhere_and_a_large_one_of_each_environment():
    generated = example_3(n=20_000)
    centres = []
    for examples in generated["train"].values():
        first, second = (examples.x[examples.y_N == y] for y in (0, 1))
        assert len(first) == len(second) == 10_000
        assert first.mean(0)[:5].tolist() == pytest.approx([0.1] * 5, abs=0.01)
        assert torch.allclose(first.mean(0), -second.mean(0), atol=0.01)
        assert (first - first.mean(0)).std().item() == pytest.approx(0.1, rel=0.02)
        centres.append(first.mean(0)[5:])
    assert torch.cdist(torch.stack(centres), torch.stack(centres)).fill_diagonal_(9).min() > 0.5


def test_an_odd_number_of_examples_stays_odd():
    counts = example_3(n=7)["train"]["E0"].y_N.bincount()
    assert counts.tolist() == [3, 4]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_oracle_sees_the_same_examples_with_the_spurious_block_permuted(example):
    plain, oracle = example(n=500), example(n=500, oracle=True)
    for split in ("train", "val", "test"):
        for name in plain[split]:
            one, other = plain[split][name], oracle[split][name]
            assert torch.equal(one.y_N, other.y_N) and torch.equal(one.x[:, :5], other.x[:, :5])
            assert torch.equal(one.x[:, 5:], other.x[:, 5:]) == (split == "test")
            assert torch.equal(one.x[:, 5].sort().values, other.x[:, 5].sort().values)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_link_of_spurious_inputs_and_label_holds_until_the_test(example):
    generated = example(n=20_000, seed=1)

    def link(split, name):
        """Share of the label's variance that the spurious block explains."""
        examples = generated[split][name]
        z, y = examples.x[:, 5:].double(), examples.y_N.double()
        z, y = z - z.mean(0), y - y.mean()
        fitted = z @ torch.linalg.lstsq(z, y[:, None]).solution[:, 0]
        return (fitted.var() / y.var()).item()

    for name in ("E1", "E2"):
        assert min(link("train", name), link("val", name)) > 0.15 > 0.01 > link("test", name)


@pytest.mark.parametrize("example", EXAMPLES)
def test_scrambling_turns_every_input_by_one_orthogonal_matrix(example):
    plain, scrambled = example(n=50), example(n=50, scramble=True)
    turn = scrambled.mixing_FF
    assert torch.allclose(turn @ turn.T, torch.eye(10), atol=1e-5)
    assert not torch.allclose(turn.abs(), torch.eye(10), atol=0.1)
    for split in plain.splits:
        for name, examples in plain[split].items():
            assert torch.allclose(scrambled[split][name].x, examples.x @ turn, atol=1e-5)
            assert torch.equal(scrambled[split][name].y_N, examples.y_N)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_seed_decides_everything_and_more_environments_change_none(example):
    one, again, more, other = example(n=30), example(n=30), example(n=30, envs=6), example(n=30, seed=1)
    assert list(more["train"]) == ["E0", "E1", "E2", "E3", "E4", "E5"]
    for split in one.splits:
        for name, examples in one[split].items():
            assert torch.equal(examples.x, again[split][name].x)
            assert torch.equal(examples.x, more[split][name].x)
            assert not torch.equal(examples.x, other[split][name].x)
    assert not torch.equal(one["train"]["E0"].x, one["val"]["E0"].x)


def test_further_environments_of_example_1_have_noise_between_a_hundredth_and_ten():
    stds = [e.x[:, :5].std().item() for e in list(example_1(envs=40, n=200)["train"].values())[3:]]
    assert 0.009 < min(stds) < 0.05 and 2 < max(stds) < 11


@pytest.mark.parametrize("example", EXAMPLES)
def test_other_sizes_and_no_spurious_inputs_at_all(example):
    assert example(n=20, d_inv=3, d_spu=8)["test"]["E2"].x.shape == (20, 11)
    alone = example(n=20, d_spu=0, scramble=True)["train"]["E0"]
    assert alone.x.shape == (20, 5) and alone.x.isfinite().all()


def test_as_datasets_they_come_with_their_split():
    dataset = unit_test_1.load(None, None, 3, UnitTestOptions(n=50))
    splits = official(dataset, dataset.domains, trial_seed=3)
    assert (dataset.name, dataset.task.name, dataset.toy) == ("synthetic:unit-test-1", "regression", True)
    assert splits.train_domains == splits.targets == ("E0", "E1", "E2")
    found = example_1(n=50, seed=3)
    for split in ("train", "val", "test"):
        for name, rows in splits.rows[split].items():
            assert torch.equal(dataset.reader(torch.from_numpy(rows)), found[split][name].x)
            assert torch.equal(dataset.targets_M[rows], found[split][name].y_N)
    scrambled = unit_test_1s.load(None, None, 3, UnitTestOptions(n=50))
    assert torch.equal(scrambled.targets_M, dataset.targets_M)
    assert unit_test_3.load(None, None, 0, UnitTestOptions(n=5)).task.name == "classification"
