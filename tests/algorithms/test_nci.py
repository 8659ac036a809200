"""NCI beside the authors' update with a target, and its reading with an anchor among the training domains.

Shapes: E rows of a batch, B examples per row, C classes, D features.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.nci import nci
from dgharness.errors import UsageError
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
E, B, D, C = 3, 6, 5, 3


def new_learner(model, **hp):
    config = OptimizerConfig(lr=0.01, weight_decay=0.1)
    learner = Learner(nci, model, Dims(C, D, E, E), nci.hparams(**hp), config, 0)
    learner.algorithm.double()
    return learner


def minibatch(t):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, 4, generator=draw, dtype=torch.float64)
    y_EB = torch.randint(C, (E, B), generator=draw)
    return x, y_EB, torch.randn(4, 4, generator=draw, dtype=torch.float64)


class Plain:
    def __init__(self, model, learner):
        self.model, self.hp = model, learner.hp
        self.discriminator = nn.Linear(D, E + 1).double()
        self.discriminator.load_state_dict(learner.algorithm.discriminator.state_dict())
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
        self.disc_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=0.01 * self.hp.lr_multiplier, weight_decay=0.1
        )

    def update(self, x, y_EB, unlabeled):
        z = self.model.featurizer(x)
        rows = z.split(B)
        disc_loss = sum(F.cross_entropy(self.discriminator(rows[e].detach()), label(B, e)) for e in range(E))
        if unlabeled is not None:
            z_target = self.model.featurizer(unlabeled).detach()
            disc_loss = disc_loss + F.cross_entropy(self.discriminator(z_target), label(len(z_target), E))
        self.disc_optimizer.zero_grad()
        disc_loss.backward()
        self.disc_optimizer.step()
        goal = self.hp.anchor if unlabeled is None else E
        moved = [rows[e] for e in range(E) if e != goal]
        adversarial = F.cross_entropy(
            self.discriminator(torch.cat(moved)), label(B * len(moved), goal)
        ) / len(moved)
        loss = F.cross_entropy(self.model.classifier(z), y_EB.flatten()) + self.hp.weight * adversarial
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"discriminator_loss": disc_loss, "penalty": adversarial, "loss": loss}


def label(examples, domain):
    return torch.full((examples,), domain)


@pytest.mark.parametrize("with_target", [True, False])
def test_equals_the_plain_update_for_update(make_model, with_target):
    model, other = make_model(), make_model()
    learner = new_learner(model, weight=0.7, anchor=1, lr_multiplier=3.0)
    plain = Plain(other, learner)
    for t in range(5):
        x, y_EB, unlabeled = minibatch(t)
        target = unlabeled if with_target else None
        metrics, expected = learner.step(x, y_EB, unlabeled=target), plain.update(x, y_EB, target)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value.detach(), **EXACT)
        every = [*other.parameters(), *plain.discriminator.parameters()]
        for own, given in zip(learner.algorithm.parameters(), every, strict=True):
            torch.testing.assert_close(own, given, **EXACT)


def test_an_anchor_that_is_no_training_domain_is_one_sentence(make_model):
    with pytest.raises(UsageError, match=r"^hp.anchor=3 is no training domain of nci: there are 3"):
        new_learner(make_model(), anchor=3)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("examples", [1, 6])
def test_one_row_or_one_example_stays_finite(make_model, rows, examples):
    learner = new_learner(make_model())
    x, y_EB, _ = minibatch(0)
    metrics = learner.step(x[: rows * examples], y_EB[:rows, :examples])
    assert all(value.isfinite().all() for value in metrics.values())
    assert rows > 1 or metrics["penalty"] == 0  # the anchor alone: nothing is moved


@pytest.mark.parametrize("hp", [{}, {"anchor": 2, "weight": 0.1}])
def test_keeps_the_contract(hp):
    check_algorithm(nci, **hp)
