"""Blobs: where they lie under every kind of shift, and that the accuracies in the docstring are those."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import norm

import dgharness
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.synthetic.spurious_blobs import BlobOptions, blobs, spurious_blobs
from dgharness.errors import UsageError

KINDS = ("covariate", "concept", "spurious", "subpopulation")
SHIFTS = (0.0, 0.2, 0.5, 0.9, 1.0)
MARGIN, STRENGTH = 0.8, 1.5
N = 40_000
PHI = norm.cdf


def bayes_accuracy(kind: str, s: float, m: float = MARGIN, g: float = STRENGTH) -> float:
    """As the docstring says."""
    right = (1 - s) * PHI(m) + s * PHI(-m)
    return {
        "covariate": PHI(m),
        "concept": max(right, 1 - right),
        "spurious": PHI(math.hypot(m, g * (1 - 2 * s))),
        "subpopulation": (1 - s) * PHI(m) + s * PHI(m / 2),
    }[kind]


def first_rule_accuracy(kind: str, s: float, m: float = MARGIN, g: float = STRENGTH) -> float:
    """That of the Bayes rule of shift 0, as the docstring says."""
    return {
        "covariate": PHI(m),
        "concept": (1 - s) * PHI(m) + s * PHI(-m),
        "spurious": PHI((m**2 + g**2 * (1 - 2 * s)) / math.hypot(m, g)),
        "subpopulation": (1 - s) * PHI(m) + s * PHI(m / 2),
    }[kind]


def components(kind: str, s: float, m: float = MARGIN, g: float = STRENGTH):
    """(label, weight, centre) of the Gaussians that make up a domain."""
    for c in (-1, 1):
        label = int(c > 0)
        if kind == "covariate":
            yield label, 0.5, (c * m, g * s)
        elif kind == "concept":
            yield label, 0.5 * (1 - s), (c * m, 0.0)
            yield 1 - label, 0.5 * s, (c * m, 0.0)
        elif kind == "spurious":
            yield label, 0.5, (c * m, c * g * (1 - 2 * s))
        else:
            yield label, 0.5 * (1 - s), (c * m, -g)
            yield label, 0.5 * s, (c * m / 2, g)


def joint(kind: str, s: float, x: torch.Tensor) -> torch.Tensor:
    """Density of x [N, 2] and each label, [N, 2]."""
    density = torch.zeros(len(x), 2, dtype=torch.float64)
    for label, weight, centre in components(kind, s):
        away = x.double() - torch.tensor(centre, dtype=torch.float64)
        density[:, label] += weight * (-away.square().sum(1) / 2).exp() / (2 * math.pi)
    return density


def domain(kind: str, s: float):
    ((_, found),) = spurious_blobs(kind, (s,), MARGIN, STRENGTH, n=N)["train"].items()
    return found


@pytest.mark.parametrize(("kind", "s"), list(itertools.product(KINDS, SHIFTS)))
def test_the_accuracies_are_those_of_the_best_classifier_by_integration(kind, s):
    step = 0.02
    axis = torch.arange(-8, 8, step, dtype=torch.float64) + step / 2
    grid = torch.cartesian_prod(axis, axis)
    here, at_zero = joint(kind, s, grid), joint(kind, 0.0, grid)
    best = here.max(1).values.sum().item() * step**2
    rule = torch.where(at_zero[:, 1] > at_zero[:, 0], here[:, 1], here[:, 0]).sum().item() * step**2
    assert best == pytest.approx(bayes_accuracy(kind, s), abs=2e-4)
    assert rule == pytest.approx(first_rule_accuracy(kind, s), abs=2e-4)


@pytest.mark.parametrize(("kind", "s"), list(itertools.product(KINDS, SHIFTS)))
def test_the_examples_are_drawn_from_that_density(kind, s):
    found = domain(kind, s)
    error = 4 * 0.5 / math.sqrt(N)
    likelier = joint(kind, s, found.x).argmax(1)
    right = (likelier == found.y_N).double().mean().item()
    # Where the labels are as often flipped as not, any guess is as good as another.
    assert right == pytest.approx(bayes_accuracy(kind, s), abs=error)
    at_zero = joint(kind, 0.0, found.x).argmax(1)
    assert (at_zero == found.y_N).double().mean().item() == pytest.approx(
        first_rule_accuracy(kind, s), abs=error
    )
    for label in (0, 1):
        members = [(weight, centre) for own, weight, centre in components(kind, s) if own == label]
        total = sum(weight for weight, _ in members)
        mean = [sum(weight * centre[k] for weight, centre in members) / total for k in (0, 1)]
        assert found.x[found.y_N == label].mean(0).tolist() == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_0_changes_nothing_and_the_dial_is_in_the_distance_from_it(kind):
    calm = spurious_blobs(kind, (0.0,), strength=2.0, n=N)["train"]["shift 0%"]
    attribute = calm.attributes["attribute"]
    share = {"covariate": 0.5, "concept": 0.0, "spurious": 0.5, "subpopulation": 0.0}[kind]
    assert attribute.double().mean().item() == pytest.approx(share, abs=0.01)
    assert (calm.y_N == 1).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_in_a_spurious_domain_the_attribute_agrees_with_the_label_as_often_as_the_normal_law_says():
    for s in SHIFTS:
        found = domain("spurious", s)
        agrees = (found.attributes["attribute"] == found.y_N).double().mean().item()
        assert agrees == pytest.approx(PHI(STRENGTH * (1 - 2 * s)), abs=4 * 0.5 / math.sqrt(N))


@pytest.mark.parametrize("kind", ["concept", "subpopulation"])
def test_the_attribute_marks_what_the_shift_brought_in(kind):
    for s in SHIFTS:
        found = domain(kind, s)
        marked = found.attributes["attribute"] == 1
        assert marked.double().mean().item() == pytest.approx(s, abs=4 * 0.5 / math.sqrt(N))
        if kind == "subpopulation" and s > 0:
            right = (found.x[marked, 0] > 0) == (found.y_N[marked] == 1)
            assert right.double().mean().item() == pytest.approx(
                PHI(MARGIN / 2), abs=4 * 0.5 / math.sqrt(N * s)
            )
            assert found.x[marked, 1].mean().item() == pytest.approx(STRENGTH, abs=0.05)


def test_it_is_public_and_the_seed_decides_everything():
    assert dgharness.spurious_blobs is spurious_blobs
    one, again, other = (spurious_blobs(n=20, seed=seed)["train"]["shift 25%"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_groups_are_label_by_attribute():
    dataset = blobs.load(None, None, 0, BlobOptions(n=50))
    assert dataset.domains == ("shift 0%", "shift 25%", "shift 100%")
    assert dataset.toy and dataset.groups == ("y", "attribute") and dataset.input_shape == (2,)
    assert leave_one_domain_out(dataset, ["shift 100%"], 0).train_domains == ("shift 0%", "shift 25%")


@pytest.mark.parametrize("shifts", [(0.1, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_mistakes_are_named(shifts):
    with pytest.raises(UsageError, match="must be numbers from 0 to 1, and none twice"):
        spurious_blobs(shifts=shifts)
