"""What runs cost, their failed attempts among them; and every rule side by side."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import run_small, signal_after
from test_report import cell, record

from dgharness.commands.reporting import Asked, run_report
from dgharness.errors import Interrupted
from dgharness.report.cells import build_tables
from dgharness.report.cost import cost_tables, queries
from dgharness.report.every_rule import applicable, with_queries
from dgharness.report.load import load_experiment
from dgharness.report.load import record as from_store
from dgharness.selection.auroc import auroc
from dgharness.selection.last import last
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.test_worst_group import test_worst_group as hindsight
from dgharness.selection.training_domain_validation import training_domain_validation


def run(algorithm: str = "erm", trial: int = 0, draw: int = 0, **fields: Any) -> RunRecord:
    cost = {"seconds": 10.0, "images": 800.0, "test_queries": 2.0} | fields.pop("more", {})
    return record(algorithm, trial=trial, draw=draw, **{"cost": cost, **fields})


def table_of(*runs: RunRecord):
    (table,) = cost_tables(runs)
    return table


def test_a_row_adds_up_its_draws_within_each_trial():
    table = table_of(
        *(run(trial=t, draw=h, more={"seconds": 1.0 + t + h}) for t in range(2) for h in range(3))
    )
    assert cell(table, "erm on -90%", "runs").trials == {0: 3, 1: 3}
    assert cell(table, "erm on -90%", "seconds").trials == {0: 1 + 2 + 3, 1: 2 + 3 + 4}
    assert cell(table, "erm on -90%", "training images").trials == {0: 2400, 1: 2400}
    assert cell(table, "erm on -90%", "test-set queries").trials == {0: 6, 1: 6}
    assert "In all: runs 6, failed attempts 0, seconds 15," in table.caption[-1]


def test_attempts_that_failed_are_counted_with_their_time_whether_or_not_a_later_one_finished():
    mended = run(more={"failed_attempts": 2, "failed_seconds": 7.0})
    lost = run(draw=1, status="FAILED", cost={"failed_attempts": 1, "failed_seconds": 4.0})
    table = table_of(mended, lost)
    assert cell(table, "erm on -90%", "runs").trials == {0: 1}
    assert cell(table, "erm on -90%", "failed attempts").trials == {0: 3}
    assert cell(table, "erm on -90%", "seconds in failed attempts").trials == {0: 11.0}
    assert cell(table, "erm on -90%", "seconds").trials == {0: 10.0}


def test_a_cost_that_was_not_logged_is_not_a_number_and_names_the_run():
    bare = run("vrex", cost={"seconds": 3.0})
    table = table_of(run(), bare)
    missing = cell(table, "vrex on -90%", "training images")
    assert missing.problem == "n/a" and missing.detail == f"run {bare.run_id} logged no training images"
    assert cell(table, "vrex on -90%", "seconds").trials == {0: 3.0}


def test_an_attempt_that_nobody_saw_end_is_said_to_be_untimed():
    table = table_of(run(more={"failed_attempts": 1, "untimed_attempts": 1}))
    assert table.notes == ("Attempts that nobody saw end are counted, but not their seconds: 1.",)


def facts(failed: list[tuple[int, int | None]], **more: Any) -> dict[str, Any]:
    tags = {
        **{"dg.algorithm": "erm", "dg.dataset": "d", "dg.protocol": "official", "dg.targets": '["t"]'},
        **{"dg.hparams_seed": "0", "dg.trial_seed": "0"},
    }
    stored = {"run_id": "r", "status": "FINISHED", "evaluations": [], "tags": tags, "params": {}}
    stored |= {"started": 0, "ended": 20_000}
    return {**stored, "metrics": {"cost/seconds": 3.0}, "failed": failed, **more}


def test_attempts_in_the_store_become_seconds_of_the_run_that_stands_for_them():
    assert from_store(facts([])).cost == {"seconds": 3.0}
    found = from_store(facts([(1000, 3500), (9000, None), (10_000, 10_500)])).cost
    assert found == {"seconds": 3.0, "failed_attempts": 3, "failed_seconds": 3.0, "untimed_attempts": 1}


def test_a_run_knows_the_rules_that_it_was_prepared_for():
    assert from_store(facts([], params={"selection.rules": "last, worst-group"})).rules == (
        "last",
        "worst-group",
    )
    assert from_store(facts([])).rules == ()


def test_queries_of_the_test_set_are_added_up_by_row():
    said = queries([run(), run(draw=1), run("vrex", more={"test_queries": 5.0})])
    assert said.endswith("over all runs of a row): erm 4, vrex 5.")
    assert queries([record()]) == ""


# --- every rule side by side -------------------------------------------------------------------------

TARGETS = ("+90%", "-90%")


def searched() -> list[RunRecord]:
    """Two draws of erm, of which validation prefers the worse, and two alike of vrex."""
    slots = [(target, trial, draw) for target in TARGETS for trial in range(2) for draw in range(2)]
    return [
        found
        for target, trial, draw in slots
        for found in (
            record(
                "erm",
                (target,),
                trial,
                test=0.1 * draw + 0.3 * trial,
                draw=draw,
                val=0.9 - 0.4 * draw,
                holdout=0.1 * draw,
            ),
            record("vrex", (target,), trial, test=0.5, draw=draw),
        )
    ]


def test_averages_by_rule_are_those_of_the_table_of_each_rule():
    rules = [training_domain_validation, oracle]
    (side_by_side,) = build_tables(searched(), rules, layout="averages", gaps=True)
    for rule in rules:
        title = f"{rule.name} (oracle)" if rule.oracle else rule.name
        (alone,) = build_tables(searched(), [rule])
        for label in ("erm", "vrex"):
            assert cell(side_by_side, label, title).trials == cell(alone, label, "average").trials
    gap = cell(side_by_side, "erm", "gap of training-domain-validation")
    assert gap.trials == pytest.approx({0: 0.1, 1: 0.1})
    assert "Gap: accuracy under test-domain-validation minus" in " ".join(side_by_side.caption)


def test_what_blocks_an_average_is_told_in_full_beneath_it():
    runs = searched()
    runs[0] = record("erm", ("+90%",), 0, draw=0, status="FAILED", error="out of memory")
    (table,) = build_tables(runs, [training_domain_validation, last], layout="averages")
    assert cell(table, "erm", "last").problem == "blocked by +90%"
    assert any("out of memory" in note for note in table.notes)


def test_gaps_are_to_the_first_oracle_alone():
    rules = [last, oracle, hindsight]
    (table,) = build_tables(searched(), rules, layout="averages", gaps=True)
    assert [column.name for column in table.columns if column.name.startswith("gap")] == ["gap of last"]


def test_a_rule_is_left_out_where_no_row_has_it_in_every_column_but_not_for_a_run_that_failed():
    def allowed(runs: list[RunRecord]) -> list[str]:
        found: Any = SimpleNamespace(records=runs, expected=None, not_applicable={})
        return [rule.name for rule in applicable([last, training_domain_validation], [found], last.name)]

    def unscored(run: RunRecord) -> RunRecord:
        """With a checkpoint that is better in validation, and not scored on the target."""
        (scored,) = run.evaluations
        better = {key: 1.0 for key in scored.metrics if key.startswith("val/acc/")}
        return dataclasses.replace(run, evaluations=(Evaluation(50, better), scored))

    runs = searched()
    assert allowed(runs) == ["last", "training-domain-validation"]
    runs[0] = dataclasses.replace(runs[0], status="FAILED")
    assert allowed(runs) == ["last", "training-domain-validation"]
    one_target = [run if run.targets != runs[0].targets else unscored(run) for run in searched()]
    assert allowed(one_target) == ["last"]


def test_every_rule_is_every_one_that_some_row_allows():
    found: Any = SimpleNamespace(records=searched(), expected=None, not_applicable={})
    rules = applicable([auroc, hindsight, oracle, last, training_domain_validation], [found], last.name)
    assert [rule.name for rule in rules] == [
        *("last", "training-domain-validation", "test-worst-group", "test-domain-validation")
    ]


def test_queries_stand_in_the_caption_of_their_own_table():
    runs = [run(), run("vrex", dataset="other")]
    tables = with_queries(build_tables(runs, [last]), runs)
    assert ["erm 2." in table.caption[-1] for table in tables] == [True, False]
    assert ["vrex 2." in table.caption[-1] for table in tables] == [False, True]


def test_a_report_counts_an_interrupted_attempt_and_takes_a_rule_by_its_other_name(
    mlflow_store, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    with signal_after(3), pytest.raises(Interrupted):
        run_small(mlflow_store, tmp_path / "first")
    run_small(mlflow_store, tmp_path / "second")
    experiment = "colored-digits/leave-one-domain-out"
    (found,) = load_experiment(experiment, mlflow_store).records
    assert found.status == "FINISHED" and found.cost["failed_attempts"] == 1
    assert found.cost["failed_seconds"] > 0 and "test-domain-validation" in found.rules

    run_report(Asked([experiment], rules=["OracleMeanAcc", "test-mean-accuracy"], cost=True))
    printed = capsys.readouterr().out
    assert printed.startswith("test-mean-accuracy (oracle)\n") and "failed attempts 1" in printed
