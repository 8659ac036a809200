"""BIRM against the derivative of the pooled risk in a classifier for every domain, by autograd.

Shapes: E rows of a batch, S draws of a domain's classifier.
"""

from typing import Any

import pytest
import torch

from dgharness.algorithms.birm import birm
from dgharness.algorithms.irmv1 import irmv1
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def some_noise(E=3, S=10):
    return torch.randn(E, S, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def pooled_slopes(step, w_E, examples=slice(None)):
    """Gradient [E], times m, of the mean loss over all domains in one classifier for each."""
    w_E = w_E.clone().requires_grad_()
    outputs = (w_E[:, None, None] * step.logits_EBC)[:, examples]
    risk = step.loss(outputs, step.targets_EB[:, examples]).mean()
    return len(w_E) * torch.autograd.grad(risk, w_E, create_graph=True)[0]


def test_penalty_is_the_mean_over_draws_of_the_squared_slopes_of_the_pooled_risk(make_step, run, grads):
    step = make_step(noise=some_noise())
    draws = [1 + 0.2 * step.noise[:, s] for s in range(10)]
    expected = sum(pooled_slopes(step, w_E).square().mean() for w_E in draws) / 10
    _, metrics, _ = run(birm, step, sigma=0.2, unbiased=False)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_default_multiplies_the_slopes_of_even_and_odd_examples(make_step, run, grads):
    step, even, odd = make_step(noise=some_noise()), slice(0, None, 2), slice(1, None, 2)
    draws = [1 + 0.2 * step.noise[:, s] for s in range(10)]
    expected = sum((pooled_slopes(step, w, even) * pooled_slopes(step, w, odd)).mean() for w in draws) / 10
    _, metrics, _ = run(birm, step, sigma=0.2)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("unbiased", [True, False])
def test_a_posterior_without_width_is_irmv1(make_step, run, unbiased):
    step = make_step(noise=some_noise())
    ours = run(birm, step, sigma=0.0, unbiased=unbiased)[1]["penalty"]
    torch.testing.assert_close(ours, run(irmv1, step, unbiased=unbiased)[1]["penalty"], **EXACT)


def test_ten_classifiers_are_drawn_for_every_domain():
    noise_ES = birm.noise(1000, 4, torch.Generator().manual_seed(0))
    assert noise_ES.shape == (1000, 10)
    assert abs(noise_ES.mean()) < 0.05 and abs(noise_ES.std() - 1) < 0.05


def test_weight_is_0_before_the_anneal_step_and_its_own_from_there(make_step, run):
    for t, weight in [(199, 0.0), (200, 1e4)]:
        loss, metrics, _ = run(birm, make_step(t=t, noise=some_noise()))
        torch.testing.assert_close(loss, metrics["risk"] + weight * metrics["penalty"], **EXACT)


def test_it_conforms_in_force():
    check_algorithm(birm)
    check_algorithm(birm, anneal_steps=3, weight=1.0)
    check_algorithm(birm, anneal_steps=3, weight=1.0, unbiased=False)
