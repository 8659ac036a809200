"""The Nadaraya-Watson head against loops over queries and support.

Shapes: Q queries, S examples of a support, D features, C classes.
"""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch

from dgharness.algorithm import Setup
from dgharness.algorithms.nw_head import encoded, nw_head
from dgharness.data.tasks import cross_entropy
from dgharness.errors import UsageError
from dgharness.plugin import Batch, Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
LACKING = {0: [0, 1, 2], 1: [0, 1], 2: [2]}  # the classes of each domain


class Recorded:
    """Training data of three domains that lack classes; remembers what was drawn."""

    def __init__(self, classes=LACKING):
        draw = torch.Generator().manual_seed(5)
        held = [(k, y) for k, labels in classes.items() for y in labels for _ in range(4)]
        self.x = torch.randn(len(held), 4, generator=draw, dtype=torch.float64)
        domain, y = (torch.tensor(column) for column in zip(*held, strict=True))
        self.columns = {"y": y, "domain": domain, "index": torch.arange(len(held))}
        self.counts_K = domain.bincount()
        self.drawn = []

    def batches(self, split, size):
        for rows in torch.arange(len(self.x)).split(size):
            yield self.batch(rows)

    def sample(self, where, n, generator):
        matches = (self.columns["domain"] == where["domain"]) & (self.columns["y"] == where["y"])
        rows = matches.nonzero().flatten()
        rows = rows[torch.randint(len(rows), (n,), generator=generator)]
        self.drawn += [(where["domain"], where["y"], row) for row in rows.tolist()]
        return self.batch(rows)

    def batch(self, rows):
        return Batch(
            x=self.x[rows],
            targets_EB=self.columns["y"][rows][None],
            domain_EB=self.columns["domain"][rows][None],
            group_EB=rows[None],
            index_EB=rows[None],
        )


def make_learner(model, source, seed=0, **hp):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.0)
    return Learner(nw_head, model, Dims(3, 5, 3, 3), nw_head.hparams(**hp), config, seed, source=source)


def kernel_value(a_D, b_D, kernel):
    if kernel == "euclid":
        return -((a_D - b_D) ** 2).sum().sqrt()
    a_D, b_D = a_D / a_D.norm(), b_D / b_D.norm()
    return a_D @ b_D if kernel == "cosine" else -((a_D - b_D) ** 2).sum().sqrt()


def probability(z_D, support, kernel):
    """p(y|x, S) of every class, for a support of (feature, label)."""
    weights = [kernel_value(z_D, s_D, kernel).exp() for s_D, _ in support]
    total = sum(weights)
    return [
        sum((w for w, (_, label) in zip(weights, support, strict=True) if label == y), torch.zeros(()))
        / total
        for y in range(3)
    ]


