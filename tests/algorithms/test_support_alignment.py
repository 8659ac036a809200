"""Support alignment beside the authors' update, with a queue of values per domain.

Shapes: E rows of a batch, B examples per row, C classes, D features.
"""

from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.support_alignment import support_alignment, support_difference
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
B, D, C = 6, 5, 3


def new_learner(model, E, **hp):
    config = OptimizerConfig(name="sgd", lr=0.02, weight_decay=5e-4)
    hparams = support_alignment.hparams(width=8, **hp)
    learner = Learner(support_alignment, model, Dims(C, D, E, E), hparams, config, 0)
    learner.algorithm.double()
    return learner


def minibatch(t, E):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, 4, generator=draw, dtype=torch.float64)
    return x, torch.randint(C, (E, B), generator=draw)


def plain_difference(u, v, squared=False):
    def distance(a, b):
        return (a - b).square() if squared else (a - b).abs()

    from_u = sum(min(distance(a, b) for b in v) for a in u) / len(u)
    return from_u + sum(min(distance(a, b) for a in u) for b in v) / len(v)


class Authors:
    """Two domains and one logit in the paper; here any number, with a logit each."""

    def __init__(self, model, learner, E):
        self.model, self.hp, self.count, self.past = model, learner.hp, 0, [[] for _ in range(E)]
        self.discriminator = nn.Sequential(
            nn.Linear(D, 8), nn.LeakyReLU(), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, E)
        ).double()
        with torch.no_grad():
            pairs = zip(
                self.discriminator.parameters(), learner.algorithm.discriminator.parameters(), strict=True
            )
            for own, given in pairs:
                own.copy_(given)
        self.optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=5e-4)
        self.disc_optimizer = torch.optim.SGD(
            self.discriminator.parameters(), 0.02 * self.hp.lr_multiplier, 0.9, weight_decay=5e-4
        )

    def update(self, x, y_EB):
        domain = torch.arange(len(y_EB)).repeat_interleave(B)
        disc_loss = F.cross_entropy(self.discriminator(self.model.featurizer(x).detach()), domain)
        self.disc_optimizer.zero_grad()
        disc_loss.backward()
        self.disc_optimizer.step()
        z = self.model.featurizer(x)
        logits = self.discriminator(z)
        values = [[*self.past[e], *logits[domain == e]] for e in range(len(y_EB))]
        differences = [
            plain_difference(
                [value[i] - value[j] for value in values[i]],
                [value[i] - value[j] for value in values[j]],
                self.hp.distance == "squared",
            )
            for i, j in combinations(range(len(y_EB)), 2)
        ]
        penalty = sum(differences) / len(differences)
        ramp = min(self.count / self.hp.ramp_steps, 1.0)
        loss = F.cross_entropy(self.model.classifier(z), y_EB.flatten()) + self.hp.weight * ramp * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        keep = self.hp.history
        self.past = [[value.detach() for value in own[len(own) - min(keep, len(own)) :]] for own in values]
        self.count += 1
        return {"discriminator_loss": disc_loss, "penalty": penalty, "loss": loss}


@pytest.mark.parametrize("E", [2, 3])
@pytest.mark.parametrize("history", [0, 4, 15])
@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_equals_the_authors_update_for_update(make_model, E, history, distance):
    model, other = make_model(), make_model()
    learner = new_learner(model, E, history=history, distance=distance, ramp_steps=3, lr_multiplier=2.0)
    theirs = Authors(other, learner, E)
    for t in range(5):
        metrics, expected = learner.step(*minibatch(t, E)), theirs.update(*minibatch(t, E))
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value.detach(), **EXACT)
        every = [*other.parameters(), *theirs.discriminator.parameters()]
        for own, given in zip(learner.algorithm.parameters(), every, strict=True):
            torch.testing.assert_close(own, given, **EXACT)


def test_values_belong_to_the_domain_and_not_to_the_row(make_model):
    learner = new_learner(make_model(), 3, history=4)
    x, y_EB = minibatch(0, 2)
    learner.step(x, y_EB, domain_EB=torch.tensor([[2] * B, [0] * B]))
    assert learner.algorithm.filled_K.tolist() == [4, 0, 4]
    assert (learner.algorithm.past_KHK[1] == 0).all() and (learner.algorithm.past_KHK[[0, 2]] != 0).all()


def test_support_difference_sees_where_values_are_and_not_how_many():
    there = torch.ones(1, 300, dtype=torch.bool)
    u = torch.linspace(0, 1, 300)[None]
    crowded = u**3
    assert support_difference(u, crowded, there, there, False).item() < 0.02
    assert support_difference(u, u + 1.5, there, there, False).item() == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(("rows", "examples"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_model, rows, examples):
    learner = new_learner(make_model(), 3, ramp_steps=0, history=5)
    for t in range(2):
        x, y_EB = minibatch(t, 3)
        metrics = learner.step(x[: rows * examples], y_EB[:rows, :examples])
        assert all(value.isfinite().all() for value in metrics.values())
        assert rows > 1 or metrics["penalty"] == 0


@pytest.mark.parametrize("hp", [{}, {"ramp_steps": 3, "history": 20, "distance": "squared"}])
def test_keeps_the_contract(hp):
    check_algorithm(support_alignment, **hp)
