"""Distances between domains: against closed forms, sums written out, and samples of known distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dgharness.diagnostics.feature_distances import (
    MEASURES,
    coral_distance,
    distances,
    proxy_a_distance,
    standardised,
    unbiased_mmd,
)
from dgharness.diagnostics.trained import Sample


@pytest.fixture
def random():
    return np.random.default_rng(1)


def written_out(x, y, scale):
    """The unbiased squared MMD as two sums over pairs, one kernel after the other."""

    def kernel(a, b):
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.mean([np.exp(-squared / (2.0**i * scale)) for i in range(-2, 3)], axis=0)

    xx, yy = (kernel(z, z)[~np.eye(len(z), dtype=bool)].mean() for z in (x, y))
    return xx + yy - 2 * kernel(x, y).mean()


def test_mmd_is_the_sum_over_distinct_pairs(random):
    parts = [random.normal(size=(n, 3)) + shift for n, shift in ((7, 0.0), (5, 1.0), (6, 0.5))]
    pooled = np.concatenate(parts)
    squared = ((pooled[:, None] - pooled[None]) ** 2).sum(-1)
    scale = squared.sum() / (len(pooled) * (len(pooled) - 1))
    found = unbiased_mmd([torch.from_numpy(part) for part in parts])
    for first, second in ((0, 1), (0, 2), (1, 2)):
        expected = written_out(parts[first], parts[second], scale)
        assert found[first, second].item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(found, found.T)


def test_mmd_is_unbiased_where_nothing_differs(random):
    draws = random.normal(size=(200, 2, 20, 2))
    values = [unbiased_mmd(list(torch.from_numpy(pair)))[0, 1].item() for pair in draws]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * error


def test_mmd_of_shifted_gaussians_is_its_closed_form(random):
    # E exp(-|a - b|^2 / s) of a, b ~ N(., 1) in one dimension: sqrt(s / (s + 4)) exp(-mean^2 / (s + 4)).
    n, shift = 600, 1.0
    found = unbiased_mmd(
        [torch.from_numpy(random.normal(size=(n, 1))), torch.from_numpy(random.normal(size=(n, 1)) + shift)]
    )
    mean_squared = 2 + shift**2 / 2  # over pairs of the pooled sample: half of them lie in the same part
    widths = mean_squared * 2.0 ** np.arange(-2, 3)
    expected = np.mean(2 * np.sqrt(widths / (widths + 4)) * (1 - np.exp(-(shift**2) / (widths + 4))))
    assert found[0, 1].item() == pytest.approx(expected, rel=0.15)


def test_coral_of_scaled_features_is_the_difference_of_variances(random):
    z = random.normal(size=(50, 2))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T  # covariance 1
    x, y = torch.from_numpy(z), torch.from_numpy(2 * z + 5)
    assert coral_distance(x, y) == pytest.approx(2 * (1 - 4) ** 2 / (4 * 2**2))
    assert coral_distance(x, x + 7) == pytest.approx(0, abs=1e-20)


def test_sinkhorn_of_one_standard_deviation_in_every_feature_is_a_half(random):
    x = random.normal(size=(100, 5))
    table = distances([x, x + 1])
    assert table["sinkhorn"].item() == pytest.approx(0.5, rel=1e-3)


def test_sinkhorn_comes_near_the_exact_transport(random):
    x, y = random.normal(size=(60, 2)), random.normal(size=(60, 2)) * 2 + [3, 0]
    cost = ((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 2)
    exact = cost[linear_sum_assignment(cost)].mean()
    assert distances([x, y])["sinkhorn"].item() == pytest.approx(exact, rel=0.05)


def test_a_distance_is_near_0_for_equal_domains_and_2_for_separate_ones(random):
    x, y = random.normal(size=(2, 300, 4))
    assert abs(proxy_a_distance(x, y)) < 3 * 4 * np.sqrt(0.25 / 600)
    assert proxy_a_distance(x, y + 10) == 2
    assert np.isnan(proxy_a_distance(x[:2], y[:2]))


def test_every_two_domains_have_every_distance(random):
    table = distances([random.normal(size=(20, 2)) + shift for shift in (0, 0, 3)])
    assert list(zip(table["first"], table["second"], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert (table.loc[1:, list(MEASURES)].min() > table.loc[0, list(MEASURES)]).drop("coral").all()


def test_features_are_standardised_by_the_training_domains_and_constant_ones_left_out(random):
    z = np.concatenate([random.normal(3, 2, size=(40, 3)), random.normal(9, 2, size=(10, 3))])
    z[:40, 1] = 1.0
    sample = Sample(np.arange(50), z, np.repeat([0, 1], [40, 10]), ("a", "b"), (True, False))
    found = standardised(sample)
    assert found.shape == (50, 2)
    assert found[:40].mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert found[:40].std(0) == pytest.approx([1, 1])
    assert (found[40:].mean(0) > 1).all()