@pytest.mark.parametrize("kernel", ["euclid", "hypersphere", "cosine"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_an_update_descends_the_likelihood_under_the_support_of_one_domain(
    make_step, make_model, kernel, seed
):
    step, model, source = make_step(seed=seed), make_model(), Recorded()
    learner = make_learner(copy.deepcopy(model), source, seed, kernel=kernel, shots=2)
    metrics = learner.step(step.x, step.targets_EB)
    [domain] = {k for k, _, _ in source.drawn}
    assert Counter(y for _, y, _ in source.drawn) == {y: 2 for y in LACKING[domain]}
    support = [(model.features(source.x[row]), y) for _, y, row in source.drawn]
    nll = [
        -torch.log(probability(z_D, support, kernel)[y] + 1e-12)
        for z_D, y in zip(model.features(step.x), step.targets_EB.flatten().tolist(), strict=True)
        if y in LACKING[domain]
    ]
    loss = sum(nll) / len(nll)
    torch.testing.assert_close(metrics["risk"], loss.detach(), **EXACT)
    assert metrics["queries"] == pytest.approx(len(nll) / step.targets_EB.numel())
    expected = torch.autograd.grad(loss, list(model.featurizer.parameters()))
    for ours, gradient in zip(learner.algorithm.model.featurizer.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.grad, gradient, **EXACT)


def test_every_domain_is_drawn_as_often_as_the_others(make_step, make_model):
    step, source = make_step(), Recorded()
    learner = make_learner(make_model(), source)
    for _ in range(300):
        learner.step(step.x, step.targets_EB)
    updates = Counter(k for k, y, _ in source.drawn if y == LACKING[k][0])
    assert sum(updates.values()) == 300
    assert all(count > 75 for count in updates.values()), "3 standard deviations below 100"


def test_a_batch_without_a_supported_query_has_no_loss_and_no_gradient(make_step, make_model):
    step = make_step(targets_EB=torch.full((3, 6), 1))
    learner = make_learner(make_model(), Recorded({0: [0], 1: [0], 2: [2]}))
    metrics = learner.step(step.x, step.targets_EB)
    assert (metrics["risk"], metrics["queries"]) == (0, 0)
    assert all((p.grad == 0).all() for p in learner.algorithm.model.featurizer.parameters())


@pytest.mark.parametrize("kernel", ["euclid", "hypersphere", "cosine"])
def test_a_query_that_is_its_own_support_has_a_finite_gradient(make_model, kernel):
    source = Recorded()
    learner = make_learner(make_model(), source, kernel=kernel, shots=16)
    metrics = learner.step(source.x, source.columns["y"][None])
    assert metrics["risk"].isfinite()
    assert all(p.grad.isfinite().all() for p in learner.algorithm.model.featurizer.parameters())


def test_the_linear_classifier_takes_no_part(make_step, make_model):
    step, model = make_step(), make_model()
    before = model.classifier.weight.detach().clone()
    learner = make_learner(model, Recorded())
    for _ in range(3):
        learner.step(step.x, step.targets_EB)
    assert model.classifier.weight.equal(before) and not model.classifier.weight.requires_grad


# --- prediction ------------------------------------------------------------------------------------


def predictor_of(model, source, **hp):
    setup = Setup(model, Dims(3, 5, 3, 3), nw_head.hparams(**hp), cross_entropy, lambda: model)
    return nw_head.build(setup).eval().predictor(source)


def loops(model, x, supports, kernel="euclid"):
    """Logarithm of the mean over the supports of the probability of each class."""
    rows = []
    with torch.no_grad():
        for z_D in model.features(x):
            votes = [probability(z_D, support, kernel) for support in supports]
            rows.append([math.log(sum(float(v[y]) for v in votes) / len(votes) + 1e-12) for y in range(3)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["euclid", "hypersphere", "cosine"])
@pytest.mark.parametrize("inference", ["full", "ensemble"])
def test_full_pools_the_domains_and_ensemble_gives_each_a_vote(make_step, make_model, kernel, inference):
    model, source, x = make_model(), Recorded(), make_step(seed=1).x
    used = list(zip(*encoded(model, source, 3), strict=True))
    by_domain = [[(z_D, int(y)) for z_D, y, k in used if k == own] for own in range(3)]
    supports = by_domain if inference == "ensemble" else [[pair for own in by_domain for pair in own]]
    predictor = predictor_of(model, source, kernel=kernel, inference=inference, most=3)
    torch.testing.assert_close(predictor(x), loops(model, x, supports, kernel), **EXACT)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_the_support_is_training_examples_as_many_of_every_class_that_a_domain_has(make_model, most):
    model, source = make_model(), Recorded()
    with torch.no_grad():
        z_LD = model.features(source.x)
    z_SD, label_S, domain_S = encoded(model, source, most)
    distance, row_S = torch.cdist(z_SD, z_LD).min(1)
    assert distance.max() < 1e-6 and len(row_S.unique()) == len(row_S)
    assert label_S.equal(source.columns["y"][row_S]) and domain_S.equal(source.columns["domain"][row_S])
    for k, labels in LACKING.items():
        counts = label_S[domain_S == k].bincount(minlength=3).tolist()
        assert counts == [min(most, 4) if y in labels else 0 for y in range(3)]


def test_the_rarest_class_of_a_domain_says_how_many_of_the_others(make_model):
    source = Recorded()
    source.columns["y"][4:7] = 0  # of domain 0: seven examples of class 0, one of class 1, four of class 2
    _, label_S, domain_S = encoded(make_model(), source, 100)
    assert label_S[domain_S == 0].bincount().tolist() == [1, 1, 1]
    assert label_S[domain_S == 1].bincount().tolist() == [4, 4]


def test_random_takes_a_few_of_each_class_and_always_the_same(make_step, make_model):
    model, source, x = make_model(), Recorded(), make_step(seed=1).x
    first, second = (predictor_of(model, source, inference="random", shots=3) for _ in range(2))
    assert first.member_SC.sum(0).tolist() == [3, 3, 3]
    assert first(x).equal(second(x))


def test_one_cluster_is_the_mean_feature_of_a_class(make_step, make_model):
    model, source, x = make_model(), Recorded(), make_step(seed=1).x
    z_SD, label_S, _ = encoded(model, source, 100)
    support = [(z_SD[label_S == y].mean(0), y) for y in range(3)]
    predictor = predictor_of(model, source, inference="cluster", clusters=1)
    torch.testing.assert_close(predictor(x), loops(model, x, [support]), **EXACT)


def test_clusters_are_centres_within_one_class(make_model):
    model, source = make_model(), Recorded()
    predictor = predictor_of(model, source, inference="cluster", clusters=3)
    assert predictor.member_SC.sum(0).tolist() == [3, 3, 3]
    z_SD, label_S, _ = encoded(model, source, 100)
    for y in range(3):
        own, centre = z_SD[label_S == y], predictor.support_SD[predictor.member_SC[:, y] == 1]
        nearest = torch.cdist(own, centre).argmin(1)
        means = torch.stack([own[nearest == number].mean(0) for number in range(3)])
        torch.testing.assert_close(centre, means, **EXACT)


def test_probabilities_sum_to_one_and_a_class_without_support_has_almost_none(make_step, make_model):
    source, x = Recorded({0: [0, 1], 1: [0, 1], 2: [0]}), make_step(seed=1).x
    for inference in ("random", "full", "cluster", "ensemble"):
        p_NC = predictor_of(make_model(), source, inference=inference)(x).detach().exp()
        torch.testing.assert_close(p_NC.sum(1), torch.ones(len(x), dtype=torch.float64), **EXACT)
        assert p_NC[:, 2].max() < 2e-12


def test_without_training_data_the_error_says_what_to_do(make_step, make_model):
    learner, step = make_learner(make_model(), None), make_step()
    with pytest.raises(UsageError, match=r"give Learner\(source="):
        learner.step(step.x, step.targets_EB)
    with pytest.raises(UsageError, match=r"learner.predictor\(source\)"):
        learner.predict(step.x)


@pytest.mark.parametrize(
    "hp",
    [
        {},
        {"inference": "random", "shots": 2},
        {"inference": "cluster"},
        {"inference": "ensemble", "kernel": "hypersphere", "shots": 4},
        {"kernel": "cosine", "shots": 4},
    ],
)
def test_nw_head_keeps_the_contract(hp):
    check_algorithm(nw_head, **hp)
