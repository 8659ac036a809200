"""PAIR: its linear programmes against a grid over the simplex, its updates against plain gradients.

Shapes: J objectives.
"""

import copy
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.erm import erm
from dgharness.algorithms.pair import objectives, pair, weights
from dgharness.errors import UsageError
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def make_learner(model, spec=pair, domains=3, **hp):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.0)
    return Learner(spec, model, Dims(3, 5, domains, domains), spec.hparams(**hp), config, 0)


# --- the weights -----------------------------------------------------------------------------------

GRID = np.array([(i, j, 60 - i - j) for i, j in product(range(61), repeat=2) if i + j <= 60]) / 60


def programme(losses, C, r):
    """Divergence from the preference, and the two programmes as (gain, what holds for an alpha)."""
    r = r / r.sum()
    l_hat = r * losses / (r * losses).sum()
    mu = sum(l_hat[j] * np.log(3 * l_hat[j]) for j in range(3))
    a = np.array([r[j] * (np.log(3 * l_hat[j]) - mu) for j in range(3)])
    Ca = C @ a
    star = int((r * losses).argmax())

    def balances(alpha, slack):
        need = [0.0 if j == star else Ca[j] for j in range(3) if j == star or Ca[j] <= 0]
        have = [(C @ alpha)[j] for j in range(3) if j == star or Ca[j] <= 0]
        return all(h >= n - slack for h, n in zip(have, need, strict=True))

    def descends(alpha, slack):
        return (C @ alpha >= -slack).all() and alpha @ Ca >= min(0, Ca.max()) - slack

    return mu, (Ca, balances), (C.sum(0), descends)


@pytest.mark.parametrize("eps", [0.0, 10.0])
@pytest.mark.parametrize("seed", sorted({*range(25)} - {8, 12}))  # there the grid misses what is allowed
def test_no_point_of_the_simplex_gains_more_within_the_constraints(seed, eps):
    draw = np.random.default_rng(seed)
    G = draw.normal(size=(3, 4))
    losses, C, r = draw.uniform(0.1, 2, 3), G @ G.T, draw.uniform(0.1, 1, 3)
    mu, balance, descent = programme(losses, C, r)
    gain, holds = balance if mu > eps else descent
    feasible = [alpha for alpha in GRID if holds(alpha, 0)]
    alpha = weights(losses, C, r, eps)
    assert alpha.min() >= 0 and alpha.sum() == pytest.approx(1)
    assert feasible and holds(alpha, 1e-6)
    assert gain @ alpha >= max(gain @ other for other in feasible) - 1e-9


@pytest.mark.parametrize("eps", [0.0, 10.0])
@pytest.mark.parametrize("scale", [1e-12, 1e8])
def test_the_size_of_the_gradients_does_not_matter(scale, eps):
    draw = np.random.default_rng(0)
    for _ in range(10):
        G = draw.normal(size=(3, 4))
        losses, r = draw.uniform(0.1, 2, 3), draw.uniform(0.1, 1, 3)
        one, other = (weights(losses, factor * G @ G.T, r, eps) for factor in (1.0, scale))
        np.testing.assert_allclose(one, other, atol=1e-8)


def test_where_there_is_no_solution_the_preference_decides():
    r = np.array([1.0, 2.0, 1.0])
    for broken in (np.full((3, 3), np.nan), np.full((3, 3), np.inf)):
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(weights(np.ones(3), broken, r, 0.1), r / 4)
    # All gradients one, with the largest loss unable to fall: no weights satisfy that.
    C = np.ones((3, 3)) * -1.0
    np.testing.assert_array_equal(weights(np.array([1.0, 9.0, 1.0]), C, r, 0.0), r / 4)


def test_a_loss_of_zero_is_the_one_that_needs_no_weight():
    alpha = weights(np.array([1.0, 0.0, 0.5]), np.eye(3), np.ones(3), 0.1)
    assert np.isfinite(alpha).all() and alpha[1] == 0


# --- the updates -----------------------------------------------------------------------------------


def plain_objectives(model, step):
    """Mean risk, mean squared slope in a scale, unbiased variance of the risks, domain by domain."""
    risks, slopes = [], []
    for x, y in zip(step.x.unflatten(0, step.targets_EB.shape), step.targets_EB, strict=True):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        risks.append(F.cross_entropy(model(x) * scale, y))
        slopes.append(torch.autograd.grad(risks[-1], scale, create_graph=True)[0])
    risks = torch.stack(risks)
    return torch.stack([risks.mean(), torch.stack(slopes).square().mean(), risks.var()])


def test_an_update_descends_the_weighted_objectives(make_step, make_model):
    step, model = make_step(), make_model()
    losses = plain_objectives(model, step)
    rows = []
    for loss in losses:
        head = torch.autograd.grad(loss, list(model.classifier.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in head]))
    G = torch.stack(rows)
    alpha = weights(losses.detach().numpy(), (G @ G.T).numpy(), np.array([1.0, 2.0, 3.0]), 0.1)
    gradients = torch.autograd.grad((torch.from_numpy(alpha) * losses).sum(), list(model.parameters()))
    learner = make_learner(copy.deepcopy(model), pretrain_steps=0, preference=(1, 2, 3))
    metrics = learner.step(step.x, step.targets_EB)
    for name, loss, weight in zip(("risk", "irmv1", "vrex"), losses, alpha, strict=True):
        torch.testing.assert_close(metrics[f"objective_{name}"], loss.detach(), **EXACT)
        torch.testing.assert_close(metrics[f"alpha_{name}"], torch.tensor(weight), rtol=1e-7, atol=1e-9)
    for parameter, gradient in zip(learner.algorithm.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-10)


def test_the_first_phase_is_plain_risk_minimisation_and_the_second_starts_afresh(make_step, make_model):
    first, second = make_learner(make_model(), pretrain_steps=4), make_learner(make_model(), erm)
    for t in range(4):
        step = make_step(seed=t)
        for learner in (first, second):
            learner.step(step.x, step.targets_EB)
    for a, b in zip(first.algorithm.parameters(), second.algorithm.parameters(), strict=True):
        assert a.equal(b)
    first.step(step.x, step.targets_EB)
    [optimizer] = first.optimizers.values()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_a_single_domain_has_no_variance(make_step):
    assert objectives(make_step(E=1))[2] == 0


def test_identical_domains_and_single_examples_stay_finite(make_step, make_model):
    one = make_step(E=1, B=1)
    for repeat in (1, 3):
        learner = make_learner(make_model(), domains=repeat, pretrain_steps=0)
        metrics = learner.step(one.x.repeat(repeat, 1), one.targets_EB.repeat(repeat, 1))
        assert all(value.isfinite().all() for value in metrics.values())
        assert all(parameter.isfinite().all() for parameter in learner.algorithm.parameters())


def test_a_classifier_without_weights_is_a_clear_error():
    with pytest.raises(UsageError, match="pair compares gradients of the classifier"):
        make_learner(Model(nn.Linear(4, 3), nn.Identity()))


@pytest.mark.parametrize(
    "hp",
    [
        {},
        {"pretrain_steps": 3},
        {"pretrain_steps": 0, "preference": (1.0, 1.0, 1.0)},
        {"pretrain_steps": 3, "preference": (1.0, 1.0, 1.0), "eps": 10.0},
    ],
)
def test_pair_keeps_the_contract(hp):
    check_algorithm(pair, **hp)
