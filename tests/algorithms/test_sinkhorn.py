"""The Sinkhorn divergence against plain scaling of the kernel matrix, and its laws."""

from itertools import combinations
from typing import Any

import pytest
import torch

from dgharness.algorithms.sinkhorn import sinkhorn
from dgharness.distances import entropic_ot, sinkhorn_divergence
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def plain_ot(x_ND, y_MD, eps):
    """The primal value of the plan that two hundred plain scalings find."""
    cost = torch.stack([torch.stack([(a - b).square().sum() / 2 for b in y_MD]) for a in x_ND])
    uniform = torch.full_like(cost, 1 / cost.numel())
    kernel = uniform * (-cost / eps).exp()
    u, v = cost.new_ones(len(x_ND)), cost.new_ones(len(y_MD))
    for _ in range(200):
        u = 1 / len(x_ND) / (kernel @ v)
        v = 1 / len(y_MD) / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    return (plan * cost).sum() + eps * (plan * (plan / uniform).log()).sum()


def plain_divergence(x_ND, y_MD, eps):
    return plain_ot(x_ND, y_MD, eps) - (plain_ot(x_ND, x_ND, eps) + plain_ot(y_MD, y_MD, eps)) / 2


def samples(n, m, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=draw, dtype=dtype), torch.randn(m, 3, generator=draw, dtype=dtype) + 1


def test_transport_cost_is_the_primal_value_of_the_plan():
    x_ND, y_MD = samples(6, 9)
    torch.testing.assert_close(entropic_ot(x_ND, y_MD, 1.0), plain_ot(x_ND, y_MD, 1.0), **EXACT)


@pytest.mark.parametrize("E", [2, 3])
@pytest.mark.parametrize("pairs", ["mean", "worst"])
@pytest.mark.parametrize("softmax", [False, True])
def test_penalty_is_the_mean_or_the_worst_over_pairs(make_step, run, grads, E, pairs, softmax):
    step, eps = make_step(E=E), 3.0
    z_EBD = step.features_EBD.softmax(-1) if softmax else step.features_EBD
    found = torch.stack([plain_divergence(z_EBD[i], z_EBD[j], eps) for i, j in combinations(range(E), 2)])
    expected = found.mean() if pairs == "mean" else found.max()
    _, metrics, _ = run(sinkhorn, step, eps=eps, pairs=pairs, softmax=softmax)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_divergence_of_a_sample_from_itself_is_exactly_0():
    for dtype in (torch.float32, torch.float64):
        x_ND, _ = samples(8, 1, dtype=dtype)
        assert sinkhorn_divergence(x_ND, x_ND, 2.5e-3) == 0


def test_a_shift_costs_half_its_squared_length():
    x_ND, _ = samples(40, 1)
    shift_D = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        sinkhorn_divergence(x_ND, x_ND + shift_D, 1.0), torch.tensor(1.5, dtype=torch.float64), **EXACT
    )
    small_eps = sinkhorn_divergence(x_ND, x_ND + shift_D, 2.5e-3)
    assert small_eps == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize("eps", [1e-3, 1.0])
def test_it_is_symmetric_before_and_after_convergence(eps):
    x_ND, y_MD = samples(6, 9)
    forth, back = sinkhorn_divergence(x_ND, y_MD, eps), sinkhorn_divergence(y_MD, x_ND, eps)
    torch.testing.assert_close(forth, back, **EXACT)


def test_a_batch_of_pairs_is_each_pair_alone():
    both = [samples(6, 9, seed) for seed in range(4)]
    together = sinkhorn_divergence(torch.stack([x for x, _ in both]), torch.stack([y for _, y in both]), 0.1)
    alone = torch.stack([sinkhorn_divergence(x, y, 0.1) for x, y in both])
    torch.testing.assert_close(together, alone, **EXACT)


def test_single_precision_holds_at_the_smallest_eps_and_under_autocast():
    x_ND, y_MD = samples(30, 40)
    exact = sinkhorn_divergence(x_ND, y_MD, 1e-3)
    single = sinkhorn_divergence(x_ND.float(), y_MD.float(), 1e-3)
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert sinkhorn_divergence(x_ND.float(), y_MD.float(), 1e-3).equal(single)


@pytest.mark.parametrize("pairs", ["mean", "worst"])
@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, E, B, pairs):
    step = make_step(E=E, B=B)
    _, metrics, _ = run(sinkhorn, step, pairs=pairs)
    assert metrics["penalty"].isfinite() and grads(metrics["penalty"], step.model).isfinite().all()
    assert E > 1 or metrics["penalty"] == 0


@pytest.mark.parametrize("hp", [{}, {"pairs": "worst", "softmax": True, "eps": 0.1}])
def test_keeps_the_contract(hp):
    check_algorithm(sinkhorn, **hp)
