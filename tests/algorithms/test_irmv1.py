"""IRMv1 against the gradient of a dummy scale, taken by autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.irmv1 import irmv1
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def slope(step, row, examples):
    """Derivative of the mean risk of some examples in a factor of their logits."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    logits, targets = step.logits_EBC[row, examples], step.targets_EB[row, examples]
    return torch.autograd.grad(step.loss(logits * scale, targets).mean(), scale, create_graph=True)[0]


@pytest.mark.parametrize("B", [2, 5, 6])
def test_default_is_the_product_of_the_slopes_of_even_and_odd_examples(make_step, run, grads, B):
    step = make_step(B=B)
    expected = torch.stack(
        [slope(step, e, slice(0, None, 2)) * slope(step, e, slice(1, None, 2)) for e in range(3)]
    ).mean()
    _, metrics, _ = run(irmv1, step)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_biased_option_is_the_squared_slope(make_step, run, grads):
    step = make_step()
    expected = torch.stack([slope(step, e, slice(None)).square() for e in range(3)]).mean()
    _, metrics, _ = run(irmv1, step, unbiased=False)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_any_loss_per_example_will_do(make_step, run):
    step = make_step(loss=lambda outputs, targets: (outputs[..., 0] - targets).square())
    outputs_EB, residual_EB = step.logits_EBC[..., 0], step.logits_EBC[..., 0] - step.targets_EB
    expected = (2 * outputs_EB * residual_EB).mean(1).square().mean()
    _, metrics, _ = run(irmv1, step, unbiased=False)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)


def test_one_example_per_domain_has_no_second_half_and_no_penalty(make_step, run):
    step = make_step(B=1)
    assert run(irmv1, step)[1]["penalty"] == 0
    assert run(irmv1, step, unbiased=False)[1]["penalty"] > 0


def test_weight_is_1_before_the_anneal_step_and_its_own_from_there(make_step, run):
    for t, weight in [(499, 1.0), (500, 100.0)]:
        loss, metrics, _ = run(irmv1, make_step(t=t))
        torch.testing.assert_close(loss, metrics["risk"] + weight * metrics["penalty"], **EXACT)


def binary(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[..., 0], (targets > 0).double(), reduction="none")


def affine_gradient(step, row, examples=slice(None)):
    """Gradient of the mean risk of some examples in a factor of their outputs and in a shift of each."""
    logits, targets = step.logits_EBC[row, examples], step.targets_EB[row, examples]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    shift_C = torch.zeros(logits.shape[-1], dtype=torch.float64, requires_grad=True)
    risk = step.loss(logits * scale + shift_C, targets).mean()
    found = torch.autograd.grad(risk, [scale, shift_C], create_graph=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("fields", [{}, {"loss": binary}])
def test_affine_option_adds_a_shift_of_every_output_and_sums_over_the_domains(make_step, run, grads, fields):
    step = make_step(**fields)
    expected = sum(affine_gradient(step, e).square().sum() for e in range(3))
    _, metrics, _ = run(irmv1, step, affine=True, unbiased=False)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("B", [5, 6])
def test_affine_option_multiplies_the_halves_gradients_where_it_is_to_be_unbiased(make_step, run, grads, B):
    step, even, odd = make_step(B=B), slice(0, None, 2), slice(1, None, 2)
    expected = sum(affine_gradient(step, e, even) @ affine_gradient(step, e, odd) for e in range(3))
    _, metrics, _ = run(irmv1, step, affine=True)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_affine_option_conforms_in_force():
    check_algorithm(irmv1, anneal_steps=3, weight=1.0, affine=True, unbiased=False)
