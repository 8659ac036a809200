"""ANDMask entry by entry, and beside the updates of DomainBed and of the invariance unit tests."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.and_mask import and_mask
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}


def make_learner(model, domains=3, optimizer=None, **hp):
    config = OptimizerConfig(**{"lr": 1e-2, "weight_decay": 1e-3, **(optimizer or {})})
    return Learner(and_mask, model, Dims(3, 5, domains, domains), and_mask.hparams(**hp), config, 0)


def gradients_of(model, step):
    """For each domain, the gradient of its risk in every parameter."""
    x_E = step.x.unflatten(0, step.targets_EB.shape)
    risks = [F.cross_entropy(model(x), y) for x, y in zip(x_E, step.targets_EB, strict=True)]
    return [torch.autograd.grad(risk, list(model.parameters())) for risk in risks]


@pytest.mark.parametrize("E", [2, 3, 5])
@pytest.mark.parametrize("tau", [0.5, 0.6, 1.0])
def test_a_coordinate_moves_where_enough_domains_agree_on_its_sign(make_step, make_model, E, tau):
    step, model = make_step(E=E), make_model()
    learner = make_learner(copy.deepcopy(model), tau=tau)
    learner.step(step.x, step.targets_EB)
    for parameter, *own in zip(learner.algorithm.parameters(), *gradients_of(model, step), strict=True):
        flat = [gradient.flatten().tolist() for gradient in own]
        expected = []
        for values in zip(*flat, strict=True):
            agreement = abs(sum((value > 0) - (value < 0) for value in values)) / E
            expected.append(sum(values) / E if agreement >= tau else 0.0)
        share = sum(value != 0 for value in expected) / len(expected)
        expected = torch.tensor(expected, dtype=torch.float64) / (share + 1e-10)
        torch.testing.assert_close(parameter.grad.flatten(), expected, rtol=1e-6, atol=1e-14)
        assert ((parameter.grad.flatten() == 0) == (expected == 0)).all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_it_equals_domainbed_update_for_update(make_step, make_model, optimizer, tau):
    model = make_model()
    other = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    if optimizer == "sgd":
        other = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)
    learner = make_learner(copy.deepcopy(model), tau=tau, optimizer={"name": optimizer})
    for t in range(6):
        step = make_step(seed=t)
        for parameter, *own in zip(model.parameters(), *gradients_of(model, step), strict=True):
            stacked = torch.stack(own)
            mask = (stacked.sign().mean(0).abs() >= tau).to(torch.float32)
            parameter.grad = mask * stacked.mean(0)
            parameter.grad *= 1.0 / (1e-10 + mask.sum() / mask.numel())
        other.step()
        learner.step(step.x, step.targets_EB)
        for ours, theirs in zip(learner.algorithm.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("tau", [0.3, 0.9, 1.0])
def test_the_variant_of_the_unit_tests_equals_their_update(make_step, make_model, tau):
    model, lr, decay = make_model(), 0.1, 0.01
    learner = make_learner(
        copy.deepcopy(model),
        tau=tau,
        variant="unit-tests",
        optimizer={"name": "sgd", "momentum": 0.0, "lr": lr, "weight_decay": decay},
    )
    for t in range(4):
        step = make_step(seed=t)
        for parameter, *own in zip(model.parameters(), *gradients_of(model, step), strict=True):
            if parameter.dim() > 1:
                own = [gradient / gradient.norm() for gradient in own]
            stacked = torch.stack(own)
            mask = stacked.sign().sum(0).abs() > 3 * tau
            parameter.data -= lr * (mask * stacked.mean(0)) + lr * decay * parameter.data
        learner.step(step.x, step.targets_EB)
        for ours, theirs in zip(learner.algorithm.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


def test_where_no_coordinate_agrees_nothing_moves(make_step, make_model):
    step = make_step()
    learner = make_learner(make_model(), variant="unit-tests", tau=1.0, optimizer={"weight_decay": 0.0})
    before = {key: value.clone() for key, value in learner.algorithm.state_dict().items()}
    assert learner.step(step.x, step.targets_EB)["kept"] == 0
    for key, value in learner.algorithm.state_dict().items():
        assert value.equal(before[key])


def test_a_gradient_of_zero_is_no_agreement_and_stays_finite(make_step, make_model):
    step = make_step(x=torch.zeros(18, 4, dtype=torch.float64))  # the first layer's weights have no gradient
    for variant in ("domainbed", "unit-tests"):
        learner = make_learner(make_model(), tau=0.5, variant=variant)
        learner.step(step.x, step.targets_EB)
        assert (learner.algorithm.model.featurizer[0].weight.grad == 0).all()
        assert all(p.isfinite().all() for p in learner.algorithm.parameters())


def test_a_single_domain_agrees_with_itself(make_step, make_model):
    step, model = make_step(E=1), make_model()
    [own] = gradients_of(model, step)
    learner = make_learner(model, domains=1)
    assert learner.step(step.x, step.targets_EB)["kept"] == 1
    for parameter, gradient in zip(learner.algorithm.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=0)


def test_what_is_not_finite_is_not_masked_away(make_step, make_model):
    step, model = make_step(), make_model()
    with torch.no_grad():
        model.featurizer[0].bias.fill_(float("nan"))
    learner = make_learner(model)
    learner.step(step.x, step.targets_EB)
    assert all(parameter.isnan().all() for parameter in learner.algorithm.parameters())


@pytest.mark.parametrize("hp", [{}, {"tau": 0.5}, {"tau": 0.3, "variant": "unit-tests"}])
def test_and_mask_keeps_the_contract(hp):
    check_algorithm(and_mask, **hp)
