"""Lines and parabolas through accuracies: known fits, known references, and what is left undecided."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dgharness.diagnostics.accuracy_on_the_line import verdict
from dgharness.diagnostics.curves import bend
from dgharness.diagnostics.line import clipped, fit_curve, line, scaled, unscaled


def parabola() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0.5, 0.98, 49)
    return x, 0.2 + 3 * (x - 0.6) ** 2


def noisy_line(runs: int = 40, slope: float = 0.8, noise: float = 0.05, seed: int = 0):
    """Accuracies on a line of the probit scale, with noise."""
    chance = np.random.default_rng(seed)
    x = chance.uniform(0.0, 2.0, runs)
    return unscaled(x, "probit"), unscaled(slope * x - 0.3 + noise * chance.standard_normal(runs), "probit")


def test_a_parabola_has_the_known_fit_on_the_raw_scale():
    x, y = parabola()
    curve = fit_curve(x, y, np.arange(49), "raw")
    assert curve.r2_linear == pytest.approx(0.8307, abs=5e-5)
    assert (curve.r2_quadratic, curve.curvature, curve.vertex) == pytest.approx((1, 3, 0.6))
    assert curve.curvature_interval.low == pytest.approx(3) == curve.curvature_interval.high


def test_a_parabola_has_the_known_fit_on_the_probit_scale():
    x, y = parabola()
    curve = fit_curve(x, y, np.arange(49), "probit")
    assert (curve.r2_linear, curve.r2_quadratic) == pytest.approx((0.9437, 0.9594), abs=5e-5)


def test_fits_agree_with_scipy_and_numpy():
    x, y = noisy_line()
    curve = fit_curve(x, y, np.arange(len(x)), "probit")
    u, v = stats.norm.ppf(x), stats.norm.ppf(y)
    reference = stats.linregress(u, v)
    assert (curve.slope, curve.intercept, curve.r) == pytest.approx(
        (reference.slope, reference.intercept, reference.rvalue)
    )
    assert curve.r2_linear == pytest.approx(reference.rvalue**2)
    assert curve.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert curve.coefficients == pytest.approx(np.polyfit(u, v, 2)[::-1])
    n, r2 = len(x), curve.r2_quadratic
    assert curve.adjusted_quadratic == pytest.approx(1 - (1 - r2) * (n - 1) / (n - 3))


def test_the_bootstrap_agrees_with_one_that_refits_every_sample():
    x, y = noisy_line(noise=0.2)
    run = np.arange(40) // 4  # ten runs of four checkpoints
    curve = fit_curve(x, y, run, "raw", samples=4000)
    chance = np.random.default_rng(1)
    drawn = [
        np.concatenate([np.flatnonzero(run == r) for r in chance.integers(10, size=10)]) for _ in range(2000)
    ]
    curvature = [np.polyfit(x[rows], y[rows], 2)[0] for rows in drawn]
    correlation = [np.corrcoef(x[rows], y[rows])[0, 1] for rows in drawn]
    width = np.std(curvature)
    found = curve.curvature_interval
    assert (found.low, found.high) == pytest.approx(np.quantile(curvature, [0.025, 0.975]), abs=0.2 * width)
    found = curve.r_interval
    assert (found.low, found.high) == pytest.approx(np.quantile(correlation, [0.025, 0.975]), abs=0.01)


def test_checkpoints_of_one_run_narrow_no_interval():
    x, y = noisy_line(runs=12, noise=0.3)
    alone = fit_curve(x, y, np.arange(12), "raw")
    repeated = fit_curve(np.repeat(x, 5), np.repeat(y, 5), np.repeat(np.arange(12), 5), "raw")
    assert repeated.points == 60 and repeated.runs == 12
    assert (repeated.curvature_interval.low, repeated.curvature_interval.high) == pytest.approx(
        (alone.curvature_interval.low, alone.curvature_interval.high)
    )


def test_too_few_runs_have_no_interval_and_no_shape():
    x, y = parabola()
    curve = fit_curve(x, y, np.arange(49) // 20, "raw")
    assert curve.runs == 3 and np.isnan(curve.curvature_interval.low) and not curve.turns
    assert "nothing is said of its shape" in bend(curve)


def test_what_points_do_not_determine_is_not_a_number():
    two = fit_curve(np.array([0.5, 0.6, 0.5]), np.array([0.4, 0.5, 0.3]), np.arange(3), "raw")
    assert two.slope == pytest.approx(1.5) and np.isnan(two.curvature) and np.isnan(two.r2_quadratic)
    flat = fit_curve(np.full(9, 0.5), np.linspace(0.1, 0.9, 9), np.arange(9), "raw")
    assert np.isnan([flat.slope, flat.r, flat.curvature, flat.curvature_interval.low]).all()
    assert np.isnan(line(np.array([0.5]), np.array([0.4]))).all()


def test_a_moon_turns_within_its_points():
    x, y = parabola()
    assert "a moon shape" in bend(fit_curve(x, y, np.arange(49), "raw"))
    right = x > 0.7  # the same parabola, seen beyond its vertex
    assert "no moon" in bend(fit_curve(x[right], y[right], np.arange(right.sum()), "raw"))
    assert "rises and falls" in bend(fit_curve(x, 0.9 - y, np.arange(49), "raw"))


def test_a_noisy_line_is_seldom_called_bent():
    fits = (fit_curve(*noisy_line(seed=seed), np.arange(40), "probit", samples=500) for seed in range(60))
    bent = sum(0 not in curve.curvature_interval for curve in fits)
    assert bent <= 9  # 5 % of 60 are 3; the percentile interval is a little too narrow


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_perfect_and_hopeless_accuracies_have_a_finite_probit(accuracy):
    assert np.isfinite(scaled(clipped(np.array([accuracy]), np.array([50])), "probit")).all()


def test_the_probit_scale_is_undone():
    p = np.linspace(0.01, 0.99, 9)
    assert unscaled(scaled(p, "probit"), "probit") == pytest.approx(p)


# --- the verdict -----------------------------------------------------------------------------------


def test_accuracy_on_the_line_is_found():
    x, y = noisy_line()
    assert verdict(fit_curve(x, y, np.arange(40), "probit"), np.ptp(x)) == ("on the line", "")


@pytest.mark.parametrize("slope", [-0.8, 0.0])
def test_an_inverse_or_absent_relation_tests_the_removal_of_spurious_features(slope):
    x, y = noisy_line(slope=slope, noise=0.1)
    assert verdict(fit_curve(x, y, np.arange(40), "probit"), np.ptp(x))[0] == "off the line"


def test_few_runs_or_models_that_are_alike_are_undecided():
    x, y = noisy_line()
    told, why = verdict(fit_curve(x, y, np.arange(40) // 8, "probit"), np.ptp(x))
    assert told == "undecided" and "5 runs are too few" in why
    told, why = verdict(fit_curve(x, y, np.arange(40), "probit"), 0.02)
    assert told == "undecided" and "span 2.0 points" in why


def test_a_middling_relation_is_undecided():
    x, y = noisy_line(noise=0.9)
    told, why = verdict(fit_curve(x, y, np.arange(40), "probit"), np.ptp(x))
    assert told == "undecided" and "neither clearly" in why
