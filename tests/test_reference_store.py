"""Earlier runs join a comparison if they may, with numbers made anew from their stored predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import run_small

from dgharness.errors import UsageError
from dgharness.predictions import read_predictions, write_predictions
from dgharness.report.cells import build_tables
from dgharness.report.load import Runs, load_experiment
from dgharness.report.reference_store import join, measured_again
from dgharness.rundir import RunDir
from dgharness.selection.last import last

EXPERIMENT = "colored-digits/leave-one-domain-out"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, _migrated_database):
    """A store with a run of erm, and a directory with earlier runs of erm and vrex that it has not seen."""
    root = tmp_path_factory.mktemp("reference")
    uris = []
    for name in ("now", "earlier"):
        (root / name).mkdir()
        shutil.copy(_migrated_database, root / name / "mlflow.db")
        uris.append(f"sqlite:///{root / name / 'mlflow.db'}")
    run_small(uris[0], root / "now" / "runs", "erm")
    for algorithm in ("erm", "vrex"):
        run_small(uris[1], root / "earlier" / "runs", algorithm)
    return root


@pytest.fixture
def found(trained) -> Runs:
    return load_experiment(EXPERIMENT, f"sqlite:///{trained / 'now' / 'mlflow.db'}")


@pytest.fixture
def store(trained, tmp_path) -> Path:
    """A copy of the earlier runs that a test may change."""
    return Path(shutil.copytree(trained / "earlier" / "runs", tmp_path / "earlier"))


def of(store: Path, algorithm: str) -> Path:
    opened = (RunDir.open(store, path.name) for path in store.iterdir())
    (rundir,) = (each for each in opened if each.state.tags["dg.algorithm"] == algorithm)
    return rundir.path


def edit(path: Path, **changes) -> None:
    """Change tags, or with ``status`` the state, of a run directory."""
    content = json.loads((path / "run.json").read_text())
    if "status" in changes:
        content["status"] = changes.pop("status")
    content["tags"] |= {f"dg.{key}": value for key, value in changes.items()}
    (path / "run.json").write_text(json.dumps(content))


def test_metrics_of_stored_predictions_are_those_that_the_run_logged(store):
    for run in store.iterdir():
        logged = {e["step"]: e["metrics"] for e in RunDir.open(store, run.name).evaluations()}
        files = list(run.glob("predictions-*.parquet"))
        assert files
        for file in files:
            again = measured_again(read_predictions(file))
            assert {key.partition("/")[0] for key in again} == {"val", "test", "test_holdout"}
            step = int(file.stem.partition("-")[2])
            assert again == pytest.approx({key: logged[step][key] for key in again}, abs=1e-6, nan_ok=True)


def test_earlier_runs_stand_in_the_same_table_under_their_own_name(found, store):
    (joined,), refused = join([found], store)
    assert refused == []
    (table,) = build_tables(joined.records, [last], expected=joined.expected)
    cells = {row.label: row.cells[0] for row in table.rows}
    assert set(cells) == {"erm", "erm (reference)", "vrex (reference)"}
    assert cells["erm (reference)"].mean == cells["erm"].mean  # the same configuration, trained twice
    evaluations = RunDir.open(store, of(store, "vrex").name).evaluations()
    assert cells["vrex (reference)"].mean == pytest.approx(evaluations[-1]["metrics"]["test/acc/minus90pct"])


def test_a_plan_knows_the_runs_that_joined(found, store):
    planned = replace(found, expected={})
    (joined,), _ = join([planned], store)
    assert sorted(slot[0] for slots in joined.expected.values() for slot in slots) == [
        "erm (reference)",
        "vrex (reference)",
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"preset": "another"}, "preset another in place of none"),
        ({"weights": "in1k-v1"}, "weights in1k-v1 in place of scratch"),
        ({"weights_sha": "0" * 64}, "SHA-256 of the weights 000"),
        ({"split_digest": "0123"}, "split digest 0123 in place of"),
        ({"data_digest": "0123"}, "digest of the data 0123 in place of"),
        ({"settings": "train.steps 99"}, "train.steps 99 in place of 10"),
        ({"trial_seed": "7"}, "trial 7, and no run of the comparison is"),
        ({"targets": '["+80%"]'}, "on colored-digits, leave-one-domain-out, +80%, trial 0, and no run"),
        ({"status": "KILLED"}, "it is KILLED"),
    ],
)
def test_a_run_that_differs_is_refused_with_what_differs(found, store, changes, why):
    edit(of(store, "vrex"), **changes)
    (joined,), (sentence,) = join([found], store)
    assert why in sentence and str(of(store, "vrex")) in sentence
    assert {run.algorithm for run in joined.records} == {"erm", "erm (reference)"}


def test_a_run_of_the_comparison_itself_does_not_join_it_twice(found, trained):
    joined, (sentence,) = join([found], trained / "now" / "runs")
    assert "it is in it already" in sentence and joined == [found]


def test_predictions_that_are_not_the_runs_own_are_refused(found, store):
    path = of(store, "vrex")
    file = sorted(path.glob("predictions-*.parquet"))[0]
    predictions = read_predictions(file)
    write_predictions(file, replace(predictions, outputs_NC=-predictions.outputs_NC))
    _, (sentence,) = join([found], store)
    assert "its predictions of step" in sentence and "and it logged" in sentence
    for each in path.glob("predictions-*.parquet"):
        each.unlink()
    _, (sentence,) = join([found], store)
    assert "it has stored no predictions" in sentence


def test_a_directory_without_runs_is_a_sentence(found, tmp_path):
    with pytest.raises(UsageError, match="holds no runs; name a directory"):
        join([found], tmp_path / "nowhere")


def test_runs_that_are_refused_for_one_reason_are_one_sentence(found, store):
    for path in store.iterdir():
        edit(path, preset="another")
    _, (sentence,) = join([found], store)
    assert "and 1 more do not join the comparison: " in sentence and "preset" in sentence
