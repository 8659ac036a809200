"""IGA against its formula with loops, and beside DomainBed's update."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.iga import iga
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def make_learner(model, domains=3, **options):
    config = OptimizerConfig(lr=1e-2, weight_decay=1e-3, **options.pop("optimizer", {}))
    return Learner(iga, model, Dims(3, 5, domains, domains), iga.hparams(**options), config, 0)


def objective(model, step, weight):
    """Mean risk plus the penalty, parameter by parameter and domain by domain."""
    x_E = step.x.unflatten(0, step.targets_EB.shape)
    risks = [F.cross_entropy(model(x), y) for x, y in zip(x_E, step.targets_EB, strict=True)]
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(risk, parameters, create_graph=True) for risk in risks]
    penalty = 0
    for i in range(len(parameters)):
        mean = sum(gradient[i] for gradient in gradients) / len(risks)
        for gradient in gradients:
            penalty = penalty + ((gradient[i] - mean) ** 2).sum()
    return sum(risks) / len(risks) + weight * penalty, penalty


@pytest.mark.parametrize("E", [2, 3])
def test_an_update_descends_the_mean_risk_plus_the_spread_of_the_gradients(make_step, make_model, E):
    step, model = make_step(E=E), make_model()
    loss, penalty = objective(model, step, 7.0)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    learner = make_learner(copy.deepcopy(model), weight=7.0)
    metrics = learner.step(step.x, step.targets_EB)
    torch.testing.assert_close(metrics["loss"], loss.detach(), **EXACT)
    torch.testing.assert_close(metrics["penalty"], penalty.detach(), **EXACT)
    for parameter, gradient in zip(learner.algorithm.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **EXACT)


def test_it_equals_domainbed_update_for_update(make_step, make_model):
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    learner = make_learner(copy.deepcopy(model), weight=50.0)
    for t in range(6):
        step = make_step(seed=t)
        risks, gradients = 0, []
        for x, y in zip(step.x.unflatten(0, (3, 6)), step.targets_EB, strict=True):
            risk = F.cross_entropy(model(x), y)
            risks = risks + risk
            gradients.append(torch.autograd.grad(risk, model.parameters(), create_graph=True))
        mean = torch.autograd.grad(risks / 3, model.parameters(), retain_graph=True)
        penalty = sum((g - m).pow(2).sum() for own in gradients for g, m in zip(own, mean, strict=True))
        optimizer.zero_grad()
        (risks / 3 + 50.0 * penalty).backward()
        optimizer.step()
        learner.step(step.x, step.targets_EB)
        for ours, theirs in zip(learner.algorithm.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_identical_domains_and_a_single_domain_have_no_penalty(make_step, make_model):
    one = make_step(E=1)
    assert make_learner(make_model(), domains=1).step(one.x, one.targets_EB)["penalty"] == 0
    metrics = make_learner(make_model()).step(one.x.repeat(3, 1), one.targets_EB.repeat(3, 1))
    assert metrics["penalty"] < 1e-25


def test_frozen_weights_take_no_part(make_step, make_model):
    step, model = make_step(), make_model()
    model.featurizer.requires_grad_(False)
    _, all_of_it = objective(make_model(), step, 1.0)
    metrics = make_learner(model).step(step.x, step.targets_EB)
    assert 0 < metrics["penalty"] < all_of_it


def test_sam_evaluates_it_twice(make_step, make_model):
    step = make_step()
    once, twice = make_learner(make_model()), make_learner(make_model(), optimizer={"name": "sam"})
    first, second = once.step(step.x, step.targets_EB), twice.step(step.x, step.targets_EB)
    assert first["loss"] == second["loss"]
    gradients = [[p.grad for p in learner.algorithm.parameters()] for learner in (once, twice)]
    assert not all(a.equal(b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_iga_keeps_the_contract(weight):
    check_algorithm(iga, weight=weight)
