"""Several datasets side by side: averages of each and their mean, as papers have it in their first table."""

from __future__ import annotations

import dataclasses

import pytest
from run_records import finished

from dgharness.report.cells import build_tables
from dgharness.report.html import Subject, page
from dgharness.report.over_datasets import over_datasets
from dgharness.report.render import shown
from dgharness.report.table import Table
from dgharness.selection.last import last
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.test_domain_validation import test_domain_validation as oracle

VALUES = {("d1", "erm"): (0.6, 0.8), ("d1", "vrex"): (0.7, 0.7), ("d2", "erm"): (0.2, 0.4)}


def run(dataset: str, algorithm: str, target: str, value: float, trial: int = 0, **fields) -> RunRecord:
    scored = {f"test/acc/{target}": value, f"test_holdout/acc/{target}": value, "val/acc/x": 0.5}
    return finished(algorithm, dataset, target, trial, scored, **fields)


def runs(values=VALUES, **fields) -> list[RunRecord]:
    return [
        run(dataset, algorithm, target, value + trial / 100, trial, **fields)
        for (dataset, algorithm), own in values.items()
        for target, value in zip("ab", own, strict=True)
        for trial in range(3)
    ]


def together(records, *rules, extras=()) -> list[Table]:
    tables = [
        table
        for dataset in dict.fromkeys(record.dataset for record in records)
        for table in build_tables(
            [r for r in records if r.dataset == dataset], rules or [last], gaps=False, extras=extras
        )
    ]
    return over_datasets(tables, rules or [last])[0]


def cells(table: Table) -> dict[str, list[str]]:
    return {
        row.label: [shown(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
        for row in table.rows
    }


def test_each_dataset_has_its_average_and_all_of_them_a_mean():
    (table,) = together(runs({**VALUES, ("d2", "vrex"): (0.4, 0.4)}))
    assert [column.name for column in table.columns] == ["d1", "d2", "mean of the datasets", "average rank"]
    assert cells(table) == {
        "erm": ["71.0 ± 0.6", "31.0 ± 0.6", "51.0", "1.62"],
        "vrex": ["71.0 ± 0.6", "41.0 ± 0.6", "56.0", "1.38"],
    }
    assert "last: The last checkpoint of every run" in table.caption[-1] and table.block.dataset == "d1, d2"


def test_an_algorithm_that_was_not_run_everywhere_has_no_mean_and_no_rank():
    (table,) = together(runs())
    assert cells(table) == {"erm": ["71.0 ± 0.6", "31.0 ± 0.6", "51.0"], "vrex": ["71.0 ± 0.6", "–", "–"]}
    assert page(Subject(["several"], [last], []), [table], []).count('<td class="quiet">–</td>') == 2


def test_an_average_that_is_blocked_blocks_the_mean():
    records = runs()
    records[0] = dataclasses.replace(records[0], status="FAILED")
    (table,) = together(records)
    assert cells(table)["erm"] == ["blocked by a", "31.0 ± 0.6", "–"]


def test_every_rule_has_a_table_and_one_dataset_has_none():
    tables = together(runs(), last, oracle)
    assert [table.title for table in tables] == [
        "datasets side by side, last",
        "datasets side by side, test-domain-validation (oracle)",
    ]
    assert together([record for record in runs() if record.dataset == "d1"]) == []


def test_the_worst_group_has_a_table_of_its_own_and_what_is_no_accuracy_has_none():
    records = [
        dataclasses.replace(
            r, evaluations=(Evaluation(1, {**r.evaluations[0].metrics, "test/wga": 0.25, "test/ece": 0.1}),)
        )
        for r in runs()
    ]
    _, table = together(records, extras=["wga", "ece"])
    assert table.title == "wga, datasets side by side, last"
    assert cells(table)["erm"] == ["25.0 ± 0.0", "25.0 ± 0.0", "25.0"]


def test_a_dataset_that_stands_there_twice_is_told_apart_and_there_is_no_mean():
    other = [dataclasses.replace(r, weights="scratch") for r in runs() if r.dataset == "d1"]
    records = [dataclasses.replace(r, weights="in1k-v1") for r in runs()]
    (table,) = together([*records, *other])
    names = [column.name for column in table.columns]
    assert sorted(names) == ["d1 (in1k-v1)", "d1 (scratch)", "d2"]


def test_accuracies_and_errors_have_no_mean():
    errors = [
        dataclasses.replace(record, evaluations=(Evaluation(1, {"test/mse/a": 2.0, "val/mse/x": 1.0}),))
        for record in runs()
        if record.dataset == "d2" and record.targets == ("a",)
    ]
    (table,) = together([*(record for record in runs() if record.dataset == "d1"), *errors])
    assert [column.name for column in table.columns] == ["d1", "d2"]
    assert cells(table)["erm"][1].startswith("2")


def test_the_rows_are_compared_nowhere_here():
    (table,) = together(runs())
    assert all(cell.comparison is None for row in table.rows for cell in row.cells)
    assert pytest.approx(0.51) == table.rows[0].cells[2].stated.value
