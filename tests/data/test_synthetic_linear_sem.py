"""The linear structural equations of the IRM paper: least squares on them errs as its table says."""

from __future__ import annotations

import pytest
import torch

from dgharness.data.synthetic.linear_sem import LinearSemOptions, chain, linear_sem
from dgharness.errors import UsageError


def squared_errors(**switches):
    """Mean squared error of the least-squares coefficients of causes and of effects, over 20 draws."""
    errors = []
    for seed in range(20):
        generated = chain(**switches, seed=seed)
        x = torch.cat([examples.x.double() for examples in generated["train"].values()])
        y = torch.cat([examples.y_N.double() for examples in generated["train"].values()])
        w = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
        errors.append((w - generated.solution_F).square().reshape(2, -1).mean(1))
    return torch.stack(errors).mean(0).tolist()


@pytest.mark.parametrize(
    ("hidden", "hetero", "causes", "effects"),  # ERM in the authors' synthetic_results.txt
    [
        (False, True, 0.821, 0.821),
        (False, False, 0.0091, 0.0090),
        (True, True, 0.774, 0.774),
        (True, False, 0.0189, 0.0179),
    ],
)
def test_least_squares_has_the_published_coefficient_errors(hidden, hetero, causes, effects):
    assert squared_errors(hidden=hidden, hetero=hetero) == pytest.approx([causes, effects], rel=0.1)


def test_scrambling_changes_no_error_in_all():
    plain, scrambled = squared_errors(), squared_errors(scramble=True)
    assert sum(plain) == pytest.approx(sum(scrambled), rel=1e-3)


@pytest.mark.parametrize("hetero", [True, False])
def test_the_environment_scales_the_noise_of_the_target_or_of_the_effects(hetero):
    generated = chain(n=20_000, hetero=hetero)
    for name, sigma in (("sigma=0.2", 0.2), ("sigma=5", 5.0)):
        examples = generated["train"][name]
        x, z = examples.x[:, :5], examples.x[:, 5:]
        assert x.var().item() == pytest.approx(2 * sigma**2, rel=0.03)
        of_target = 5 * (sigma**2 if hetero else 1.0)
        assert (examples.y_N - x.sum(1)).var().item() == pytest.approx(of_target, rel=0.04)
        of_effects = 5 * (1.0 if hetero else sigma**2)
        assert (z.sum(1) - examples.y_N).var().item() == pytest.approx(of_effects, rel=0.04)


@pytest.mark.parametrize("scramble", [False, True])
def test_the_causes_predict_equally_well_whatever_their_scale(scramble):
    generated = chain(n=20_000, hetero=False, scramble=scramble)
    for examples in generated["train"].values():
        error = (examples.x @ generated.solution_F - examples.y_N).square().mean()
        assert error.item() == pytest.approx(5.0, rel=0.05)


def test_the_seed_decides_everything():
    one, again, other = (chain(n=10, hidden=True, seed=seed)["train"]["sigma=2"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_the_last_environment_is_held_out():
    dataset = linear_sem.load(None, None, 0, LinearSemOptions(n=40))
    assert dataset.domains == ("sigma=0.2", "sigma=2", "sigma=5") and dataset.groups == ("domain",)
    assert dataset.defaults.protocol == "leave-one-domain-out" and dataset.task.name == "regression"
    with pytest.raises(UsageError, match="must not name a value twice"):
        linear_sem.load(None, None, 0, LinearSemOptions(sigmas=(1.0, 1.0)))
