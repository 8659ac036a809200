"""Tables: what stands in a cell, what blocks an average, what may be called significant."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import random
import re

import numpy as np
import pytest
from scipy import stats

from dgharness.errors import UsageError
from dgharness.names import slug
from dgharness.report.cells import build_tables
from dgharness.report.extras import usual_extras
from dgharness.report.render import render, shown
from dgharness.report.table import Cell, Column, Stated, Table
from dgharness.selection.last import last
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.selection.worst_class import worst_class
from dgharness.selection.worst_group import worst_group

DOMAINS = ("+90%", "+80%", "-90%")


def record(
    algorithm: str = "erm",
    targets: tuple[str, ...] = ("-90%",),
    trial: int = 0,
    test: float = 0.5,
    draw: int = 0,
    val: float = 0.5,
    holdout: float | None = None,
    **fields: object,
) -> RunRecord:
    """A run with one checkpoint and the same accuracy on all its targets."""
    metrics = {f"val/acc/{slug(d)}": val for d in DOMAINS if d not in targets} | {
        "val/wga": val,
        "test/wga": test / 2,
    }
    for target in targets:
        metrics |= {f"test/acc/{slug(target)}": test}
        metrics |= {f"test_holdout/acc/{slug(target)}": test if holdout is None else holdout}
    facts: dict[str, object] = {
        "run_id": f"{algorithm}-{'+'.join(map(slug, targets))}-h{draw}-t{trial}",
        "algorithm": algorithm,
        "dataset": "colored-digits",
        "protocol": "leave-one-domain-out",
        "targets": targets,
        "hparams_seed": draw,
        "trial_seed": trial,
        "status": "FINISHED",
        "evaluations": (Evaluation(100, metrics),),
        "tags": {"dg.toy": "true"},
    }
    return RunRecord(**(facts | fields))  # type: ignore[arg-type]


def sweep(accuracy: dict[str, list[float]], targets: tuple[str, ...] = ("-90%",)) -> list[RunRecord]:
    """Algorithms with one accuracy per trial, the same on every target."""
    return [
        record(name, (target,), trial, value)
        for name, values in accuracy.items()
        for target in targets
        for trial, value in enumerate(values)
    ]


def cell(table: Table, row: str, column: str) -> Cell:
    names = [column.name for column in table.columns]
    (found,) = [item for item in table.rows if item.label == row]
    return found.cells[names.index(column)]


def one(records: list[RunRecord], rule=training_domain_validation, **options) -> Table:
    (table,) = build_tables(records, [rule], **options)
    return table


# --- cells -----------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_over_trials_of_the_chosen_runs_with_its_standard_error():
    runs = [record(trial=t, draw=h, val=h / 10, test=0.1 * t + 0.3 * h) for t in range(3) for h in range(2)]
    found = cell(one(runs), "erm", "-90%")
    assert found.trials == pytest.approx({0: 0.3, 1: 0.4, 2: 0.5})  # draw 1, which validates better
    assert (found.mean, found.se) == pytest.approx((0.4, stats.sem([0.3, 0.4, 0.5])))


def test_one_trial_has_no_standard_error_and_no_test():
    table = one(sweep({"erm": [0.5], "vrex": [0.9]}))
    assert (
        cell(table, "vrex", "-90%").se is None and cell(table, "vrex", "difference to erm").comparison is None
    )
    assert "90.0 ± n/a" in render(table) and "no standard error and no test" in render(table)


def test_the_average_is_over_targets_within_a_trial_first():
    runs = [
        record(targets=(d,), trial=t, test=0.2 * i + 0.1 * t) for i, d in enumerate(DOMAINS) for t in range(3)
    ]
    table = one(runs)
    assert [column.name for column in table.columns][:4] == [*DOMAINS, "average"]
    assert cell(table, "erm", "average").trials == pytest.approx({0: 0.2, 1: 0.3, 2: 0.4})


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_an_unfinished_run_is_named_and_blocks_its_rows_average(status):
    runs = sweep({"erm": [0.5, 0.6, 0.7], "vrex": [0.5, 0.6, 0.7]}, DOMAINS)
    runs = [
        dataclasses.replace(run, status=status, error="loss was not finite")
        if run.run_id.startswith("vrex-plus80pct-h0-t1")
        else run
        for run in runs
    ]
    table = one(runs)
    assert cell(table, "vrex", "+80%").problem.startswith(f"{status} 1 of 3: vrex-plu")
    assert cell(table, "vrex", "+90%").mean == pytest.approx(0.6)
    assert cell(table, "vrex", "average").problem == "blocked by +80%"
    assert cell(table, "vrex", "difference to erm").mean is None
    assert cell(table, "erm", "average").mean == pytest.approx(0.6)
    assert f"{status} run vrex-plus80pct-h0-t1 (loss was not finite)" in render(table)


def test_a_missing_run_is_inferred_from_the_grid_of_the_others():
    runs = sweep({"erm": [0.5, 0.6, 0.7], "vrex": [0.5, 0.6]})
    assert cell(one(runs), "vrex", "-90%").problem == "MISSING 1 of 3: h0 t2"


def test_a_planned_run_is_missed_even_if_nothing_like_it_exists():
    plan = [(name, ("-90%",), 0, trial) for name in ("vrex", "erm", "coral") for trial in range(3)]
    table = one(sweep({"erm": [0.5, 0.6, 0.7], "vrex": [0.5, 0.6, 0.7]}), expected=plan)
    assert [row.label for row in table.rows] == ["erm", "vrex", "coral"]
    assert cell(table, "coral", "-90%").problem == "MISSING 3 of 3: h0 t0, h0 t1, h0 t2"


def test_runs_outside_the_plan_are_left_out():
    plan = [("erm", ("-90%",), 0, 0)]
    table = one(sweep({"erm": [0.5, 0.9], "vrex": [0.7]}), expected=plan)
    assert [row.label for row in table.rows] == ["erm"] and cell(table, "erm", "-90%").trials == {0: 0.5}


def test_a_failed_draw_blocks_the_cell_even_if_another_draw_finished():
    runs = [record(draw=0), record(draw=1, status="FAILED")]
    assert cell(one(runs), "erm", "-90%").problem.startswith("FAILED 1 of 2")


def test_an_incomplete_baseline_leaves_rivals_without_a_difference():
    table = one(sweep({"erm": [0.5], "vrex": [0.5, 0.6]}))
    assert cell(table, "vrex", "difference to erm").problem == "baseline incomplete"


def test_a_finished_run_stands_for_its_failed_attempts():
    runs = [record(run_id="first", status="FAILED", test=0.1), record(run_id="second", test=0.6)]
    assert cell(one(runs), "erm", "-90%").mean == 0.6
    assert cell(one(runs[::-1]), "erm", "-90%").mean == 0.6


def test_two_finished_runs_of_one_slot_are_named_unless_they_are_the_same_configuration():
    different = [record(run_id=name, tags={"dg.config_hash": name}) for name in ("r1", "r2")]
    same = [record(run_id=name, tags={"dg.config_hash": "c"}) for name in ("r1", "r2")]
    found = cell(one(different), "erm", "-90%")
    assert found.problem.startswith("AMBIGUOUS 1 of 1") and "r1, r2" in found.detail
    assert cell(one(same), "erm", "-90%").mean == 0.5


def test_a_test_accuracy_that_was_not_logged_is_not_a_number():
    bare = record(evaluations=(Evaluation(100, {"val/acc/a": 0.5}),))
    found = cell(one([bare]), "erm", "-90%")
    assert found.problem == "n/a" and found.mean is None and bare.run_id in found.detail


def test_what_a_method_cannot_do_is_not_applicable_with_its_reason():
    runs = sweep({"erm": [0.5, 0.6]}, DOMAINS)
    reasons = {("coral", (d,)): "needs 2 training domains" for d in DOMAINS}
    table = one(runs, not_applicable=reasons)
    assert cell(table, "coral", "-90%").problem == "n/a"
    assert cell(table, "coral", "average").problem == "n/a"
    assert "coral on -90%: needs 2 training domains" in render(table)


def test_what_cannot_run_on_the_datasets_own_split_is_named_with_its_reason():
    # The plan of such a run names no targets: the split was never made.
    table = one(sweep({"erm": [0.5, 0.6]}), not_applicable={("drm", ()): "it needs classes"})
    assert cell(table, "drm", "-90%").problem == "n/a"
    assert "drm on -90%: it needs classes" in render(table)


def test_a_row_of_fewer_trials_is_named_as_such():
    plan = [("erm", ("-90%",), 0, 0), ("erm", ("-90%",), 0, 1), ("vrex", ("-90%",), 0, 1)]
    runs = [*sweep({"erm": [0.5, 0.6]}), record("vrex", trial=1)]
    (note,) = one(runs, expected=plan).notes
    assert note.startswith("vrex was run on 1 of 2 trials (t1)")
    assert not one(sweep({"erm": [0.5, 0.6], "vrex": [0.5, 0.6]})).notes


def test_a_method_that_never_left_the_baseline_is_named():
    def run(algorithm: str, nll: float, tta: str = "none") -> RunRecord:
        metrics = {"val/acc/a": 0.5, "val/nll": nll, f"test/acc/{slug('-90%')}": 0.5}
        return record(algorithm, tta=tta, evaluations=(Evaluation(100, metrics),))

    rivals = [run("pair", 0.7), run("vrex", 0.71), run("erm", 0.7, tta="t3a"), run("pair", 0.7, tta="t3a")]
    (note,) = one([run("erm", 0.7), *rivals]).notes
    assert note.startswith("pair, pair + t3a have the validation loss of erm at every checkpoint")
    assert not one([run("erm", 0.7), run("vrex", 0.71)]).notes


def test_an_oracle_without_target_labels_says_what_it_lacks():
    bare = record(evaluations=(Evaluation(100, {"val/acc/a": 0.5, "test/acc/-90%": 0.5}),))
    found = cell(one([bare], rule=oracle), "erm", "-90%")
    assert found.problem == "n/a" and "no labelled target examples were held back" in found.detail


def test_a_rule_on_classes_says_of_regression_what_it_lacks():
    metrics = {"val/mse/a": 2.0, "test/mse/minus90pct": 3.0}
    table = one([record(evaluations=(Evaluation(100, metrics),))], rule=worst_class)
    assert "it goes by classes" in cell(table, "erm", "-90%").detail
    assert "accuracy of the worst class" in " ".join(table.caption)


def test_averaging_and_test_time_methods_are_rows_of_their_own():
    runs = [record(test=0.5), record(test=0.6, tta="t3a"), record(test=0.7, averaging="sma", tta="t3a")]
    table = one(runs)
    assert [row.label for row in table.rows] == ["erm", "erm + sma + t3a", "erm + t3a"]


def test_warnings_of_trust_and_of_data_used_stand_under_the_table():
    tags = {"dg.trust": "unverified", "dg.uses": "unlabeled target data"}
    text = render(one([record(), record("novel", tags=tags | {"dg.toy": "true"})]))
    assert "novel is an unverified reconstruction" in text and "novel uses unlabeled target data" in text


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "in1k-v1"},
        {"protocol": "official"},
        {"dataset": "PACS"},
        {"tags": {"dg.toy": "true", "dg.settings": "train.steps 60"}},
        {"tags": {"dg.toy": "true", "dg.model": "resnet50"}},
    ],
)
def test_runs_that_differ_in_more_than_the_algorithm_never_share_a_table(other):
    tables = build_tables([record(test=0.5), record("vrex", test=0.7, **other)], [training_domain_validation])
    assert [[row.label for row in table.rows] for table in tables] == [["erm"], ["vrex"]]
    assert tables[0].caption != tables[1].caption


def test_several_targets_held_out_at_once_are_one_column_of_their_mean():
    metrics = {"val/acc/a": 0.5, "test/acc/b": 0.2, "test/acc/c": 0.6}
    runs = [record(targets=("c", "b"), evaluations=(Evaluation(0, metrics),))]
    assert cell(one(runs), "erm", "c+b").mean == pytest.approx(0.4)


# --- rules side by side ----------------------------------------------------------------------------


RULES = [last, training_domain_validation, worst_group, oracle]


def test_one_target_and_several_rules_stand_side_by_side_with_the_gap_to_the_oracle():
    runs = [
        record("irmv1", trial=t, draw=h, val=0.9 - h / 10, test=0.1 + 0.5 * h + 0.1 * t)
        for t in range(3)
        for h in range(2)
    ]
    (table,) = build_tables(runs, RULES, extras=["wga"])
    names = [column.name for column in table.columns]
    assert names[:4] == [
        "last",
        "training-domain-validation",
        "worst-group",
        "test-domain-validation (oracle)",
    ]
    assert cell(table, "irmv1", "last").mean == pytest.approx(0.2)
    assert cell(table, "irmv1", "test-domain-validation (oracle)").mean == pytest.approx(0.7)
    assert cell(table, "irmv1", "gap of last").trials == pytest.approx({0: 0.5, 1: 0.5, 2: 0.5})
    assert cell(table, "irmv1", "wga, last").mean == pytest.approx(0.1)
    for rule in RULES:
        assert sum(rule.caption in paragraph for paragraph in table.caption) == 1


def test_several_targets_give_a_table_per_rule_with_one_rule_stated():
    tables = build_tables(sweep({"erm": [0.5, 0.6]}, DOMAINS), [training_domain_validation, oracle])
    assert [table.title for table in tables] == [
        "training-domain-validation",
        "test-domain-validation (oracle)",
    ]
    assert "gap to oracle" in [column.name for column in tables[0].columns]
    assert not any(oracle.caption in paragraph for paragraph in tables[0].caption)


def test_cross_validation_without_pairs_is_not_applicable_and_with_them_is_a_number():
    runs = sweep({"erm": [0.5, 0.6]}, DOMAINS)
    assert cell(one(runs, leave_one_domain_out_cv), "erm", "-90%").problem == "n/a"
    pairs = [
        record(targets=targets, trial=t, test=0.4)
        for targets in (DOMAINS[:2], DOMAINS[1:], (DOMAINS[0], DOMAINS[2]))
        for t in range(2)
    ]
    table = one(runs + pairs, leave_one_domain_out_cv)
    assert [column.name for column in table.columns][:4] == [*DOMAINS, "average"]
    assert cell(table, "erm", "-90%").trials == {0: 0.5, 1: 0.6}
    broken = [dataclasses.replace(pairs[0], status="FAILED"), *pairs[1:]]
    table = one(runs + broken, leave_one_domain_out_cv)
    assert cell(table, "erm", "+90%").problem.startswith("FAILED 1 of 6")
    assert cell(table, "erm", "-90%").mean is not None  # the failed pair does not concern this target
    assert one(runs + broken).rows == one(runs).rows  # other rules do not need pairs


def test_no_runs_give_no_table():
    assert build_tables([], RULES) == []


# --- honesty ---------------------------------------------------------------------------------------


TABLES = 100
ALLOWED = int(stats.binom.ppf(0.999, TABLES, 0.05))  # 5 % of them, and the slack of a binomial at 99.9 %
ALGORITHMS = [f"a{number}" for number in range(10)]
FOUR = ("art", "cartoon", "photo", "sketch")
NOISES = ["normal noise", "accuracies on 400 examples"]


def identical_algorithms(draw: np.random.RandomState, trials: int, targets: int, noise: str) -> np.ndarray:
    """Accuracies ``[algorithm, trial, target]`` that differ by luck alone.

    Trials and targets are easy or hard for all algorithms, and half the variance of an algorithm's own luck
    is shared by the targets of a trial, as the luck of its draw of hyperparameters is.
    """
    level = 0.6 + draw.normal(0, 0.02, (1, trials, 1)) + draw.normal(0, 0.05, (1, 1, targets))
    luck = draw.normal(0, 0.014, (10, trials, 1)) + draw.normal(0, 0.014, (10, trials, targets))
    if noise == "normal noise":
        return level + luck
    return draw.binomial(400, level + luck) / 400


def tabled(accuracy: np.ndarray) -> list[RunRecord]:
    """A finished run for every ``[algorithm, trial, target]``."""
    return [
        record(ALGORITHMS[a], (FOUR[m],), t, float(value)) for (a, t, m), value in np.ndenumerate(accuracy)
    ]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("trials", "targets"), [(3, 1), (3, 4), (5, 4)])
def test_ten_identical_algorithms_are_called_different_in_at_most_five_percent_of_tables(
    trials, targets, noise
):
    draw = np.random.RandomState(0)
    flagged = 0
    for _ in range(TABLES):
        accuracy = identical_algorithms(draw, trials, targets, noise)
        table = one(tabled(accuracy), baseline="a0")
        found = [cell(table, name, "difference to a0").comparison for name in ALGORITHMS[1:]]
        assert all(comparison is not None for comparison in found)
        flagged += any(comparison.significant for comparison in found if comparison)
    assert flagged <= ALLOWED


def test_two_rules_side_by_side_are_one_family():
    draw = np.random.RandomState(0)
    flagged = 0
    for _ in range(TABLES):
        runs = tabled(identical_algorithms(draw, 3, 1, "normal noise"))
        (table,) = build_tables(runs, [last, worst_group], baseline="a0")
        flagged += any(c.comparison.significant for row in table.rows for c in row.cells if c.comparison)
    assert flagged <= ALLOWED


def test_means_whose_standard_errors_do_not_overlap_would_separate_one_of_ten_in_most_tables():
    # The reading that no table invites: three trials, the rivals against the baseline.
    accuracy = np.random.RandomState(0).normal(0.6, 0.02, (4000, 10, 3))
    mean, se = accuracy.mean(2), stats.sem(accuracy, axis=2)
    apart = np.abs(mean[:, 1:] - mean[:, :1]) > se[:, 1:] + se[:, :1]
    assert apart.any(1).mean() == pytest.approx(0.78, abs=0.02)
    caption = " ".join(one(tabled(accuracy[0][..., None]), baseline="a0").caption)
    assert "whether two rows' means ± standard error overlap is no test" in caption


def test_a_clear_difference_over_four_domains_is_found_at_three_trials_among_nine_rivals():
    accuracy = np.random.RandomState(0).normal(0.6, 0.01, (10, 3, 4))
    accuracy[3] += 0.2
    table = one(tabled(accuracy), baseline="a0")
    called = {row.label for row in table.rows for c in row.cells if c.comparison and c.comparison.significant}
    assert called == {"a3"}
    assert "over the 9 comparisons of this table; * marks p ≤ 0.05 (1 marked)" in " ".join(table.caption)


def test_the_caption_says_how_many_trials_the_other_differences_would_need():
    accuracy = {"erm": [0.50, 0.51, 0.49], "vrex": [0.52, 0.54, 0.51], "irmv1": [0.4999, 0.53, 0.47]}
    table = one(sweep({**accuracy, "mmd": accuracy["erm"]}))
    (said,) = [paragraph for paragraph in table.caption if paragraph.startswith("Trials needed")]
    needed = {row.label: row.cells[1].comparison for row in table.rows}
    assert needed["irmv1"].trials_needed is None and "irmv1 more than 1000" in said
    assert needed["vrex"].trials_needed and f"vrex {needed['vrex'].trials_needed}" in said
    assert "mmd" not in said and "p ≤ 0.05/3" in said  # identical runs stay so
    facts = json.loads(render(table, "json"))["rows"][-1]["cells"][1]
    assert facts["trials_needed"] == needed["vrex"].trials_needed


def test_over_several_domains_the_interval_says_that_it_also_carries_their_differences():
    table = one(sweep({"erm": [0.5, 0.51, 0.49], "vrex": [0.52, 0.54, 0.51]}, DOMAINS))
    caption = " ".join(table.caption)
    assert "paired by trial and held-out domain" in caption and "hierarchical bootstrap" in caption
    single = " ".join(one(sweep({"erm": [0.5, 0.51], "vrex": [0.52, 0.54]})).caption)
    assert "95 % t-intervals" in single and "hierarchical" not in single


def test_standard_errors_can_be_those_of_domainbed_and_nothing_else_changes():
    runs = sweep({"erm": [0.50, 0.52, 0.49], "vrex": [0.52, 0.55, 0.51]}, DOMAINS)
    usual, old = one(runs), one(runs, ddof=0)
    values = [0.50, 0.52, 0.49]
    for column in ("-90%", "average"):
        assert cell(old, "erm", column).se == pytest.approx(np.std(np.array(values) / np.sqrt(3)))
        assert cell(usual, "erm", column).se == pytest.approx(stats.sem(values))
        assert cell(old, "erm", column).sd == pytest.approx(np.std(values, ddof=1))
    name = "difference to erm"
    assert cell(old, "vrex", name).comparison == cell(usual, "vrex", name).comparison
    assert "(ddof = 0, as DomainBed has it: 0.82 times that of ddof = 1)" in " ".join(old.caption)
    assert "ddof = 0" not in " ".join(usual.caption)


def test_a_large_and_steady_difference_is_called_significant_in_every_format():
    draw = random.Random(0)
    accuracy = {
        name: [draw.gauss(mean, 0.01) for _ in range(5)] for name, mean in (("erm", 0.3), ("irmv1", 0.6))
    }
    table = one(sweep(accuracy))
    found = cell(table, "irmv1", "difference to erm").comparison
    assert found is not None and found.significant
    assert re.search(r"irmv1 .*p=\S+ \*", render(table))
    caption = " ".join(table.caption)
    assert "(1 marked)" in caption
    assert "no p below 0.062 (0.062 after correction) is reachable with 5 trials" in caption


def test_worst_group_and_calibration_stand_beside_results_if_every_scored_checkpoint_has_them():
    def run(name: str, **metrics: float) -> RunRecord:
        return record(name, evaluations=(Evaluation(1, {"val/acc/a": 0.5}), Evaluation(2, metrics)))

    whole = run("erm", **{"test/acc/a": 0.5, "test/wga": 0.1, "test/ece": 0.2})
    bare = run("vrex", **{"test/acc/a": 0.5, "test/ece": 0.2})
    error = run("erm", **{"test/mse/a": 2.0, "test/mse_worst_group": 3.0})
    assert usual_extras([whole]) == ["wga", "ece"] and usual_extras([whole, bare]) == ["ece"]
    assert usual_extras([error]) == ["mse_worst_group"] and usual_extras([]) == []


# --- formats ---------------------------------------------------------------------------------------


@pytest.fixture
def table() -> Table:
    draw = random.Random(1)
    runs = sweep({name: [draw.random() for _ in range(3)] for name in ("erm", "group_dro", "vrex")}, DOMAINS)
    return build_tables(runs[:-1], [training_domain_validation, oracle], extras=["wga"])[0]


def test_every_format_holds_the_same_numbers(table):
    printed = [
        [shown(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
        for row in table.rows
    ]
    text, markdown = render(table, "text"), render(table, "markdown")
    latex = render(table, "latex").replace(r"$\pm$", "±").replace("$-$", "-").replace("$^{*}$", "*")
    latex = latex.replace("{[}", "[").replace("{]}", "]").replace("\\%", "%").replace("\\_", "_")
    for row, in_row in zip(table.rows, printed, strict=True):
        own = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith(f" {row.label} ")]
        assert " ".join(" ".join(cells for _, cells in own).split()) == " ".join(in_row)
        assert f"| {' | '.join([row.label, *in_row])} |" in markdown.replace("\\*", "*").splitlines()
        assert " & ".join([row.label, *in_row]) + r" \\" in latex.splitlines()
    as_json = json.loads(render(table, "json"))
    as_csv = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    cells = [cell for row in table.rows for cell in row.cells]
    json_cells = [cell for row in as_json["rows"] for cell in row["cells"]]
    for found, from_json, from_csv in zip(cells, json_cells, as_csv, strict=True):
        assert (found.mean, found.se, found.n) == (
            from_json["mean"],
            from_json["standard_error"],
            from_json["trials"],
        )
        assert from_json["by_trial"] == {str(trial): value for trial, value in found.trials.items()}
        for name in ("mean", "standard_error", "trials", "p", "p_holm", "low", "problem"):
            value = from_json.get(name)
            assert from_csv[name] == ("" if value is None else str(value))


def test_every_line_of_csv_says_where_its_number_comes_from(table):
    for line in csv.DictReader(io.StringIO(render(table, "csv"))):
        assert (line["dataset"], line["toy"], line["weights"], line["rule"]) == (
            *("colored-digits", "True", "scratch"),
            training_domain_validation.name,
        )


def test_the_caption_states_rule_protocol_weights_preset_trials_spread_and_significance(table):
    caption = " ".join(table.caption)
    for stated in (
        training_domain_validation.caption,
        *("colored-digits (a toy)", "leave-one-domain-out", "weights scratch", "preset none", "3 trials"),
        *(
            "ddof = 1",
            "Holm",
            "no p below 0.25 (0.25 after correction) is reachable with 3 trials",
            "hyperparameters at their defaults or as given",
        ),
    ):
        assert stated in caption
    for format in ("text", "markdown", "json"):
        assert "(a toy)" in render(table, format)


def test_latex_is_balanced_and_escaped(table):
    hostile = dataclasses.replace(table, notes=("50% of a_b{c} & #1 $x$ ~ ^ \\end",))
    latex = render(hostile, "latex")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 1
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(rule) == 1
    bare = re.sub(r"\\[{}%&#$_]", "", latex)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0 and "%" not in bare and "#" not in bare
    widths = {re.sub(r"\\&", "", line).count("&") for line in latex.splitlines() if line.endswith(r"\\")}
    assert widths == {len(table.columns)}


def test_markdown_rows_have_as_many_cells_as_the_head(table):
    lines = [line for line in render(table, "markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) and len({line.count("|") for line in lines}) == 1


def test_text_does_not_take_a_bracket_for_markup():
    text = render(one([record(targets=("[red]",))]))
    assert "[red]" in text


def test_columns_that_no_terminal_has_room_for_stand_below_the_others():
    targets = [f"a domain with a name {number}" for number in range(12)]
    text = render(one([record(targets=(target,)) for target in targets]))
    assert max(map(len, text.splitlines())) <= 120 and text.count("algorithm ") > 1
    assert text.count("50.0 ± n/a") >= len(targets)


def test_several_tables_are_one_json_list_and_one_csv(table):
    assert len(json.loads(render([table, table], "json"))) == 2
    assert render([table, table], "csv").count("standard_error") == 1


def test_an_unknown_format_is_a_users_mistake(table):
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        render(table, "latx")


def test_numbers_are_never_negative_zero():
    rival = {0: 0.5, 1: 0.5001, 2: 0.4998}
    table = one(sweep({"erm": [0.5, 0.5, 0.5], "vrex": list(rival.values())}))
    difference = cell(table, "vrex", "difference to erm").mean
    assert difference is not None and -0.0005 < difference < 0
    assert "-0.0 " not in render(table)


def test_a_number_and_its_spread_have_the_same_decimals():
    number, change = Column("ece", "number"), Column("difference to erm", "change")
    assert shown(Cell({0: 0.2901, 1: 0.2938}), number) == "0.292 ± 0.002"
    assert shown(Cell({0: 1234.56, 1: 1250.0}), number) == "1242 ± 8"
    assert shown(Cell({0: 3.0, 1: 3.0}), number) == "3 ± 0"
    assert shown(Cell({0: 2e-9, 1: 3e-9}), number) == "2.50e-09 ± 5.00e-10"
    assert shown(Cell({0: -0.25, 1: 12.5}), change) == "+6.12 ± 6.38"
    assert shown(Cell(stated=Stated(0.7, 0.064)), number) == "0.700 ± 0.064"
    assert shown(Cell({0: math.inf, 1: 1.0}), number).startswith("inf")
