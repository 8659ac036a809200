"""Centre loss against the paper's sums over examples.

Shapes: E rows of a batch, B examples per row, C classes, D features.
"""

from typing import Any

import pytest
import torch

from dgharness.algorithms.center_loss import center_loss
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def start_at(objective, center_CD):
    objective.center_CD.copy_(center_CD)
    return objective


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_loss_pulls_to_the_centres_and_the_centres_follow_by_the_counted_update(make_step, run, grads, rate):
    step, hp = make_step(), center_loss.hparams(weight=0.4, center_rate=rate)
    step.targets_EB[step.targets_EB == 2] = 1  # class 2 is missing
    center_CD = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = start_at(run(center_loss, make_step())[2], center_CD)
    z_ND, y_N = step.features_EBD.flatten(0, 1), step.targets_EB.flatten()
    half = sum((z - center_CD[y]).square().sum() for z, y in zip(z_ND, y_N, strict=True)) / len(z_ND) / 2
    expected = step.risks_E.mean() + 0.4 * half
    loss, metrics = objective(step, hp)
    torch.testing.assert_close(metrics["penalty"], half, **EXACT)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)
    for k in range(3):
        pull = sum((center_CD[k] - z for z in z_ND[y_N == k]), torch.zeros(5)) / (1 + (y_N == k).sum())
        torch.testing.assert_close(objective.center_CD[k], center_CD[k] - rate * pull.detach(), **EXACT)
    assert objective.center_CD[2].equal(center_CD[2])


@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, E, B):
    step = make_step(E=E, B=B)
    loss, metrics, _ = run(center_loss, step)
    assert metrics["penalty"].isfinite() and grads(loss, step.model).isfinite().all()


@pytest.mark.parametrize("hp", [{}, {"weight": 1.0, "center_rate": 0.1}])
def test_keeps_the_contract(hp):
    check_algorithm(center_loss, **hp)
