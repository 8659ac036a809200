"""Reading the domain from features: chance where there is nothing to read, all of it where it is written."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from dgharness.diagnostics.domain_predictability import readability, readability_within, readable


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_features_that_know_nothing_of_the_domain_are_read_at_chance(random):
    z, domain = random.normal(size=(900, 8)), np.arange(900) % 3
    found = readability(z, domain)
    assert found.chance == pytest.approx(1 / 3)
    # Three standard errors of a share of 1/3 in 900 guesses.
    assert found.balanced_accuracy == pytest.approx(1 / 3, abs=3 * np.sqrt(2 / 9 / 900))
    assert 0 < found.standard_error < 0.05


def test_chance_does_not_depend_on_how_unequal_the_domains_are(random):
    z, domain = random.normal(size=(1000, 4)), (np.arange(1000) < 100).astype(int)
    found = readability(z, domain)
    assert found.chance == 0.5
    assert found.balanced_accuracy == pytest.approx(0.5, abs=3 * 0.5 * np.sqrt(0.25 / 100 + 0.25 / 900))


def test_two_gaussians_are_told_apart_as_well_as_they_can_be(random):
    domain = np.arange(4000) % 2
    z = random.normal(size=(4000, 1)) + 2.0 * domain[:, None]
    assert readability(z, domain).balanced_accuracy == pytest.approx(norm.cdf(1), abs=0.02)


def test_what_only_the_label_tells_of_the_domain_is_gone_within_a_class(random):
    label = random.integers(0, 2, 2000)
    domain = np.where(random.random(2000) < 0.9, label, 1 - label)
    z = random.normal(size=(2000, 3)) + 4.0 * label[:, None]
    assert readability(z, domain).balanced_accuracy > 0.85
    within = readability_within(z, domain, label)
    assert within.chance == 0.5
    # Of each class 100 examples are of the rarer domain.
    assert within.balanced_accuracy == pytest.approx(0.5, abs=0.09)


def test_what_the_domain_does_within_a_class_is_seen_there(random):
    label, domain = random.integers(0, 2, 1000), random.integers(0, 2, 1000)
    z = np.stack([np.where(label == domain, 3.0, -3.0), label], axis=1) + random.normal(size=(1000, 2))
    assert readability(z, domain).balanced_accuracy < 0.6
    assert readability_within(z, domain, label).balanced_accuracy > 0.95


def test_rare_values_and_unknown_ones_are_left_out(random):
    a = np.array([0] * 20 + [1] * 20 + [2] * 3 + [-1] * 7)
    found = readability(random.normal(size=(50, 2)), a)
    assert (found.values, found.examples) == (2, 40)


def test_a_single_value_cannot_be_read(random):
    found = readability(random.normal(size=(30, 2)), np.zeros(30, dtype=int))
    assert np.isnan(found.balanced_accuracy) and found.examples == 0
    assert readability_within(random.normal(size=(30, 2)), np.zeros(30, int), np.zeros(30, int)).examples == 0


def test_constant_features_are_read_at_chance():
    assert readability(np.ones((40, 3)), np.arange(40) % 2).balanced_accuracy == 0.5


def test_the_same_seed_is_the_same_table(random):
    z, domain, label = random.normal(size=(200, 3)), np.arange(200) % 2, random.integers(0, 2, 200)
    one, other = (readable(z, {"domain": domain}, label, seed=3) for _ in range(2))
    assert one.equals(other)
    assert one["read"].tolist() == ["domain", "label"]
    assert readable(z, {"domain": domain}, None)["within_class"].isna().all()
