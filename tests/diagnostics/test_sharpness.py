"""Sharpness: closed forms on quadratics, and a network that is left as it was to the last bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dgharness.diagnostics import sharpness as module
from dgharness.diagnostics.sharpness import Network, ascended, average_rise, normalised_logits, worst_rise
from dgharness.errors import NotApplicable
from dgharness.models.model import Model

CURVATURE = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
WEIGHTS = {"w": torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)}


def quadratic(weights):
    """L(w) = sum_i a_i w_i^2 / 2, here 7.5."""
    return (CURVATURE * weights["w"] ** 2).sum() / 2, torch.tensor(torch.nan)


def test_the_average_rise_of_a_quadratic_is_half_the_trace(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 4000)
    found = average_rise([quadratic], WEIGHTS, 0.1, torch.Generator().manual_seed(0))
    # E = rho^2 L(w); the linear term has variance rho^2 sum_i (a_i w_i^2)^2.
    error = 0.1 * float((CURVATURE * WEIGHTS["w"] ** 2).norm()) / np.sqrt(4000)
    assert found.loss_B[0] == pytest.approx(0.1**2 * 7.5, abs=3 * error)
    assert np.isnan(found.error_B[0])


@pytest.mark.parametrize("rho", [0.002, 0.3])
def test_the_worst_rise_of_a_quadratic_is_at_the_corner_that_every_weight_grows_to(rho):
    found = worst_rise([quadratic], WEIGHTS, rho)
    assert found.loss_B[0] == pytest.approx(7.5 * (2 * rho + rho**2), rel=1e-12)
    torch.testing.assert_close(ascended(quadratic, WEIGHTS, rho)["w"], WEIGHTS["w"] * (1 + rho))


def test_the_ascent_finds_a_maximum_inside_by_halving_its_steps():
    peak = WEIGHTS["w"] * torch.tensor([1.07, 0.96, 1.013], dtype=torch.float64)

    def hill(weights):
        return -((weights["w"] - peak) ** 2).sum(), torch.tensor(torch.nan)

    start = hill(WEIGHTS)[0].item()  # below 0, as is the loss everywhere but on the peak

    def left(steps):
        return hill(ascended(hill, WEIGHTS, 0.1, steps))[0].item() / start

    assert left(20) < 0.02
    assert left(200) < 1e-5


def test_nothing_leaves_its_reach_and_a_weight_of_0_stays():
    weights = {"w": torch.tensor([0.0, 1.0, -3.0])}
    best = ascended(
        lambda w: ((w["w"] * torch.tensor([5.0, 2.0, -1.0])).sum(), torch.tensor(0.0)), weights, 0.1
    )
    torch.testing.assert_close(best["w"], torch.tensor([0.0, 1.1, -3.3]))


def test_the_worst_rise_is_never_below_none():
    flat = torch.zeros((), requires_grad=False)
    found = worst_rise([lambda weights: (flat - 0 * weights["w"].sum(), flat)], {"w": torch.ones(2)}, 0.1)
    assert found.loss_B.tolist() == [0] and found.error_B.tolist() == [0]


def test_each_minibatch_has_its_own_rise():
    def doubled(weights):
        return 2 * quadratic(weights)[0], torch.tensor(torch.nan)

    found = worst_rise([quadratic, doubled], WEIGHTS, 0.01)
    assert found.loss_B[1] == pytest.approx(2 * found.loss_B[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3))


def test_a_network_is_the_same_to_the_last_bit_afterwards(model):
    network, x = Network(model), torch.randn(16, 4)
    before = copy.deepcopy(model.state_dict())

    def loss(weights):
        return network(weights, x).square().mean(), torch.tensor(0.0)

    rises = average_rise([loss], network.weights, 0.1, torch.Generator().manual_seed(0))
    worst = worst_rise([loss], network.weights, 0.05)
    assert rises.loss_B[0] != 0 and worst.loss_B[0] > 0
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_outputs_are_those_of_the_predictor_in_evaluation(model):
    x = torch.randn(5, 4)
    network = Network(model.train())
    torch.testing.assert_close(network(network.weights, x), model.eval()(x))


def test_normalised_logits_do_not_know_their_scale():
    logits = torch.randn(6, 4)
    torch.testing.assert_close(normalised_logits(logits), normalised_logits(7 * logits + 3))
    torch.testing.assert_close(normalised_logits(logits).norm(dim=-1), torch.ones(6))


def test_what_has_no_weights_is_not_applicable():
    with pytest.raises(NotApplicable, match="needs a predictor with weights"):
        Network(Model(nn.Identity(), nn.Identity()))
    with pytest.raises(NotApplicable, match="is a module"):
        Network(object())
