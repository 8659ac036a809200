"""Statistics of a comparison: spread, paired differences, what a design can tell; against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dgharness.report.paired import Comparison, compare, hierarchical_se, holm
from dgharness.report.statistics import MOST_TRIALS, mean_se, power, smallest_p, trials_needed


def compared(difference_nm: np.ndarray) -> Comparison:
    """A comparison of rows that differ by just these amounts in n trials and m held-out domains."""
    base_nm = np.random.RandomState(0).rand(*difference_nm.shape)
    columns = [
        [dict(enumerate(column)) for column in values_nm.T]
        for values_nm in (base_nm + difference_nm, base_nm)
    ]
    found = compare(*columns)
    assert found is not None
    return found


# --- spread ----------------------------------------------------------------------------------------


def test_standard_error_is_that_of_scipy_and_absent_for_one_value():
    values = [0.3, 0.5, 0.4, 0.9]
    assert mean_se(values) == pytest.approx((np.mean(values), stats.sem(values)))
    assert mean_se([0.3]) == mean_se([0.3], ddof=0) == (0.3, None)


def test_without_degrees_of_freedom_the_standard_error_is_domainbeds():
    values = [0.3, 0.5, 0.4]
    assert mean_se(values, ddof=0)[1] == pytest.approx(np.std(np.array(values) / np.sqrt(3)))
    assert mean_se(values, ddof=0)[1] == pytest.approx(np.sqrt(2 / 3) * mean_se(values)[1])


# --- paired differences ----------------------------------------------------------------------------


def test_with_one_held_out_domain_it_is_the_paired_t_test_and_its_interval():
    rival, baseline = [0.31, 0.52, 0.44, 0.61], [0.30, 0.45, 0.46, 0.50]
    found = compare([dict(enumerate(rival))], [dict(enumerate(baseline))])
    reference = stats.ttest_rel(rival, baseline)
    interval = reference.confidence_interval(0.95)
    assert found is not None
    assert (found.difference, found.p) == pytest.approx(
        (np.mean(rival) - np.mean(baseline), reference.pvalue)
    )
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_with_several_held_out_domains_the_trials_means_are_tested():
    difference_nm = np.random.RandomState(1).normal(0.02, 0.01, (3, 4))
    reference = stats.ttest_1samp(difference_nm.mean(1), 0)
    found = compared(difference_nm)
    assert (found.p, found.trials) == pytest.approx((reference.pvalue, 3))
    assert (found.difference, found.sd) == pytest.approx(
        (difference_nm.mean(), difference_nm.mean(1).std(ddof=1))
    )


def test_the_interval_is_t_times_the_hierarchical_bootstraps_standard_error():
    difference_nm = np.random.RandomState(2).normal(0.02, 0.05, (3, 4))
    n, m = difference_nm.shape
    draw = np.random.RandomState(3)
    times = 40_000
    trial_Rn = draw.randint(n, size=(times, n))
    domain_Rnm = draw.randint(m, size=(times, n, m))
    drawn = difference_nm[trial_Rn[..., None], domain_Rnm].mean((1, 2)).std()
    assert hierarchical_se(difference_nm) == pytest.approx(drawn * np.sqrt(n / (n - 1)), rel=0.02)
    half = stats.t.ppf(0.975, n - 1) * hierarchical_se(difference_nm)
    found = compared(difference_nm)
    assert (found.low, found.high) == pytest.approx(
        (difference_nm.mean() - half, difference_nm.mean() + half)
    )


def test_comparison_pairs_by_trial_and_needs_two_that_share_every_domain():
    found = compare([{0: 0.5, 1: 0.7, 2: 0.1}], [{1: 0.6, 0: 0.5, 9: 0.9}])
    assert found is not None and found.trials == 2 and found.difference == pytest.approx(0.05)
    assert compare([{0: 0.5, 1: 0.7}], [{1: 0.6}]) is None
    assert compare([{0: 0.5, 1: 0.7}, {0: 0.5, 2: 0.1}], [{0: 0.5, 1: 0.7, 2: 0.1}] * 2) is None


def test_equal_trials_are_identical_and_not_significant():
    found = compared(np.zeros((3, 2)))
    assert found.identical and found.p == 1 and not found.significant and not found.undecided


def test_differences_that_cancel_over_domains_are_no_difference_but_not_identical():
    found = compared(np.array([[0.1, -0.1]] * 3))
    assert found.p == 1 and not found.identical
    assert found.low is not None and found.low < 0 < found.high


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_a_constant_difference_is_as_certain_as_a_sign_test_and_no_more(n):
    found = compared(np.full((n, 1), 0.1))  # up to rounding
    assert found.p == smallest_p(n) == stats.binomtest(n, n).pvalue
    assert found.low is None and not found.identical


def test_holm_agrees_with_a_definition_by_hand():
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}
    corrected = holm({name: Comparison(0.1, None, None, p, p, 3) for name, p in ps.items()})
    assert {name: found.p_holm for name, found in corrected.items()} == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5}
    )
    assert list(corrected) == list(ps)


# --- what a design can tell ------------------------------------------------------------------------


def test_the_smallest_p_is_that_of_trials_that_all_agree():
    assert smallest_p(5) == stats.binomtest(5, 5).pvalue
    assert smallest_p(5, comparisons=3) == 3 * smallest_p(5)
    assert smallest_p(3, comparisons=9) == 1


@pytest.mark.parametrize(("effect", "trials"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_trials_needed_for_cohens_small_medium_and_large_effects_are_those_of_power_tables(effect, trials):
    assert trials_needed(effect, 1.0) == trials_needed(-2 * effect, 2.0) == trials


@pytest.mark.parametrize(("n", "effect", "level"), [(3, 1.0, 0.05), (5, 2.0, 0.01), (12, 0.3, 0.05)])
def test_power_is_that_of_the_noncentral_t_distribution(n, effect, level):
    critical, shift = stats.t.isf(level / 2, n - 1), effect * np.sqrt(n)
    reference = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power(n, effect, level) == pytest.approx(reference, abs=1e-5)  # far less than a trial


def test_power_is_how_often_simulated_tests_reach_the_level():
    drawn = np.random.RandomState(0).normal(5, 1, (20_000, 3))  # here scipy's noncentral t is NaN
    reached = (stats.ttest_1samp(drawn, 0, axis=1).pvalue <= 0.05 / 9).mean()
    assert power(3, 5.0, 0.05 / 9) == pytest.approx(reached, abs=4 * np.sqrt(0.25 / 20_000))


def test_more_trials_than_anyone_runs_are_not_counted():
    assert trials_needed(0.0, 1.0) is None
    least = 0.0887  # found with probability 0.8 at about a thousand trials
    needed = trials_needed(least, 1.0)
    assert needed is not None and MOST_TRIALS - 5 < needed <= MOST_TRIALS
    assert trials_needed(0.99 * least, 1.0) is None


def test_rows_that_are_called_different_need_no_more_trials_and_others_go_by_the_first_step():
    rows = {
        "clear": compared(np.array([[0.30], [0.31], [0.30]])),
        "vague": compared(np.array([[0.02], [0.05], [-0.01]])),
    }
    found = holm(rows)
    assert found["clear"].significant and found["clear"].trials_needed is None
    assert found["vague"].undecided
    assert found["vague"].trials_needed == trials_needed(0.02, 0.03, 0.05 / 2) > 3
