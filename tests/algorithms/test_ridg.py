"""RIDG beside the authors' updates, written out with a matrix per example.

Shapes: E rows of a batch, B examples per row, C classes, D features.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.ridg import ridg
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
E, B, D, C = 3, 6, 5, 3


class Authors:
    def __init__(self, model, hp):
        self.model, self.hp, self.bank, self.first = model, hp, torch.zeros(C, C, D).double(), [True] * C
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)

    def update(self, x, y):
        z = self.model.featurizer(x)
        rationale = torch.stack([self.model.classifier.weight[c] * z for c in range(C)])
        penalty = torch.zeros((), dtype=torch.float64)
        for k in y.unique():
            mean = rationale[:, y == k].mean(1).detach()
            m = 1.0 if self.first[k] else self.hp.momentum
            self.bank[k], self.first[k] = (1 - m) * self.bank[k] + m * mean, False
            penalty = penalty + (rationale[:, y == k] - self.bank[k][:, None]).square().sum(2).mean()
        loss = F.cross_entropy(self.model.classifier(z), y) + self.hp.weight * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), penalty.detach()


def minibatch(t, classes=C):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, 4, generator=draw, dtype=torch.float64)
    return x, torch.randint(classes, (E, B), generator=draw)


def test_equals_the_authors_update_for_update_also_where_a_class_comes_late(make_model):
    hp = ridg.hparams(weight=0.5, momentum=0.1)
    model, theirs = make_model(), Authors(make_model(), hp)
    config = OptimizerConfig(lr=0.01, weight_decay=0.1)
    learner = Learner(ridg, model, Dims(C, D, E, E), hp, config, 0)
    learner.algorithm.double()
    for t in range(8):
        x, y_EB = minibatch(t, classes=2 if t in (0, 1, 5) else C)
        metrics, (loss, penalty) = learner.step(x, y_EB), theirs.update(x, y_EB.flatten())
        torch.testing.assert_close((metrics["loss"], metrics["penalty"]), (loss, penalty), **EXACT)
        torch.testing.assert_close(learner.algorithm.objective.bank_CCD, theirs.bank, **EXACT)
        for own, other in zip(model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(own, other, **EXACT)


def test_a_class_alike_throughout_costs_nothing_when_met_first(make_step, run):
    step = make_step(x=torch.ones(18, 4, dtype=torch.float64), targets_EB=torch.ones(3, 6, dtype=torch.long))
    assert run(ridg, step)[1]["penalty"].item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, E, B):
    step = make_step(E=E, B=B)
    loss, metrics, _ = run(ridg, step)
    assert metrics["penalty"].isfinite() and grads(loss, step.model).isfinite().all()


@pytest.mark.parametrize("hp", [{}, {"weight": 0.1, "momentum": 0.1}])
def test_keeps_the_contract(hp):
    check_algorithm(ridg, **hp)
