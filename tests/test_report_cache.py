"""The second report: what it takes from the cache, and that it sees whatever has changed in the store."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from dgharness import tracking
from dgharness.errors import UsageError
from dgharness.rundir import RunDir
from dgharness.tracking import Store, Tracker, cache, load_records, prepare_store, records, rows, sync
from dgharness.tracking.store import client

EXPERIMENT = "toy/lodo"
CHECKPOINTS = [
    {"step": 5, "metrics": {"val/acc/art": 0.1 + 0.2, "val/nll": math.inf}},
    {"step": 10, "metrics": {"val/acc/art": 1 / 3, "val/nll": 0.5, "test/wga": math.nan}},
]


@pytest.fixture
def store(mlflow_store) -> Store:
    return prepare_store(mlflow_store, EXPERIMENT)


@pytest.fixture
def finished(tmp_path):
    """A finished run of one configuration, in the store."""

    def run(store: Store, config: str = "a" * 16, checkpoints=CHECKPOINTS, **facts) -> RunDir:
        rundir = RunDir.create(tmp_path / "runs", config[:12], config, name=config[:3], **facts)
        tracker = Tracker(store, rundir)
        tracker.start()
        rundir.record("cost/seconds", 1.5, 10)
        rundir.record("val/nll", 0.5, 10)
        rundir.write_evaluations(checkpoints)
        tracker.finish("FINISHED")
        return rundir

    return run


def by_config(store: Store) -> dict[str, dict]:
    return {record["config_hash"]: record for record in load_records(store)}


def values(record: dict) -> str:
    """Every number to the last bit, NaN too."""
    return repr([(e["step"], dict(e["metrics"])) for e in record["evaluations"]])


def everything(runs: list[rows.RunRow]) -> list[str]:
    """Every field of every run; as text, in which NaN equals NaN."""
    return sorted(
        repr([sorted(value.items()) if isinstance(value, dict) else value for value in fields])
        for fields in map(dataclasses.astuple, runs)
    )


def read_no_files(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("a file was read that the cache should have")

    monkeypatch.setattr(records, "read_evaluations", fail)


# --- the runs, without MLflow's search -------------------------------------------------------------


def test_the_tables_say_what_mlflow_says(store, finished):
    finished(store, "a" * 16, tags={"dg.algorithm": "erm"}, params={"selection.rules": "last", "other": "1"})
    finished(store, "b" * 16, tags={"dg.algorithm": "vrex", "note": "ünï'code\n"})
    opened = client(store.uri)
    opened.log_metric(opened.create_run(store.experiment_id).info.run_id, "cost/seconds", 1)  # of no kind
    opened.create_run(opened.create_experiment("another"), tags={"dg.kind": "train", "dg.config_hash": "c"})
    nan = opened.create_run(store.experiment_id, tags={"dg.kind": "train", "dg.config_hash": "d"}).info.run_id
    opened.log_metric(nan, "cost/seconds", math.nan)
    opened.log_metric(nan, "cost/gigabytes", math.inf)

    read, searched = rows.rows(store), rows.rows(store, "attributes.start_time > 0")
    assert len(read) == 3 and read[-1].params == {"selection.rules": "last"}
    assert everything(read) == everything(searched)


def test_a_sweep_that_goes_on_finds_what_is_finished_without_mlflows_search(store, finished, monkeypatch):
    rundir = finished(store)
    searched = "search_runs takes a minute on 10,000 runs"
    monkeypatch.setattr("mlflow.MlflowClient.search_runs", lambda *_, **__: pytest.fail(searched))
    state = rundir.state
    assert tracking.finished_hashes(store) == {state.config_hash: state.mlflow_run_id}


def test_the_files_of_a_run_are_found_without_mlflows_search(store, finished, monkeypatch):
    rundir = finished(store)
    searched = "search_runs takes a minute on 10,000 runs"
    monkeypatch.setattr("mlflow.MlflowClient.search_runs", lambda *_, **__: pytest.fail(searched))
    artifacts = tracking.Artifacts(store)
    found = artifacts.path(rundir.state.uid, "evaluations.json")
    assert found is not None and json.loads(found.read_text())
    assert artifacts.path(rundir.state.uid, "none.json") is None and artifacts.path("nobody", "x") is None


@pytest.mark.parametrize("change", ["ALTER TABLE latest_metrics RENAME TO last_metrics", "DROP TABLE params"])
def test_tables_of_another_shape_are_left_to_mlflow(store, finished, monkeypatch, change):
    finished(store)
    expected = rows.rows(store)
    searched = rows.search(client(store.uri), store, rows.TRAIN)
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as db:
        db.execute(change)
    monkeypatch.setattr(rows, "search", lambda *_: searched)
    assert rows.rows(store) == expected


def test_a_store_that_is_locked_is_a_sentence_and_no_empty_report(store, finished, monkeypatch):
    finished(store)
    monkeypatch.setattr(rows, "PATIENCE", 0.01)
    monkeypatch.setattr(records, "client", lambda uri: client(uri))
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"), isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match="is locked by another process"):
            load_records(store)


# --- what a second report must see -----------------------------------------------------------------


def test_the_second_time_no_file_is_read_and_every_number_is_the_same(store, finished, monkeypatch):
    finished(store)
    (first,) = load_records(store)
    read_no_files(monkeypatch)
    (second,) = load_records(store)
    assert values(first) == values(second) and "inf" in values(first) and "nan" in values(first)
    assert {**second, "evaluations": None} == {**first, "evaluations": None}


def test_a_run_delivered_late_is_seen(store, finished, tmp_path):
    finished(store, "a" * 16)
    assert set(by_config(store)) == {"a" * 16}
    rundir = RunDir.create(tmp_path / "runs", "b" * 12, "b" * 16, experiment=EXPERIMENT)
    rundir.write_evaluations(CHECKPOINTS)
    rundir.update(
        status="FINISHED",
        started=1,
        ended=2,  # long before anything that the cache knows
        tags={"dg.kind": "train"},
        tracking_uri=store.uri,
        artifacts={"evaluations.json": False},
    )
    assert [each.outcome for each in sync(tmp_path / "runs")] == ["delivered"]
    found = by_config(store)
    assert set(found) == {"a" * 16, "b" * 16} and values(found["b" * 16]) == values(found["a" * 16])


def test_a_run_that_is_deleted_goes_and_comes_back_when_restored(store, finished):
    kept, run_id = finished(store, "a" * 16), finished(store, "b" * 16).state.mlflow_run_id
    assert len(load_records(store)) == 2
    client(store.uri).delete_run(run_id)
    assert set(by_config(store)) == {kept.state.config_hash}
    client(store.uri).restore_run(run_id)
    assert set(by_config(store)) == {"a" * 16, "b" * 16}


def test_a_tag_that_is_edited_is_seen(store, finished):
    run_id = finished(store).state.mlflow_run_id
    load_records(store)
    client(store.uri).set_tag(run_id, "dg.weights", "other")
    assert load_records(store)[0]["tags"]["dg.weights"] == "other"
    client(store.uri).delete_tag(run_id, "dg.weights")
    assert "dg.weights" not in load_records(store)[0]["tags"]


def test_a_run_that_goes_on_is_seen_as_it_is_and_then_with_what_it_logged(store, finished, tmp_path):
    rundir = finished(store)
    load_records(store)
    client(store.uri).update_run(rundir.state.mlflow_run_id, status="RUNNING")
    assert load_records(store)[0]["status"] == "RUNNING"
    resumed = RunDir.open(tmp_path / "runs", rundir.state.run_id)
    resumed.write_evaluations([*CHECKPOINTS, {"step": 15, "metrics": {"val/acc/art": 0.9}}])
    resumed.update(artifacts={"evaluations.json": False}, stored_status="RUNNING")
    Tracker(store, resumed).follow()
    (record,) = load_records(store)
    assert record["status"] == "FINISHED"
    assert [e["step"] for e in record["evaluations"]] == [5, 10, 15]


def test_new_runs_are_added_to_those_that_are_cached(store, finished, monkeypatch):
    finished(store, "a" * 16)
    load_records(store)
    finished(store, "b" * 16, [{"step": 1, "metrics": {"val/acc/art": 0.25}}])
    found = by_config(store)
    assert found["b" * 16]["evaluations"] == [{"step": 1, "metrics": {"val/acc/art": 0.25}}]
    read_no_files(monkeypatch)
    assert {key: values(record) for key, record in by_config(store).items()} == {
        key: values(record) for key, record in found.items()
    }


def test_runs_on_another_machine_are_cached_once_they_have_finished(store, finished, monkeypatch):
    finished(store)
    monkeypatch.setattr(records, "local", lambda uri: None)
    (first,) = load_records(store)
    read_no_files(monkeypatch)
    (second,) = load_records(store)
    assert values(first) == values(second)
    client(store.uri).set_terminated(second["mlflow_run_id"], "FINISHED", end_time=second["ended"] + 1)
    with pytest.raises(AssertionError, match="a file was read"):  # it was resumed, and has ended anew
        load_records(store)


# --- the file itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["garbage", "truncated", "foreign", "of another version", "wrong numbers"])
def test_a_damaged_or_foreign_cache_is_built_anew(store, finished, damage):
    finished(store)
    (first,) = load_records(store)
    file = cache.cache_file(store)
    if damage == "garbage":
        file.write_bytes(b"no database" * 1000)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        change = {
            "foreign": "PRAGMA application_id = 7",
            "of another version": "PRAGMA user_version = 999",
            "wrong numbers": "UPDATE runs SET numbers = x'0000000000000000'",
        }
        with closing(sqlite3.connect(file)) as db, db:
            db.execute(change[damage])
    (second,) = load_records(store)
    assert values(first) == values(second)
    assert set(cache.read_cache(file)) == {first["mlflow_run_id"]}


def test_a_cache_that_cannot_be_written_is_said_and_costs_only_time(store, finished, tmp_path, monkeypatch):
    finished(store)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DGHARNESS_CACHE", str(tmp_path / "file" / "folder"))
    said: list[str] = []
    (record,) = load_records(store, warn=said.append)
    assert len(record["evaluations"]) == 2
    assert len(said) == 1 and "DGHARNESS_CACHE" in said[0]


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    file = tmp_path / "cache.sqlite"

    def write(first: int) -> None:
        for number in range(first, first + 5):
            metrics = {f"key{number}": float(number)}
            cache.add_to_cache(file, [(f"run{number}", "s", [{"step": 1, "metrics": metrics}])])

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 5, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = cache.read_cache(file)
    assert {run: stamp for run, (stamp, _) in found.items()} == {f"run{n}": "s" for n in range(15)}
    assert found["run7"][1] == [{"step": 1, "metrics": {"key7": 7.0}}]


def test_stores_and_experiments_have_files_of_their_own(store, mlflow_store):
    other = prepare_store(mlflow_store, "another")
    assert cache.cache_file(store) != cache.cache_file(other)
    assert cache.cache_file(store).parent == Path(os.environ["DGHARNESS_CACHE"])


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch):
    monkeypatch.delenv("DGHARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_dir() == Path("/somewhere/dgharness")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "dgharness"


def test_metrics_read_from_the_cache_are_a_mapping_like_any_other(tmp_path):
    metrics = {"b": 1.5, "a": math.inf}
    cache.add_to_cache(tmp_path / "c", [("r", "s", [{"step": 1, "metrics": metrics}])])
    ((_, [checkpoint]),) = cache.read_cache(tmp_path / "c").values()
    found = checkpoint["metrics"]
    assert found == metrics and list(found) == ["b", "a"] and {**found} == metrics
    assert found.get("c") is None and "c" not in found and repr(found) == repr(metrics)
    assert json.loads(json.dumps(dict(found))) == metrics


def test_an_experiment_that_holds_nothing_leaves_no_cache(store):
    assert load_records(store) == [] and not cache.cache_file(store).exists()
    assert tracking.finished_hashes(store) == {}
