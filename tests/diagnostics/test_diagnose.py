"""The command: what it prints, writes and tracks, of an experiment and of a run."""

from __future__ import annotations

import dataclasses
import json

import pytest
from small_runs import run_small

from dgharness.commands import diagnosing
from dgharness.commands.diagnosing import OF_A_RUN, OVER_RUNS, Asked, run_diagnose
from dgharness.errors import UsageError
from dgharness.report.load import load_experiment
from dgharness.tracking.store import client, open_store

EXPERIMENT = "colored-digits/leave-one-domain-out"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, _migrated_database):
    """Three runs of different trials, and their store."""
    import shutil

    folder = tmp_path_factory.mktemp("diagnose")
    shutil.copy(_migrated_database, folder / "mlflow.db")
    store = f"sqlite:///{folder}/mlflow.db"
    sections = {"protocol": {"targets": ["-90%"]}, "selection": {"rules": ["training-domain-validation"]}}
    runs = [
        run_small(store, folder / "runs", name, trial_seed=trial, **sections)
        for name, trial in (("erm", 0), ("erm", 1), ("vrex", 2))
    ]
    return store, folder, runs


@pytest.fixture
def asked(trained, monkeypatch) -> Asked:
    store, folder, _ = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Asked(EXPERIMENT, output=str(folder / "runs"))


def tracked_diagnoses(store: str) -> list:
    opened = client(store)
    where = open_store(store, EXPERIMENT).experiment_id
    return opened.search_runs([where], "tags.dg.kind = 'diagnosis'")


def test_an_experiment_is_diagnosed_printed_written_and_tracked(trained, asked, tmp_path, capsys):
    store, _, _ = trained
    only = dataclasses.replace(asked, only=["id-ood-line", "by-group"], to=tmp_path)
    run_diagnose(only)
    said = capsys.readouterr().out
    assert "accuracy out of distribution against accuracy in distribution" in said
    assert "accuracy on every group of the test split" in said and "color=green" in said
    files = {file.name for file in tmp_path.iterdir()}
    assert files >= {"id-ood-line.csv", "id-ood-line.png", "by-group.csv", "by-group.png"}

    found = {run.data.tags["dg.diagnosis_name"]: run for run in tracked_diagnoses(store)}
    run = found["id-ood-line"]
    stored = {file.path for file in client(store).list_artifacts(run.info.run_id)}
    assert stored == {"id-ood-line.csv", "id-ood-line.json", "id-ood-line.png"}
    assert run.info.status == "FINISHED" and "id-ood-line/raw_slope" in run.data.metrics

    run_diagnose(only)  # the same once more is the same run
    assert len(tracked_diagnoses(store)) == len(found)


def test_a_run_is_diagnosed_by_its_id(trained, asked, capsys):
    _, _, runs = trained
    run_diagnose(
        dataclasses.replace(asked, what=runs[0].run_id, only=["calibration", "label-shift"], as_json=True)
    )
    found = json.loads(capsys.readouterr().out)
    assert [each["diagnosis"] for each in found] == ["calibration", "label-shift"]
    assert all(runs[0].run_id in each["of"] for each in found)


def test_what_cannot_be_diagnosed_is_left_out_with_its_reason(asked, capsys):
    run_diagnose(dataclasses.replace(asked, only=["id-ood-line", "effective-robustness"], baseline="vrex"))
    said = capsys.readouterr()
    assert "accuracy out of distribution" in said.out
    assert "left out: effective-robustness of colored-digits" in said.err and "vrex" in said.err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"only": ["id-odd-line"]}, "there is no diagnosis 'id-odd-line'; did you mean 'id-ood-line'"),
        ({"only": ["sharpness"]}, "sharpness is a diagnosis of one run: give its id"),
        ({"only": []}, "--only names no diagnosis"),
        ({"what": "nothing"}, "'nothing' is neither a run in"),
        ({"only": ["id-ood-line"], "y": "test/acc_men"}, "no run has logged the metric 'test/acc_men'"),
        ({"rule": "worst-grop"}, "did you mean"),
        ({"baseline": "vrexx"}, "no run of this experiment has the baseline 'vrexx'; did you mean 'vrex'"),
    ],
)
def test_a_mistake_is_a_sentence(asked, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        run_diagnose(dataclasses.replace(asked, **changes))


@pytest.mark.parametrize(("baseline", "rows"), [("erm", ["erm", "vrex"]), ("vrex", ["vrex", "erm"])])
def test_rows_begin_with_the_baseline_whatever_the_order_of_the_store(
    asked, capsys, monkeypatch, baseline, rows
):
    found = load_experiment(EXPERIMENT)
    turned = dataclasses.replace(found, records=found.records[::-1])
    said = []
    for each in (found, turned):
        monkeypatch.setattr(diagnosing, "load_experiment", lambda name, each=each: each)
        run_diagnose(
            dataclasses.replace(asked, only=["by-group", "id-ood-line"], baseline=baseline, as_json=True)
        )
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    by_group = json.loads(said[0])[1]
    assert list(dict.fromkeys(row["algorithm"] for row in by_group["table"])) == rows


def test_one_run_has_no_baseline(trained, asked):
    with pytest.raises(UsageError, match="--baseline is for the runs of an experiment"):
        run_diagnose(dataclasses.replace(asked, what=trained[2][0].run_id, baseline="vrex"))


def test_a_diagnosis_over_runs_is_refused_of_one_run(trained, asked):
    _, _, runs = trained
    with pytest.raises(UsageError, match="agreement is a diagnosis of several runs: name an experiment"):
        run_diagnose(dataclasses.replace(asked, what=runs[0].run_id, only=["agreement"]))


def test_no_two_diagnoses_have_one_name():
    assert not OVER_RUNS.keys() & OF_A_RUN.keys()
