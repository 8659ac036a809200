"""COD against its matrices written out one pair at a time, and what a discrepancy must do.

Shapes: E rows of a batch, B examples per row, N examples, D features.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.cod import cod, discrepancy
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}


def kernels(a_ND, b_ND):
    both = torch.cat([a_ND, b_ND])
    squared = (both[:, None] - both[None]).square().sum(-1)
    n = len(both)
    width = squared.detach().sum() / (n * n - n) / 4
    kernel = sum((-squared / (width * 2**i)).exp() for i in range(5))
    N = len(a_ND)
    return kernel[:N, :N], kernel[N:, N:], kernel[:N, N:], kernel[N:, :N]


def root(matrix):
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(eigenvalues.clamp(min=0).sqrt()) @ vectors.T


def plain(z_s, z_t, y_s, y_t, eps, official):
    n, eye = len(z_s), torch.eye(len(z_s), dtype=torch.float64)
    H = eye - torch.full_like(eye, 1 / n)
    Zss, Ztt, Zst, Zts = kernels(z_s, z_t)
    Yss, Ytt, _, Yts = kernels(y_s, y_t)
    I_s, I_t = torch.inverse(Yss @ Yss + eps * eye) @ Yss, torch.inverse(Ytt @ Ytt + eps * eye) @ Ytt
    C_s, C_t = (Yss @ I_s @ Zss @ I_s).trace(), (Ytt @ I_t @ Ztt @ I_t).trace()
    C_st = (Yts @ I_s @ Zst @ I_t).trace()
    A_s, A_t = torch.inverse(eps * n * eye + H @ Yss @ H), torch.inverse(eps * n * eye + H @ Ytt @ H)
    V_s, V_t = eps * (H @ Zss @ H @ A_s).trace(), eps * (H @ Ztt @ H @ A_t).trace()
    lift = 1e-4 * eye if official else 0
    B_s, B_t = root(n * eps * A_s + lift), root(n * eps * A_t + lift)
    singular = torch.linalg.svdvals((H @ B_t).T @ Zts @ (H @ B_s))
    if official:
        return -(C_s + C_t + 2 * C_st).sqrt() + V_s + V_t - 2 / n * singular[:-1].sum()
    return C_s + C_t - 2 * C_st + V_s + V_t - 2 / n * singular.sum()


@pytest.mark.parametrize("mode", ["metric", "official"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("E", [2, 3])
def test_penalty_is_the_mean_over_pairs(make_step, run, grads, mode, task, E):
    fields = {}
    if task == "regression":
        draw = torch.Generator().manual_seed(1)
        targets_EB = torch.randn(E, 6, generator=draw, dtype=torch.float64)
        fields = {"targets_EB": targets_EB, "loss": lambda out, y: (out[..., 0] - y).square()}
    step = make_step(E=E, **fields)
    y_EBL = F.one_hot(step.targets_EB, 3).double() if not fields else step.targets_EB[..., None]
    z_EBD = step.features_EBD
    found = [
        plain(z_EBD[i], z_EBD[j], y_EBL[i], y_EBL[j], 0.1, mode == "official")
        for i, j in combinations(range(E), 2)
    ]
    expected = sum(found) / len(found)
    _, metrics, _ = run(cod, step, mode=mode, ridge=0.1)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_metric_is_0_on_equal_samples_and_the_official_form_is_not():
    draw = torch.Generator().manual_seed(0)
    z_ND, y_NL = torch.randn(2, 12, 3, generator=draw, dtype=torch.float64)
    metric = discrepancy(z_ND, z_ND, y_NL, y_NL, 0.05, False)
    assert metric.item() == pytest.approx(0, abs=1e-12)
    assert discrepancy(z_ND, z_ND, y_NL, y_NL, 0.05, True).item() < -1


def test_metric_sees_that_features_mean_something_else_in_the_other_domain():
    draw = torch.Generator().manual_seed(0)
    y_N1, other_N1 = torch.randn(2, 40, 1, generator=draw, dtype=torch.float64)
    noise = 0.1 * torch.randn(2, 40, 1, generator=draw, dtype=torch.float64)
    same = discrepancy(y_N1 + noise[0], other_N1 + noise[1], y_N1, other_N1, 0.05, False)
    flipped = discrepancy(y_N1 + noise[0], -other_N1 + noise[1], y_N1, other_N1, 0.05, False)
    assert flipped > 3 * same > 0


def test_samples_may_differ_in_size():
    draw = torch.Generator().manual_seed(0)
    z_ND, y_N1 = torch.randn(8, 3, generator=draw).double(), torch.randn(8, 1, generator=draw).double()
    forth = discrepancy(z_ND, z_ND[:5], y_N1, y_N1[:5], 0.05, False)
    back = discrepancy(z_ND[:5], z_ND, y_N1[:5], y_N1, 0.05, False)
    torch.testing.assert_close(forth, back, **EXACT)


@pytest.mark.parametrize("mode", ["metric", "official"])
@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, E, B, mode):
    step = make_step(E=E, B=B)
    _, metrics, _ = run(cod, step, mode=mode)
    assert metrics["penalty"].isfinite() and grads(metrics["penalty"], step.model).isfinite().all()


@pytest.mark.parametrize("mode", ["metric", "official"])
def test_a_minibatch_of_one_class_stays_finite(make_step, run, grads, mode):
    step = make_step(targets_EB=torch.ones(3, 6, dtype=torch.long))
    _, metrics, _ = run(cod, step, mode=mode)
    assert metrics["penalty"].isfinite() and grads(metrics["penalty"], step.model).isfinite().all()


@pytest.mark.parametrize("mode", ["metric", "official"])
def test_keeps_the_contract(mode):
    check_algorithm(replace(cod, zero_on_identical_domains=mode == "metric"), mode=mode)
