"""DANN and CDANN beside DomainBed's updates, written out with its own networks and optimizers.

Shapes: E rows of a batch, B examples per row, C classes, D features, K training domains.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.adversaries import class_shares
from dgharness.algorithms.cdann import cdann
from dgharness.algorithms.dann import dann
from dgharness.data.tasks import cross_entropy
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
E, B, INPUTS, D, C = 3, 8, 4, 5, 3


def new_learner(spec, **hp):
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh()), nn.Linear(D, C)).double()
    learner = Learner(
        spec, model, Dims(C, D, E, E), spec.hparams(**hp), OptimizerConfig(lr=0.01, weight_decay=0.1), 0
    )
    learner.algorithm.double()
    return learner


def minibatch(t, without=-1):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, INPUTS, generator=draw, dtype=torch.float64)
    y_EB = torch.randint(C, (E, B), generator=draw)
    return x, torch.where(y_EB == without, (y_EB + 1) % C, y_EB)


class DomainBedMLP(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.input = nn.Linear(D, width)
        self.hiddens = nn.ModuleList([nn.Linear(width, width) for _ in range(depth - 2)])
        self.output = nn.Linear(width, E)

    def forward(self, z):
        z = F.relu(self.input(z))
        for hidden in self.hiddens:
            z = F.relu(hidden(z))
        return self.output(z)


class DomainBed:
    """The networks start as those of a learner, whose parameters stand in the same order."""

    def __init__(self, learner, conditional):
        hp = learner.hp
        self.hp, self.conditional, self.count = hp, conditional, 0
        self.featurizer = nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh())
        self.classifier = nn.Linear(D, C)
        self.discriminator, self.embedding = DomainBedMLP(hp.width, hp.depth), nn.Embedding(C, D)
        self.generator_part = nn.ModuleList([self.featurizer, self.classifier]).double()
        self.adversary = nn.ModuleList([self.discriminator, self.embedding]).double()
        theirs = [*self.generator_part.parameters(), *self.adversary.parameters()]
        with torch.no_grad():
            for own, given in zip(theirs, learner.algorithm.parameters(), strict=False):
                own.copy_(given)
        betas = (hp.beta1, 0.9)
        self.gen_opt = torch.optim.Adam(
            self.generator_part.parameters(), lr=0.01, weight_decay=0.1, betas=betas
        )
        self.disc_opt = torch.optim.Adam(
            self.adversary.parameters(),
            lr=0.01 * hp.lr_multiplier,
            weight_decay=hp.discriminator_weight_decay,
            betas=betas,
        )

    def update(self, x, y):
        self.count += 1
        z = self.featurizer(x)
        inputs = z + self.embedding(y) if self.conditional else z
        logits = self.discriminator(inputs)
        domain = torch.arange(E).repeat_interleave(B)
        if self.conditional:
            counts = F.one_hot(y, C).sum(0)
            weights = 1.0 / (counts[y] * C).float()
            loss = (weights * F.cross_entropy(logits, domain, reduction="none")).sum()
        else:
            loss = F.cross_entropy(logits, domain)
        summed = F.cross_entropy(logits, domain, reduction="sum")
        (slope,) = torch.autograd.grad(summed, [inputs], create_graph=True)
        loss = loss + self.hp.grad_penalty * (slope**2).sum(dim=1).mean(dim=0)
        if self.count % (1 + self.hp.d_steps) < self.hp.d_steps:
            self.disc_opt.zero_grad()
            loss.backward()
            self.disc_opt.step()
            return {"discriminator_loss": loss}
        risk = F.cross_entropy(self.classifier(z), y)
        self.disc_opt.zero_grad()
        self.gen_opt.zero_grad()
        (risk - self.hp.weight * loss).backward()
        self.gen_opt.step()
        return {"risk": risk, "discriminator_loss": loss, "loss": risk - self.hp.weight * loss}


@pytest.mark.parametrize("spec", [dann, cdann])
@pytest.mark.parametrize(
    "hp",
    [
        {},
        {"d_steps": 3, "weight": 0.3, "lr_multiplier": 5.0, "discriminator_weight_decay": 0.2, "beta1": 0.0},
        {"d_steps": 2, "grad_penalty": 0.7, "depth": 4},
    ],
)
def test_equals_domainbed_update_for_update(spec, hp):
    ours = new_learner(spec, width=7, **hp)
    theirs = DomainBed(ours, conditional=spec is cdann)
    for t in range(9):
        x, y_EB = minibatch(t, without=1 if t == 4 else -1)
        metrics, expected = ours.step(x, y_EB), theirs.update(x, y_EB.flatten())
        assert expected.keys() == metrics.keys() - {"risks_E"}
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value.detach(), **EXACT)
        every = [*theirs.generator_part.parameters(), *theirs.adversary.parameters()]
        for own, other in zip(ours.algorithm.parameters(), every, strict=False):
            torch.testing.assert_close(own, other, **EXACT)


@pytest.mark.parametrize(("d", "turns"), [(1, "MDMDMD"), (2, "DMDDMD"), (3, "DDMDDD")])
def test_of_1_plus_d_updates_the_dth_is_the_models(d, turns):
    learner = new_learner(dann, d_steps=d)
    for t, turn in enumerate(turns):
        before = [p.detach().clone() for p in learner.algorithm.parameters()]
        learner.step(*minibatch(t))
        moved = {
            name.startswith("model.")
            for (name, p), old in zip(learner.algorithm.named_parameters(), before, strict=True)
            if not p.equal(old)
        }
        assert moved == {turn == "M"}


def test_domains_are_told_by_their_id_and_not_by_their_row(make_step):
    learner = new_learner(dann)
    step = make_step(E=2, domain_EB=torch.tensor([[2] * 6, [0] * 6]))
    logits_EBK = learner.algorithm.discriminator(step.features_EBD)
    expected = (
        -logits_EBK[0].log_softmax(-1)[:, 2].mean() / 2 - logits_EBK[1].log_softmax(-1)[:, 0].mean() / 2
    )
    loss = learner.algorithm.discriminator_loss(step, step.features_EBD)
    torch.testing.assert_close(loss, expected, **EXACT)


def test_every_class_has_the_same_share_and_a_missing_one_keeps_its_own_to_itself():
    targets_EB = torch.tensor([[0, 1, 1], [1, 1, 0]])
    share_EB = class_shares(targets_EB, 3)
    assert [share_EB[targets_EB == k].sum() for k in range(3)] == pytest.approx([1 / 3, 1 / 3, 0])


def test_cdann_without_its_last_class_still_weights_by_the_classes_of_the_task(make_step):
    learner = new_learner(cdann)
    step = make_step(targets_EB=torch.tensor([[0, 1, 1, 1, 0, 1]]).expand(3, 6))
    inputs_EBD = step.features_EBD + learner.algorithm.class_embedding(step.targets_EB)
    loss_EB = cross_entropy(learner.algorithm.discriminator(inputs_EBD), step.domain_EB)
    shares = [1 / torch.tensor(C * count) for count in (6.0, 12.0)]
    expected = sum(shares[k] * loss_EB[step.targets_EB == k].sum() for k in (0, 1))
    loss = learner.algorithm.discriminator_loss(step, step.features_EBD)
    torch.testing.assert_close(loss, expected, **EXACT)


def test_the_penalty_is_the_mean_squared_gradient_of_the_summed_loss(make_step, grads):
    learner = new_learner(dann, grad_penalty=2.0)
    step, discriminator = make_step(), learner.algorithm.discriminator
    plain = cross_entropy(discriminator(step.features_EBD), step.domain_EB).mean()
    slopes = torch.func.vmap(
        torch.func.vmap(torch.func.grad(lambda z, d: F.cross_entropy(discriminator(z), d)))
    )(step.features_EBD, step.domain_EB)
    expected = plain + 2.0 * slopes.square().sum(-1).mean()
    loss = learner.algorithm.discriminator_loss(step, step.features_EBD)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(grads(loss, discriminator), grads(expected, discriminator), **EXACT)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("spec", [dann, cdann])
@pytest.mark.parametrize(("rows", "examples"), [(1, 8), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(spec, rows, examples):
    learner = new_learner(spec, grad_penalty=0.5)
    for t in range(2):
        x, y_EB = minibatch(t)
        metrics = learner.step(x[: rows * examples], y_EB[:rows, :examples])
        assert all(value.isfinite().all() for value in metrics.values())


@pytest.mark.parametrize("spec", [dann, cdann])
@pytest.mark.parametrize("hp", [{}, {"d_steps": 3, "grad_penalty": 0.5, "dropout": 0.1, "depth": 4}])
def test_keeps_the_contract(spec, hp):
    check_algorithm(spec, **hp)
