"""What a search is worth by its number of draws, checked against every subset of the draws that were run."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from dgharness.metrics.measure import ACCURACY
from dgharness.report.budget import BudgetCurve, Draw, budget_curves, expected_best, expected_seconds
from dgharness.report.budget_table import budget_table
from dgharness.report.cells import build_tables
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation

NAN = math.nan


def record(
    algorithm: str = "erm",
    target: str = "t",
    trial: int = 0,
    draw: int = 0,
    val: float = 0.5,
    test: float = 0.5,
    seconds: float = 10.0,
    **fields: Any,
) -> RunRecord:
    targets = tuple(target.split("+"))
    metrics = {"val/acc/a": val, "val/acc/b": val} | {f"test/acc/{name}": test for name in targets}
    facts: dict[str, Any] = {
        "run_id": f"{algorithm}-{target}-h{draw}-t{trial}",
        "algorithm": algorithm,
        "dataset": "d",
        "protocol": "leave-one-domain-out",
        "targets": targets,
        "hparams_seed": draw,
        "trial_seed": trial,
        "status": "FINISHED",
        "evaluations": (Evaluation(100, metrics),),
        "cost": {"seconds": seconds},
    }
    return RunRecord(**(facts | fields))


def curves(records, rule=training_domain_validation, **options) -> dict[str, BudgetCurve]:
    (budget,) = budget_curves(records, rule, **options)
    return {curve.label: curve for curve in budget.curves}


def by_enumeration(draws: list[Draw], n: int) -> float:
    """The mean over all searches of n draws of what each would choose."""
    given = [draw for draw in draws if draw.number == 0]
    others = [draw for draw in draws if draw.number != 0]
    values = []
    for subset in combinations(others, n - len(given)):
        scored = [draw for draw in sorted([*given, *subset]) if not math.isnan(draw.score)]
        values.append(max(scored, key=lambda draw: draw.score).value if scored else NAN)
    return float(np.mean(values))


@pytest.mark.parametrize("first", [0, 1], ids=["with the defaults", "random draws alone"])
@pytest.mark.parametrize("seed", range(5))
def test_the_expected_best_is_the_mean_over_every_subset_of_draws(seed, first):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, 8) / 4  # with ties
    scores[rng.integers(8)] = NAN
    draws = [Draw(first + i, scores[i], rng.random(), 1.0) for i in rng.permutation(8)]
    for n in range(1, 9):
        assert expected_best(draws, n) == pytest.approx(by_enumeration(draws, n), nan_ok=True)


def test_the_defaults_are_in_every_search_and_are_all_of_the_smallest():
    draws = [Draw(0, 0.5, 0.30, 1.0), Draw(1, 0.9, 0.80, 1.0), Draw(2, 0.1, 0.10, 1.0)]
    assert expected_best(draws, 1) == 0.30
    assert expected_best(draws, 2) == pytest.approx((0.80 + 0.30) / 2)
    assert expected_best(draws, 3) == 0.80


def test_a_draw_that_the_rule_cannot_judge_is_never_chosen_and_alone_is_no_result():
    draws = [Draw(1, NAN, 0.9, 1.0), Draw(2, 0.1, 0.2, 1.0)]
    assert math.isnan(expected_best(draws, 1))
    assert expected_best(draws, 2) == 0.2


@pytest.mark.parametrize("n", [0, 3])
def test_more_draws_than_were_run_or_fewer_than_the_defaults_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} of 2 draws"):
        expected_best([Draw(0, 0.1, 0.1, 1.0), Draw(1, 0.2, 0.2, 1.0)], n)


def test_the_expected_time_is_the_mean_over_every_subset_of_draws():
    draws = [Draw(number, 0.5, 0.5, seconds) for number, seconds in enumerate((7.0, 1.0, 2.0, 12.0))]
    for n in range(1, 5):
        subsets = list(combinations(draws[1:], n - 1))
        mean = np.mean([draws[0].seconds + sum(draw.seconds for draw in subset) for subset in subsets])
        assert expected_seconds(draws, n) == pytest.approx(mean)


def test_all_draws_give_the_number_in_the_table():
    rng = np.random.default_rng(0)
    records = [
        record(name, target, trial, draw, val=rng.random(), test=rng.random())
        for name in ("erm", "vrex")
        for target in ("t", "u")
        for trial in range(3)
        for draw in range(4)
    ]
    (table,) = build_tables(records, [training_domain_validation])
    average = [column.name for column in table.columns].index("average")
    found = curves(records)
    for row in table.rows:
        cell, curve = row.cells[average], found[row.label]
        assert curve.draws == (1, 2, 3, 4)
        assert (curve.mean[-1], curve.se[-1]) == pytest.approx((cell.mean, cell.se))
        assert {trial: values[-1] for trial, values in curve.trials.items()} == pytest.approx(cell.trials)


def test_one_trial_has_no_standard_error():
    assert curves([record(draw=draw) for draw in range(2)])["erm"].se == (None, None)


def test_rows_are_compared_at_the_draws_and_at_the_time_that_all_of_them_have():
    records = [record(trial=t, draw=h, seconds=10.0) for t in range(2) for h in range(4)]
    records += [record("vrex", trial=t, draw=h, seconds=15.0) for t in range(2) for h in range(2)]
    planned = [(r.algorithm, r.targets, r.hparams_seed, r.trial_seed) for r in records]
    (budget,) = budget_curves(records, training_domain_validation, expected=planned)
    erm, vrex = budget.curves
    assert budget.equal_draws == 2
    assert erm.seconds == (10.0, 20.0, 30.0, 40.0) and vrex.seconds == (15.0, 30.0)
    assert budget.equal_seconds == 30.0
    assert (erm.within(30.0), vrex.within(30.0), vrex.within(14.9)) == (3, 2, 0)


def test_the_table_of_equal_budgets_has_what_each_row_found_with_as_much():
    records = [
        record(trial=t, draw=h, val=h / 10, test=h / 10, seconds=10.0) for t in range(2) for h in range(4)
    ]
    records += [record("vrex", trial=t, draw=h, seconds=15.0) for t in range(2) for h in range(2)]
    planned = [(r.algorithm, r.targets, r.hparams_seed, r.trial_seed) for r in records]
    (budget,) = budget_curves(records, training_domain_validation, expected=planned)
    table = budget_table(budget, ACCURACY)
    assert table is not None and table.columns[0].name == "2 draws"
    (two, timed, draws), (_, of_vrex, draws_of_vrex) = (row.cells for row in table.rows)
    assert two.mean == pytest.approx((0.1 + 0.2 + 0.3) / 3)  # the defaults and one of three others
    assert timed.mean == pytest.approx((0.2 + 0.3 + 0.3) / 3)  # ... and two of them
    assert (draws.mean, draws_of_vrex.mean, of_vrex.mean) == (3, 2, 0.5)
    assert "equal time is 30 s of training a trial" in table.caption[-1]


def test_there_is_no_table_of_equal_budgets_where_nothing_was_searched():
    (budget,) = budget_curves([record(trial=t) for t in range(2)], training_domain_validation)
    assert budget_table(budget, ACCURACY) is None


def test_a_time_that_was_not_logged_is_not_a_number():
    records = [record(draw=0), record(draw=1, cost={})]
    (budget,) = budget_curves(records, training_domain_validation)
    assert budget.curves[0].seconds == pytest.approx((10.0, NAN), nan_ok=True)
    assert math.isnan(budget.equal_seconds)


def test_trials_that_searched_longer_count_as_far_as_all_of_them_went():
    records = [record(trial=t, draw=h) for t, most in ((0, 3), (1, 2)) for h in range(most)]
    planned = [(r.algorithm, r.targets, r.hparams_seed, r.trial_seed) for r in records]
    assert curves(records, expected=planned)["erm"].draws == (1, 2)


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_an_unfinished_draw_leaves_its_row_without_a_curve_and_is_named(status):
    records = [record(), record(draw=1, status=status), record("vrex"), record("vrex", draw=1)]
    found = curves(records)
    assert found["erm"].problem.startswith(f"{status} 1 of 2") and not found["erm"].draws
    assert "erm-t-h1-t0" in found["erm"].detail
    assert found["vrex"].draws == (1, 2)


def test_a_draw_that_was_not_scored_where_the_rule_would_choose_leaves_no_curve():
    unscored = record(draw=1, evaluations=(Evaluation(50, {"val/acc/a": 0.1}),))
    found = curves([record(draw=0), unscored])["erm"]
    assert found.problem == "n/a" and "erm-t-h1-t0" in found.detail


def test_cross_validation_counts_the_time_of_its_pairs_once_over_the_targets_they_serve():
    own = [record(target=t, draw=h, seconds=10.0) for t in "abc" for h in range(2)]
    pairs = [record(target=t, draw=h, seconds=6.0) for t in ("a+b", "a+c", "b+c") for h in range(2)]
    found = curves([*own, *pairs], leave_one_domain_out_cv)["erm"]
    assert not found.problem
    assert found.seconds[-1] == pytest.approx(sum(run.cost["seconds"] for run in [*own, *pairs]))
