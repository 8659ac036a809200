"""EQRM against the kernel density estimate written out, its derivative, and DomainBed's updates.

Shapes: E rows of a batch.
"""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from side_by_side import LR, Reference, assert_same_updates
from torch.distributions import Normal

from dgharness.algorithms.eqrm import eqrm, quantile
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def bandwidth(risks_E):
    m = len(risks_E)
    mean = sum(risks_E) / m
    return 1.06 * (sum((risk - mean) ** 2 for risk in risks_E) / (m - 1)) ** 0.5 * m ** (-1 / 5)


def some_risks(E, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(E, generator=draw, dtype=torch.float64, requires_grad=True)


# --- the quantile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("E", [2, 3, 8])
@pytest.mark.parametrize("alpha", [0.01, 0.25, 0.5, 0.75, 0.99])
def test_the_share_alpha_of_the_estimated_distribution_lies_below_the_quantile(E, alpha):
    risks_E = some_risks(E)
    q, h = quantile(risks_E, alpha), bandwidth(risks_E)
    below = sum(Normal(risk, h).cdf(q) for risk in risks_E) / E
    torch.testing.assert_close(below.item(), alpha, **EXACT)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9, 0.99, -10.0])
def test_every_risk_has_the_gradient_that_finite_differences_find(alpha):
    assert torch.autograd.gradcheck(lambda risks_E: quantile(risks_E, alpha), some_risks(5), rtol=1e-6)


def test_the_gradient_reaches_risks_between_the_lowest_and_the_highest():
    risks_E = torch.tensor([0.1, 0.5, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    quantile(risks_E, 0.75).backward()
    assert (risks_E.grad[1:3] > 0.1).all()


@pytest.mark.parametrize("alpha", [-0.5, -10.0, -1000.0])
def test_a_negative_alpha_is_the_mean_risk_and_a_multiple_of_the_bandwidth(alpha):
    risks_E = some_risks(4)
    expected = risks_E.mean() + bandwidth(risks_E) * math.sqrt(-2 * alpha)
    torch.testing.assert_close(quantile(risks_E, alpha), expected, **EXACT)


@pytest.mark.parametrize("alpha", [0.25, 0.75, -10.0])
@pytest.mark.parametrize("E", [1, 3])
def test_equal_risks_are_their_own_quantile_and_move_together(E, alpha):
    risks_E = torch.full((E,), 0.7, dtype=torch.float64, requires_grad=True)
    q = quantile(risks_E, alpha)
    q.backward()
    torch.testing.assert_close(q.item(), 0.7, **EXACT)
    torch.testing.assert_close(risks_E.grad, torch.full_like(risks_E, 1 / E), **EXACT)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_quantile_scales_and_shifts_with_the_risks_in_float32_too(scale):
    risks_E = some_risks(4).detach()
    expected = scale * quantile(risks_E, 0.9)
    torch.testing.assert_close(quantile((scale * risks_E).float(), 0.9), expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_a_quantile_outside_0_and_1_is_refused(alpha):
    with pytest.raises(ValidationError, match="between 0 and 1"):
        eqrm.hparams(alpha=alpha)


def test_a_quantile_that_float32_rounds_to_1_stays_finite():
    assert quantile(some_risks(4).detach().float(), 1 - 1e-12).isfinite()


# --- the schedule ----------------------------------------------------------------------------------


def test_the_mean_risk_is_minimised_before_the_burn_in_ends_and_the_quantile_from_there(make_step, run):
    for t, key in [(2499, "risk"), (2500, "quantile")]:
        loss, metrics, _ = run(eqrm, make_step(t=t))
        assert loss == metrics[key]
        assert metrics["risk"] != metrics["quantile"]


def test_the_learning_rate_changes_where_the_burn_in_ends():
    assert list(eqrm.restarts(eqrm.hparams())) == [(2500, 1e-6)]
    assert list(eqrm.restarts(eqrm.hparams(burnin_steps=7, quantile_lr=None))) == [(7, None)]


# --- against DomainBed -----------------------------------------------------------------------------


def bisected(risks_E, alpha, steps=32):
    """What DomainBed's search returns: halfway between two numbers made of the extreme risks."""
    h = 1.06 * risks_E.std() * len(risks_E) ** -0.2
    z = Normal(0.0, 1.0).icdf(torch.tensor(alpha, dtype=torch.float64))
    low, high = risks_E.min() + h * z, risks_E.max() + h * z
    for _ in range(steps):
        middle = (low + high) / 2
        if Normal(risks_E, h).cdf(middle).mean() > alpha:
            high = middle
        else:
            low = middle
    return (low + high) / 2


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.99])
def test_the_value_is_the_one_that_domainbed_searches_for(alpha):
    risks_E = some_risks(6)
    torch.testing.assert_close(quantile(risks_E, alpha), bisected(risks_E, alpha), rtol=1e-8, atol=0)


class ByImplicitFunction(Reference):
    """DomainBed's update with the gradient that its quantile should have."""

    def update(self, minibatches):
        hp, risks_E = self.hp, self.risks(minibatches)
        if self.count == hp.burnin_steps:
            self.restart(lr=hp.quantile_lr or LR)
        if self.count < hp.burnin_steps:
            return self.descend(risks_E.mean())
        h, q = 1.06 * risks_E.std() * len(risks_E) ** -0.2, bisected(risks_E, hp.alpha, steps=60)
        u_E = ((q - risks_E) / h).detach()
        share_E = (-u_E.square() / 2).softmax(0)  # the densities at q, in proportion
        self.descend((share_E * (risks_E + u_E * h)).sum())


@pytest.mark.parametrize(("burnin_steps", "quantile_lr"), [(0, 1e-3), (3, 1e-3), (3, None)])
def test_updates_are_those_of_domainbed_but_for_the_gradient_of_the_quantile(
    make_model, burnin_steps, quantile_lr
):
    hp = {"burnin_steps": burnin_steps, "quantile_lr": quantile_lr, "alpha": 0.8}
    assert_same_updates(eqrm, make_model(), ByImplicitFunction, 8, **hp)


def test_it_conforms_in_force():
    check_algorithm(eqrm)
    check_algorithm(eqrm, burnin_steps=3, quantile_lr=5e-3)
    check_algorithm(eqrm, burnin_steps=3, quantile_lr=None, alpha=-10.0)
