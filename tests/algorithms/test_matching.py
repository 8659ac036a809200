"""CORAL, MMD and both CausIRL against loops over pairs and slices."""

from itertools import combinations
from typing import Any

import pytest
import torch

from dgharness.algorithms.causirl_coral import causirl_coral
from dgharness.algorithms.causirl_mmd import causirl_mmd
from dgharness.algorithms.coral import coral
from dgharness.algorithms.mmd import mmd
from dgharness.distances import gaussian_mmd, moments, pairwise, random_halves

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def coral_distance(x_ND, y_ND):
    mean = (x_ND.mean(0) - y_ND.mean(0)).square().mean()
    return mean + (torch.cov(x_ND.T) - torch.cov(y_ND.T)).square().mean()


def sun2016_distance(x_ND, y_ND):
    D = x_ND.shape[1]
    return (torch.cov(x_ND.T) - torch.cov(y_ND.T)).square().sum() / (4 * D**2)


def mmd_distance(x_ND, y_ND):
    def kernel(a_ND, b_ND):
        squared = (a_ND[:, None] - b_ND[None]).square().sum(-1)
        return sum((-(10.0**power) * squared).exp() for power in range(-3, 4))

    return kernel(x_ND, x_ND).mean() + kernel(y_ND, y_ND).mean() - 2 * kernel(x_ND, y_ND).mean()


@pytest.mark.parametrize(
    ("spec", "distance", "hp"),
    [
        (coral, coral_distance, {}),
        (coral, sun2016_distance, {"scaling": "sun2016"}),
        (mmd, mmd_distance, {}),
    ],
)
@pytest.mark.parametrize("E", [2, 4])
def test_penalty_is_the_mean_distance_over_pairs_of_domains(make_step, run, grads, spec, distance, hp, E):
    step = make_step(E=E)
    pairs = [distance(step.features_EBD[i], step.features_EBD[j]) for i, j in combinations(range(E), 2)]
    expected = sum(pairs) / len(pairs)
    _, metrics, _ = run(spec, step, **hp)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize(("spec", "distance"), [(causirl_coral, coral_distance), (causirl_mmd, mmd_distance)])
@pytest.mark.parametrize("cut_E", [[0.4, 0.9, 0.2], [0.0, 0.99, 0.5], [0.0, 0.0, 0.4]])
def test_causirl_compares_the_heads_of_all_rows_with_their_tails(
    make_step, run, grads, spec, distance, cut_E
):
    step = make_step(B=7, noise=torch.tensor(cut_E, dtype=torch.float64))
    cuts = [int(u * 7) for u in cut_E]
    heads = torch.cat([row_BD[:cut] for row_BD, cut in zip(step.features_EBD, cuts, strict=True)])
    tails = torch.cat([row_BD[cut:] for row_BD, cut in zip(step.features_EBD, cuts, strict=True)])
    expected = distance(heads, tails)
    _, metrics, _ = run(spec, step)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("spec", [causirl_coral, causirl_mmd])
@pytest.mark.parametrize(
    ("E", "B", "cut_E"), [(3, 4, [0.0, 0.0, 0.0]), (3, 4, [0.0, 0.3, 0.0]), (1, 2, [0.5])]
)
def test_causirl_has_no_penalty_and_no_gradient_where_a_part_is_too_small(
    make_step, run, grads, spec, E, B, cut_E
):
    step = make_step(E=E, B=B, noise=torch.tensor(cut_E, dtype=torch.float64))
    _, metrics, _ = run(spec, step)
    assert metrics["penalty"] == 0
    assert (grads(metrics["penalty"], step.model) == 0).all()


@pytest.mark.parametrize("spec", [causirl_coral, causirl_mmd])
def test_causirl_does_not_hide_what_is_not_finite(make_step, run, spec):
    step = make_step()
    with torch.no_grad():
        step.model.featurizer[0].bias.fill_(float("nan"))
    assert run(spec, step)[1]["penalty"].isnan()


@pytest.mark.parametrize("spec", [causirl_coral, causirl_mmd])
def test_causirl_cuts_are_uniform_on_0_to_B_minus_1(spec):
    cut_E = spec.noise(10_000, 5, torch.Generator().manual_seed(0))
    sizes, counts = (cut_E * 5).floor().unique(return_counts=True)
    assert sizes.tolist() == [0, 1, 2, 3, 4]
    assert counts.min() > 1800


@pytest.mark.parametrize("B", [1, 3, 5, 7, 64, 100, 1000])
def test_the_largest_cut_still_leaves_an_example(B):
    largest = torch.tensor([1 - 2**-24])
    assert random_halves(largest, B).sum(1).tolist() == [B - 1, 1]


def test_distances_keep_their_precision_under_autocast():
    z_GND = 10 + torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    member_2N = torch.eye(2).repeat_interleave(30, 1)

    def distances():
        mean_GD, cov_GDD = moments(z_GND)
        return pairwise(mean_GD), pairwise(cov_GDD), gaussian_mmd(z_GND.flatten(0, 1), member_2N)

    with torch.autocast("cpu", torch.bfloat16):
        lowered = distances()
    torch.testing.assert_close(lowered, distances(), rtol=0, atol=0)
