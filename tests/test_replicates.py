"""The replicates of a leaderboard that are folds: five runs of PovertyMap are one row of a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dgharness.config import RunConfig, compose
from dgharness.data import protocols
from dgharness.report.cells import build_tables
from dgharness.report.load import load_experiment
from dgharness.report.table import OWN_SPLIT, Table
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.training.identity import run_tags
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress
from dgharness.training.run import train

sys.path.insert(0, str(Path(__file__).parent / "data"))  # the layouts are those of the datasets' tests

from layouts import layouts

POVERTY = "wilds:poverty"
EXPERIMENT = f"{POVERTY}/official"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poverty")
    layouts()[POVERTY].write(folder)
    return folder


@pytest.fixture
def configured(root: Path, tmp_path: Path, mlflow_store: str) -> Any:
    def make(trial_seed: int, *sets: str) -> RunConfig:
        own = [f"data.name={POVERTY}", f"execution.data_root={root}", f"execution.output={tmp_path}"]
        store = [f"execution.tracking_uri={mlflow_store}", "execution.device=cpu"]
        short = [
            "model.name=mlp",
            "model.width=4",
            "train.batch_size=2",
            "train.steps=1",
            "train.eval_every=1",
        ]
        return compose(sets=[*own, *store, *short, f"trial_seed={trial_seed}", *sets])

    return make


def reported(store: str) -> list[Table]:
    found = load_experiment(EXPERIMENT, store)
    return build_tables(found.records, [training_domain_validation], expected=found.expected)


def test_five_trials_are_one_row_of_five_replicates(configured: Any, mlflow_store: str) -> None:
    results = [train(configured(seed), progress=Progress(say=lambda text: None)) for seed in range(5)]
    (table,) = reported(mlflow_store)
    ((label, (cell,)),) = [(row.label, row.cells) for row in table.rows]
    assert (label, [column.name for column in table.columns]) == ("erm", ["test split"])
    expected = [
        result.chosen["training-domain-validation"].metrics["test/mse_domain_mean"] for result in results
    ]
    assert list(cell.trials.values()) == pytest.approx(expected)
    assert len(set(expected)) == 5
    assert any("erm: 5 of 5 replicates that the leaderboard asks for" in note for note in table.notes)


def test_a_fold_that_is_named_is_no_replicate(configured: Any) -> None:
    named, taken = prepare(configured(0, "data.fold=B")), prepare(configured(1))
    assert named.splits.targets == taken.splits.targets
    assert "dg.replicates" not in run_tags(named) and run_tags(taken)["dg.replicates"] == "5"
    assert "asks for every fold once, and data.fold=B is one" in run_tags(named)["dg.against_rules"]
    assert "dg.against_rules" not in run_tags(taken)


# --- the column ------------------------------------------------------------------------------------


def record(trial: int, targets: tuple[str, ...], test: float, protocol: str = "official") -> RunRecord:
    metrics = {"val/acc/v": 0.5} | {f"test/acc/{target}": test for target in targets}
    return RunRecord(
        run_id=f"{trial}",
        algorithm="erm",
        dataset="d",
        protocol=protocol,
        targets=targets,
        hparams_seed=0,
        trial_seed=trial,
        status="FINISHED",
        evaluations=(Evaluation(1, metrics),),
    )


FOLDS = [record(0, ("a", "b"), 0.4), record(1, ("c",), 0.6)]


def test_a_fold_that_was_planned_and_not_run_is_missing_in_the_one_column() -> None:
    plan = [("erm", run.targets, 0, run.trial_seed) for run in FOLDS] + [("erm", ("d",), 0, 2)]
    (table,) = build_tables(FOLDS, [training_domain_validation], expected=plan)
    ((cell,),) = [row.cells for row in table.rows]
    assert cell.problem == "MISSING 1 of 3: h0 t2"


def test_of_folds_that_were_planned_the_first_alone_is_in_the_one_column() -> None:
    plan = [("erm", run.targets, 0, run.trial_seed) for run in FOLDS]
    (table,) = build_tables(FOLDS[:1], [training_domain_validation], expected=plan)
    ((cell,),) = [row.cells for row in table.rows]
    assert [column.name for column in table.columns] == ["test split"]
    assert cell.problem == "MISSING 1 of 2: h0 t1"


def test_the_domains_of_every_trial_are_named() -> None:
    (table,) = build_tables(FOLDS, [training_domain_validation])
    assert "tests every trial on domains of its own: t0 a, b; t1 c." in " ".join(table.notes)
    assert table.caption[0].startswith("Accuracy (%) on the test split, unweighted mean over its domains: d")


def test_held_out_domains_keep_columns_of_their_own() -> None:
    runs = [record(0, (target,), 0.5, "leave-one-domain-out") for target in "ab"]
    (table,) = build_tables(runs, [training_domain_validation])
    assert [column.name for column in table.columns] == ["a", "b", "average"]
    assert table.caption[0].startswith("Accuracy (%) on held-out domains: d")


def test_reports_know_the_protocols_that_have_a_split_of_their_own() -> None:
    assert protocols.OWN_SPLIT == OWN_SPLIT
