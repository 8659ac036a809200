"""SparseIRM: masks, budget and loss written out; nothing here is a published number."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness import seeds
from dgharness.algorithms.sparse_irm import lowering, sparse_irm
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def make_learner(model, **hp):
    config = OptimizerConfig(name="sgd", momentum=0.0, lr=0.1, weight_decay=0.0)
    return Learner(sparse_irm, model, Dims(3, 5, 3, 3), sparse_irm.hparams(**hp), config, 0)


@pytest.mark.parametrize("penalty", ["irmv1", "vrex"])
@pytest.mark.parametrize("t", [0, 7])
def test_an_update_descends_risk_and_penalty_under_the_masks(make_step, make_model, penalty, t):
    step, model = make_step(), make_model()
    learner = make_learner(
        copy.deepcopy(model), penalty=penalty, weight=5.0, anneal_steps=3, horizon=10, l2=0.1
    )
    learner.algorithm.double()
    learner.t = t
    draw = torch.Generator().manual_seed(1)
    scores = {"featurizer.0.weight": torch.rand(5, 4, generator=draw).double()}
    scores["classifier.weight"] = torch.rand(3, 5, generator=draw).double()
    with torch.no_grad():
        for own, score in zip(learner.algorithm.probabilities, scores.values(), strict=True):
            own.copy_(score)
    noise = seeds.generator(0, "algorithm/masks", t)
    temperature = 0.97 * (1 - t / 10) + 0.03
    weights = dict(model.named_parameters())
    for name, score in scores.items():
        score.requires_grad_()
        u = torch.rand(score.shape, generator=noise).clamp(1e-6, 1 - 1e-6).logit().double()
        weights[name] = weights[name] * torch.sigmoid((torch.log(score / (1 - score)) + u) / temperature)
    risks, slopes = [], []
    for x, y in zip(step.x.unflatten(0, (3, 6)), step.targets_EB, strict=True):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        risks.append(F.cross_entropy(torch.func.functional_call(model, weights, (x,)) * scale, y))
        slopes.append(torch.autograd.grad(risks[-1], scale, create_graph=True)[0])
    risks, slopes = torch.stack(risks), torch.stack(slopes)
    value = risks.var(correction=0) if penalty == "vrex" else slopes.square().mean()
    norm = sum(parameter.square().sum() for parameter in model.parameters())
    loss = risks.mean() + 0.1 * norm + (5.0 * value if t >= 3 else 0.0)
    loss = loss / 6 if t >= 3 else loss
    wanted = [*model.parameters(), *(scores.values() if t >= 3 else [])]
    gradients = torch.autograd.grad(loss, wanted)
    metrics = learner.step(step.x, step.targets_EB)
    torch.testing.assert_close(metrics["penalty"], value.detach(), **EXACT)
    torch.testing.assert_close(metrics["loss"], loss.detach(), **EXACT)
    found = [p.grad for p in learner.algorithm.parameters() if p.grad is not None]
    for ours, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, gradient, **EXACT)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_projection_is_the_nearest_point_within_the_budget(share):
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(200, generator=draw, dtype=torch.float64) + 0.7
    projected = (s - lowering(s, share)).clamp(0, 1)
    assert projected.mean() <= share + 1e-9
    # Nearest: no other point of the budget lies in the direction of s.
    for _ in range(50):
        other = torch.rand(200, generator=draw, dtype=torch.float64)
        other = other * min(1.0, share / float(other.mean()))
        assert (s - projected) @ (other - projected) <= 1e-9


def test_the_budget_is_free_at_first_and_full_from_60_percent_on(make_step, make_model):
    learner, kept = make_learner(make_model(), kept=0.5, horizon=100, anneal_steps=0), []
    for t in range(80):
        step = make_step(seed=t)
        kept.append(float(learner.step(step.x, step.targets_EB)["kept"]))
    assert kept[28] == 1
    assert all(
        later <= 1 - 0.5 * (1 - (1 - (t - 28) / 32) ** 3) + 1e-6 for t, later in enumerate(kept[28:60], 28)
    )
    assert max(kept[60:]) <= 0.5 + 1e-6 and kept[60] > 0.4


def test_the_prediction_keeps_each_weight_with_its_probability(make_model):
    learner = make_learner(make_model())
    with torch.no_grad():
        learner.algorithm.probabilities[0].fill_(1.0)
        learner.algorithm.probabilities[1].copy_(torch.tensor([[0.0], [1.0], [0.5]]).expand(3, 5))
    predictor, model = learner.predictor(), learner.algorithm.model
    assert predictor.featurizer[0].weight.equal(model.featurizer[0].weight)
    assert predictor.classifier.weight[0].eq(0).all()
    assert predictor.classifier.weight[1].equal(model.classifier.weight[1])
    assert not model.classifier.weight.eq(0).any()


@pytest.mark.parametrize(
    "hp",
    [
        {"horizon": 20},
        {"horizon": 20, "anneal_steps": 3, "weight": 1.0},
        {"horizon": 20, "anneal_steps": 3, "weight": 1.0, "penalty": "vrex", "kept": 0.7},
    ],
)
def test_sparse_irm_keeps_the_contract(hp):
    check_algorithm(sparse_irm, **hp)
