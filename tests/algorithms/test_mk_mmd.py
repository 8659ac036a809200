"""MK-MMD against a loop over pairs, kernels and examples."""

from itertools import combinations, product
from typing import Any

import pytest
import torch

from dgharness.algorithms.mk_mmd import mk_mmd
from dgharness.distances import adaptive_mmd
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def plain(x_ND, y_MD):
    both = [*x_ND, *y_MD]
    n = len(both)
    total = sum((a - b).square().sum() for a, b in product(both, both)).detach()
    base = total / (n * n - n) / 4  # four is kappa to the power of half the five kernels

    def mean_kernel(left, right):
        values = [
            sum((-(a - b).square().sum() / (base * 2**i)).exp() for i in range(5))
            for a, b in product(left, right)
        ]
        return sum(values) / len(values)

    return mean_kernel(x_ND, x_ND) + mean_kernel(y_MD, y_MD) - 2 * mean_kernel(x_ND, y_MD)


@pytest.mark.parametrize("E", [2, 3])
def test_penalty_is_the_mean_over_pairs_and_the_width_passes_no_gradient(make_step, run, grads, E):
    step = make_step(E=E)
    found = [plain(step.features_EBD[i], step.features_EBD[j]) for i, j in combinations(range(E), 2)]
    expected = sum(found) / len(found)
    _, metrics, _ = run(mk_mmd, step)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_samples_may_differ_in_size():
    draw = torch.Generator().manual_seed(0)
    x_ND = torch.randn(4, 3, generator=draw, dtype=torch.float64)
    y_MD = torch.randn(7, 3, generator=draw, dtype=torch.float64) + 1
    torch.testing.assert_close(adaptive_mmd(x_ND, y_MD), plain(x_ND, y_MD), **EXACT)


def test_scale_of_the_features_does_not_matter():
    draw = torch.Generator().manual_seed(0)
    x_ND, y_MD = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(adaptive_mmd(1e3 * x_ND, 1e3 * y_MD), adaptive_mmd(x_ND, y_MD), **EXACT)


@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, E, B):
    step = make_step(E=E, B=B)
    _, metrics, _ = run(mk_mmd, step)
    assert metrics["penalty"].isfinite() and grads(metrics["penalty"], step.model).isfinite().all()
    assert E > 1 or metrics["penalty"] == 0


def test_features_that_are_all_alike_are_at_no_distance():
    z_ND = torch.ones(4, 3, requires_grad=True)
    value = adaptive_mmd(z_ND[:2], z_ND[2:])
    value.backward()
    assert value == 0 and z_ND.grad is not None and (z_ND.grad == 0).all()


def test_precision_is_kept_under_autocast():
    draw = torch.Generator().manual_seed(0)
    x_ND, y_MD = torch.randn(2, 30, 4, generator=draw) + 10
    with torch.autocast("cpu", torch.bfloat16):
        lowered = adaptive_mmd(x_ND, y_MD)
    assert lowered.equal(adaptive_mmd(x_ND, y_MD))


def test_keeps_the_contract():
    check_algorithm(mk_mmd)
