"""What a leaderboard asks for: its number of replicates, its spread, and nothing learned from the test."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgharness.config import compose
from dgharness.errors import UsageError
from dgharness.report.cells import build_tables
from dgharness.report.table import Cell
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.training.identity import run_tags
from dgharness.training.leaderboard import other_split
from dgharness.training.prepare import Prepared, prepare
from dgharness.training.progress import header_lines

sys.path.insert(0, str(Path(__file__).parent / "data"))  # the layouts are those of the datasets' tests

from layouts import layouts

CAMELYON = "wilds:camelyon17"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camelyon17")
    layouts()[CAMELYON].write(folder)
    return folder


@pytest.fixture
def prepared(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))

    def make(*sets: str) -> Prepared:
        layout = layouts()[CAMELYON]
        own = [f"data.name={CAMELYON}", f"execution.data_root={root}", "train.steps=5", *sets]
        return prepare(compose(sets=[*layout.sets, *own]))

    return make


# --- a run -----------------------------------------------------------------------------------------


def notes(run: Prepared) -> list[str]:
    return [
        line for line in header_lines(run, [], "store") if line.startswith("note") and "leaderboard" in line
    ]


def test_a_method_that_goes_by_test_batches_is_warned_about_under_the_official_split(prepared: Any) -> None:
    (note,) = notes(prepared("tta.name=t3a"))
    assert "wants every test example predicted by itself, and t3a goes by batches of them" in note
    assert notes(prepared()) == []


def test_elsewhere_there_is_no_leaderboard_to_break_the_rules_of(prepared: Any) -> None:
    run = prepared("tta.name=t3a", "protocol.name=leave-one-domain-out")
    assert notes(run) == []
    assert not {"dg.replicates", "dg.official_metric", "dg.against_rules"} & run_tags(run).keys()


def test_a_run_says_how_many_replicates_are_asked_for_and_by_which_metric(prepared: Any) -> None:
    tags = run_tags(prepared())
    assert (tags["dg.replicates"], tags["dg.official_metric"]) == ("10", "acc_avg")
    assert "dg.against_rules" not in tags
    assert "t3a goes by batches" in run_tags(prepared("tta.name=t3a"))["dg.against_rules"]


def test_nothing_can_be_chosen_by_the_test_split(prepared: Any) -> None:
    run = prepared()
    assert run.rules and not any(rule.oracle for rule in run.rules)
    assert "test_holdout" not in run.splits.rows
    with pytest.raises(UsageError, match="the rule test-domain-validation cannot choose here"):
        prepared("selection.rules=[test-domain-validation]", "selection.shown=test-domain-validation")


@pytest.mark.parametrize(
    ("name", "scheme", "official"),
    [
        ("wilds:amazon", "user", True),
        ("wilds:fmow", "time_after_2016", True),
        ("wilds:amazon", "time", False),
        ("wilds:rxrx1", "mixed-to-test", False),
    ],
)
def test_the_official_split_may_be_called_by_its_other_name(
    prepared: Any, name: str, scheme: str, official: bool
) -> None:
    run = prepared()
    config = compose(sets=[f"data.name={name}", f"data.split_scheme={scheme}"])
    assert (other_split(config, dataclasses.replace(run.dataset, name=name)) == []) == official


# --- a report --------------------------------------------------------------------------------------

ACCURACIES = (0.703, 0.65, 0.78)


def record(trial: int, test: float, algorithm: str = "erm", **tags: str) -> RunRecord:
    metrics = {"val/acc/1": 0.8, "test/acc/2": test, "test/official/acc_avg": test + 0.1}
    return RunRecord(
        run_id=f"{algorithm}-{trial}",
        algorithm=algorithm,
        dataset=CAMELYON,
        protocol="official",
        targets=("2",),
        hparams_seed=0,
        trial_seed=trial,
        status="FINISHED",
        evaluations=(Evaluation(5, metrics),),
        tags={"dg.replicates": "10", "dg.official_metric": "acc_avg", **tags},
    )


def noted(records: list[RunRecord], *extras: str) -> list[str]:
    (table,) = build_tables(records, [training_domain_validation], extras=extras)
    return [note for note in table.notes if "leaderboard" in note]


def test_a_report_counts_the_replicates_and_gives_their_standard_deviation() -> None:
    records = [record(trial, test) for trial, test in enumerate(ACCURACIES)]
    mean, spread = 100 * np.mean(ACCURACIES), 100 * np.std(ACCURACIES, ddof=1)
    assert noted(records) == [
        f"erm: 3 of 10 replicates that the leaderboard asks for; 2 {mean:.1f}, standard deviation (ddof = 1) "
        f"{spread:.1f}.",
        "The leaderboard goes by acc_avg: dgharness report --extra official/acc_avg.",
    ]


def test_where_the_official_metric_is_shown_the_spread_is_that_of_it() -> None:
    records = [record(trial, test) for trial, test in enumerate(ACCURACIES)]
    (note,) = noted(records, "official/acc_avg")
    spread = np.std(ACCURACIES, ddof=1)
    assert (
        f"official/acc_avg {np.mean(ACCURACIES) + 0.1:.3f}, standard deviation (ddof = 1) {spread:.3f}."
        in note
    )


def test_one_replicate_has_no_spread() -> None:
    assert noted([record(0, 0.7)])[0] == "erm: 1 of 10 replicates that the leaderboard asks for."


def test_what_is_against_the_rules_stands_under_the_table() -> None:
    records = [
        record(0, 0.7),
        record(0, 0.8, "drm", **{"dg.against_rules": "the leaderboard wants no peeking"}),
    ]
    assert "drm: the leaderboard wants no peeking." in noted(records)


def test_without_a_leaderboard_nothing_is_said_of_one() -> None:
    bare = RunRecord(**{**vars(record(0, 0.7)), "tags": {}})
    assert noted([bare]) == []


def test_the_standard_deviation_over_trials_is_the_unbiased_one() -> None:
    cell = Cell(dict(enumerate(ACCURACIES)))
    assert cell.sd == pytest.approx(np.std(ACCURACIES, ddof=1))
    assert Cell({0: 0.5}).sd is None
