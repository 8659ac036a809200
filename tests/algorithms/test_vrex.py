"""V-REx and ERM against their formulas."""

from typing import Any

import torch

from dgharness.algorithms.erm import erm
from dgharness.algorithms.vrex import vrex

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def test_vrex_is_the_mean_squared_deviation_of_the_risks(make_step, run, grads):
    step = make_step()
    risks = [step.loss(step.logits_EBC[e], step.targets_EB[e]).mean() for e in range(3)]
    expected = sum((risk - sum(risks) / 3) ** 2 for risk in risks) / 3
    loss, metrics, _ = run(vrex, step)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(loss, sum(risks) / 3 + 10 * expected, **EXACT)
    torch.testing.assert_close(
        grads(loss, step.model), grads(sum(risks) / 3 + 10 * expected, step.model), **EXACT
    )


def test_erm_is_the_mean_loss_of_all_examples(make_step, run, grads):
    step = make_step()
    expected = step.loss(step.model(step.x), step.targets_EB.flatten()).mean()
    loss, _, _ = run(erm, step)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)
