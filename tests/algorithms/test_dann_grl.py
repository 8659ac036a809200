"""DANN and CDANN by gradient reversal, beside WILDS's networks and a reversal written as a plain minus sign.

Shapes: E rows of a batch, B examples per row, C classes, D features, K training domains.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.adversaries import mlp, reverse
from dgharness.algorithms.cdann_grl import cdann_grl
from dgharness.algorithms.dann_grl import dann_grl
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
E, B, D, C = 3, 6, 5, 3


def wilds_discriminator(own, width):
    """The same weights in torch's own layers, batch normalisation with running statistics included."""
    theirs = nn.Sequential(
        nn.Linear(D, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, E),
    ).double()
    with torch.no_grad():
        for parameter, given in zip(theirs.parameters(), own.parameters(), strict=True):
            parameter.copy_(given)
    return theirs


def plain_domain_risk(spec, own, theirs, step):
    z_ND, y_N, domain_N = step.features_EBD.flatten(0, 1), step.targets_EB.flatten(), step.domain_EB.flatten()
    if spec is dann_grl:
        return F.cross_entropy(theirs(z_ND), domain_N)
    logits_NK = theirs(z_ND + own.class_embedding.weight[y_N])
    loss_N = F.cross_entropy(logits_NK, domain_N, reduction="none")
    shares = [1 / (C * (y_N == k).sum().float()) for k in range(C)]  # in single precision, as DomainBed's
    return sum(shares[k] * loss_N[y_N == k].sum() for k in y_N.unique())


@pytest.mark.parametrize("spec", [dann_grl, cdann_grl])
def test_discriminator_descends_its_loss_and_the_model_ascends_it(make_step, run, grads, spec):
    step = make_step()
    loss, metrics, own = run(spec, step, width=8, weight=0.7)
    theirs = wilds_discriminator(own.discriminator, 8)
    domain_risk = plain_domain_risk(spec, own, theirs, step)
    torch.testing.assert_close(metrics["domain_risk"], domain_risk, **EXACT)
    torch.testing.assert_close(loss, step.risks_E.mean() + 0.7 * domain_risk, **EXACT)
    torch.testing.assert_close(grads(loss, own.discriminator), 0.7 * grads(domain_risk, theirs), **EXACT)
    torch.testing.assert_close(
        grads(loss, step.model),
        grads(step.risks_E.mean(), step.model) - 0.7 * grads(domain_risk, step.model),
        **EXACT,
    )
    if spec is cdann_grl:
        torch.testing.assert_close(
            grads(loss, own.class_embedding), 0.7 * grads(domain_risk, own.class_embedding), **EXACT
        )


def test_equals_wilds_update_for_update():
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(4, D), nn.Tanh()), nn.Linear(D, C)).double()
    hp = dann_grl.hparams(width=8, weight=0.3)
    config = OptimizerConfig(name="sgd", lr=1e-3, weight_decay=0.01, head_lr_multiplier=10.0)
    learner = Learner(dann_grl, model, Dims(C, D, E, E), hp, config, 0)
    learner.algorithm.double()
    featurizer, classifier = nn.Linear(4, D).double(), nn.Linear(D, C).double()
    featurizer.load_state_dict(model.featurizer[0].state_dict())
    classifier.load_state_dict(model.classifier.state_dict())
    theirs = wilds_discriminator(learner.algorithm.objective.discriminator, 8)
    optimizer = torch.optim.SGD(
        [
            {"params": featurizer.parameters(), "lr": 1e-3},
            {"params": classifier.parameters(), "lr": 1e-2},
            {"params": theirs.parameters(), "lr": 1e-2},
        ],
        momentum=0.9,
        weight_decay=0.01,
    )

    for t in range(6):
        draw = torch.Generator().manual_seed(t)
        x = torch.randn(E * B, 4, generator=draw, dtype=torch.float64)
        y_EB = torch.randint(C, (E, B), generator=draw)
        learner.step(x, y_EB)
        z = featurizer(x).tanh()
        flipped = z * 1.0
        flipped.register_hook(lambda gradient: -gradient)
        loss = F.cross_entropy(classifier(z), y_EB.flatten())
        loss = loss + 0.3 * F.cross_entropy(theirs(flipped), torch.arange(E).repeat_interleave(B))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours = [*model.parameters(), *learner.algorithm.objective.parameters()]
        every = [*featurizer.parameters(), *classifier.parameters(), *theirs.parameters()]
        for own, other in zip(ours, every, strict=True):
            torch.testing.assert_close(own, other, **EXACT)


def test_reversal_changes_no_value():
    z = torch.randn(1000)
    assert reverse(z).equal(z)


@pytest.mark.parametrize("spec", [dann_grl, cdann_grl])
@pytest.mark.parametrize(("E", "B"), [(1, 6), (3, 1), (1, 1)])
def test_one_row_or_one_example_stays_finite(make_step, run, grads, spec, E, B):
    step = make_step(E=E, B=B)
    loss, metrics, own = run(spec, step, domains=3, width=8)
    assert all(value.isfinite() for value in metrics.values())
    assert grads(loss, step.model).isfinite().all() and grads(loss, own).isfinite().all()


@pytest.mark.parametrize("spec", [dann_grl, cdann_grl])
def test_the_whole_adversary_learns_at_its_own_rate(spec):
    model = Model(nn.Linear(4, D), nn.Linear(D, C))
    config = OptimizerConfig(lr=0.01, weight_decay=0.0)
    learner = Learner(spec, model, Dims(C, D, E, E), spec.hparams(width=8, lr_multiplier=4.0), config, 0)
    rates = {id(p): g["lr"] for g in learner.optimizers["model"].param_groups for p in g["params"]}
    assert {rates[id(p)] for p in learner.algorithm.objective.parameters()} == {0.04}
    assert {rates[id(p)] for p in model.parameters()} == {0.01}


def test_dropout_and_batch_normalisation_stand_where_they_are_asked_for():
    names = [type(layer).__name__ for layer in mlp(D, E, 8, 4, dropout=0.5, batch_norm=True)]
    block = ["Linear", "BatchNorm", "Dropout", "ReLU"]
    assert names == [*block, *block, *block, "Linear"]
    assert [type(layer).__name__ for layer in mlp(D, E, 8, 3)] == [
        "Linear",
        "ReLU",
        "Linear",
        "ReLU",
        "Linear",
    ]


@pytest.mark.parametrize("spec", [dann_grl, cdann_grl])
@pytest.mark.parametrize("hp", [{}, {"batch_norm": False, "width": 16, "weight": 0.1}])
def test_keeps_the_contract(spec, hp):
    check_algorithm(spec, **hp)
