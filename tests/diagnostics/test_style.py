"""Style within and between domains: closed forms of two features, and what they are to be 0 or log 2 for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dgharness.diagnostics.style import class_means, icv_js, idd_js, softmax

ONE, TWO = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def measured(p, domain, label, domains=2, classes=2):
    p, domain, label = np.array(p), np.array(domain), np.array(label)
    mean, count = class_means(p, domain, label, domains, classes)
    return icv_js(p, domain, label, mean), idd_js(mean, count)


def test_examples_like_their_class_have_no_variation():
    icv, _ = measured([ONE, ONE, TWO, TWO], [0, 0, 0, 0], [0, 0, 1, 1])
    assert icv[0] == 0
    assert np.isnan(icv[1])  # no example there


def test_the_variation_is_the_mean_divergence_from_the_class():
    random = np.random.default_rng(0)
    p, label = random.dirichlet(np.ones(4), size=6), np.array([0, 0, 0, 1, 1, 1])
    icv, _ = measured(p, [0] * 6, label, domains=1)
    expected = [jensenshannon(one, p[label == c].mean(0)) ** 2 for one, c in zip(p, label, strict=True)]
    assert icv[0] == pytest.approx(np.mean(expected))


def test_domains_without_a_common_feature_are_as_unlike_as_can_be():
    _, idd = measured([ONE, ONE, TWO, TWO], [0, 0, 1, 1], [0, 1, 0, 1])
    assert idd == pytest.approx(np.array([[0, np.log(2)], [np.log(2), 0]]))


def test_other_shares_of_the_classes_alone_do_not_make_domains_unlike():
    _, idd = measured([ONE, ONE, ONE, TWO, ONE, TWO, TWO, TWO], [0] * 4 + [1] * 4, [0, 0, 0, 1, 0, 1, 1, 1])
    assert idd == pytest.approx(np.zeros((2, 2)))


def test_a_class_that_one_domain_lacks_is_left_out_and_none_in_common_is_unknown():
    _, idd = measured([ONE, TWO, ONE], [0, 0, 1], [0, 1, 0])
    assert idd == pytest.approx(np.zeros((2, 2)))
    _, idd = measured([ONE, TWO], [0, 1], [0, 1])
    assert np.isnan(idd[0, 1]) and idd[0, 0] == 0


def test_examples_of_unknown_class_are_left_out():
    icv, _ = measured([ONE, ONE, TWO], [0, 0, 0], [0, 0, -1])
    assert icv[0] == 0


def test_features_become_distributions():
    p = softmax(np.random.default_rng(0).normal(size=(5, 7)) * 100)
    assert p.sum(1) == pytest.approx(np.ones(5))
