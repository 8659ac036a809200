"""The store follows the run's directory, exactly once, and whatever fails there costs no result."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from dgharness import tracking
from dgharness.errors import UsageError
from dgharness.rundir import DatasetInput, RunDir, new_run_id
from dgharness.tracking import Store, Tracker, load_records, open_store, prepare_store, sync, tracking_uri
from dgharness.tracking import store as store_module
from dgharness.tracking.store import client
from tests.test_rundir import sealed_folder, unprivileged  # noqa: F401

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing answers


@pytest.fixture
def store(mlflow_store) -> Store:
    return prepare_store(mlflow_store, "toy/leave-one-domain-out")


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def track(tmp_path, warnings):
    """A tracker of a new run, or of one that is taken up again."""

    def make(
        store: Store, config_hash: str = "0123456789abcdef", resume: str = "", share: float = 1e9, **facts
    ):
        root = tmp_path / "runs"
        rundir = (
            RunDir.open(root, resume)
            if resume
            else RunDir.create(root, new_run_id(root, config_hash), config_hash, **facts)
        )
        return Tracker(store, rundir, warn=warnings.append, share=share)

    return make


def stored(tracker: Tracker, uri: str = ""):
    return client(uri or tracker.store.uri).get_run(tracker.rundir.state.mlflow_run_id)


def history(tracker: Tracker, key: str, uri: str = "") -> list[tuple[float, int]]:
    opened = client(uri or tracker.store.uri)
    points = opened.get_metric_history(tracker.rundir.state.mlflow_run_id, key)
    return [(point.value, point.step) for point in points]


class broken_metrics:
    """Within it the store refuses metrics and takes everything else."""

    def __init__(self, store: Store) -> None:
        self.path = store.uri.removeprefix("sqlite:///")

    def rename(self, old: str, new: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

    def __enter__(self) -> None:
        self.rename("latest_metrics", "hidden")

    def __exit__(self, *error) -> None:
        self.rename("hidden", "latest_metrics")


# Where the store is


def test_the_store_is_what_is_given_then_the_environment_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert tracking_uri() == "http://elsewhere:5000"
    assert tracking_uri("sqlite:///own.db") == f"sqlite:///{tmp_path}/own.db"


def test_passwords_are_not_shown(tmp_path):
    assert tracking.public("https://me:secret@host:5000/x") == "https://me@host:5000/x"
    with pytest.raises(UsageError) as caught:
        prepare_store("http://me:secret@127.0.0.1:9", "e")
    assert "secret" not in str(caught.value)


def test_preparing_creates_the_experiment_with_its_artifacts_beside_the_database(
    mlflow_store, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path(mlflow_store.removeprefix("sqlite:///")).parent.rename("new place #1")
    uri = tracking_uri("sqlite:///new place #1/mlflow.db")
    store = prepare_store(uri, "toy/lodo")
    assert prepare_store(uri, "toy/lodo") == store == open_store(uri, "toy/lodo")
    location = client(uri).get_experiment(store.experiment_id).artifact_location
    assert location == str(tmp_path / "new place #1" / "mlruns" / "toy_lodo")
    assert capfd.readouterr() == ("", "")


def test_processes_that_start_alone_on_a_fresh_store_do_not_collide_and_report_to_nobody(tmp_path):
    code = f"""
from dgharness.tracking import prepare_store
print(prepare_store("sqlite:///{tmp_path}/mlflow.db", "e").experiment_id)
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled())
"""
    decided_elsewhere = {"PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", *store_module._ENVIRONMENT}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in decided_elsewhere},
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.communicate() == ("1\nTrue\n", "")  # MLflow would tell of its migrations


# Stores that cannot be used


def test_a_file_store_here_is_refused_with_the_remedies(tmp_path, monkeypatch):
    meta = tmp_path / "mlruns" / "0" / "meta.yaml"
    meta.parent.mkdir(parents=True)
    meta.write_text("experiment_id: '0'\nname: Default\nlifecycle_stage: active\n")
    monkeypatch.chdir(tmp_path)
    import mlflow

    assert mlflow.get_tracking_uri().endswith("mlruns")  # MLflow takes it in place of a database
    with pytest.raises(UsageError, match=r"migrate-filestore .* move the folder away.* MLFLOW_TRACKING_URI"):
        tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/other.db"


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_a_file_uri_is_refused_with_the_remedies(uri):
    with pytest.raises(UsageError, match="migrate-filestore"):
        prepare_store(uri, "e")


@pytest.mark.parametrize("revision", ["75868b020152", "ffffffffffff"], ids=["older", "unknown"])
def test_a_database_of_another_version_is_refused_with_the_remedy(mlflow_store, revision):
    path = mlflow_store.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(UsageError, match=f"make a copy of it, then run `mlflow db upgrade {mlflow_store}`"):
        prepare_store(mlflow_store, "e")


def test_a_read_only_store_is_a_sentence_at_once(mlflow_store):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = folder / "mlflow.db"
        database.write_bytes(Path(mlflow_store.removeprefix("sqlite:///")).read_bytes())
        database.chmod(0o444)
        folder.chmod(0o555)
        began = time.monotonic()
        with unprivileged():
            for path in (database, folder / "none.db", folder / "none" / "mlflow.db"):
                with pytest.raises(UsageError, match="cannot be written; mend its permissions"):
                    prepare_store(f"sqlite:///{path}", "e")
        assert time.monotonic() - began < 5
        folder.chmod(0o755)


def test_a_locked_store_and_one_that_is_no_database_are_sentences(mlflow_store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)
    with closing(sqlite3.connect(mlflow_store.removeprefix("sqlite:///"))) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UsageError, match="is locked by another process"):
            prepare_store(mlflow_store, "e")
    (tmp_path / "notes.txt").write_text("not a database, for certain\n" * 100)
    with pytest.raises(UsageError, match="is not a database; move that file away"):
        prepare_store(f"sqlite:///{tmp_path}/notes.txt", "e")


def test_an_absent_server_and_a_missing_driver_are_sentences():
    with pytest.raises(UsageError, match=f"{NOWHERE} cannot be reached; start that server"):
        prepare_store(NOWHERE, "e")
    with pytest.raises(UsageError, match="driver that is not installed"):
        prepare_store("mssql+pyodbc://db/mlflow", "e")


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(store):
    client(store.uri).delete_experiment(store.experiment_id)
    with pytest.raises(UsageError, match=f"restore --experiment-id {store.experiment_id}"):
        prepare_store(store.uri, store.experiment)


def test_an_unknown_experiment_names_the_nearest(store):
    with pytest.raises(UsageError, match="did you mean 'toy/leave-one-domain-out'"):
        open_store(store.uri, "toy/leave-one-domain")
    with pytest.raises(UsageError, match="is gone"):
        open_store("sqlite:////nowhere/mlflow.db", "e")


# Following a run


def test_a_run_arrives_whole(store, track, warnings):
    tracker = track(
        store,
        name="vrex/toy/art/h0t0",
        tags={"dg.algorithm": "vrex", "mlflow.user": "somebody"},
        params={"hp.weight": 10.0, "empty": "", "long": "x" * 7000} | {f"p{i}": i for i in range(150)},
        parent="0" * 32,
    )
    path = tracker.rundir.path
    (path / "config.yaml").write_text("algorithm: vrex")
    assert tracker.start([DatasetInput("toy", "9f31", "train", 80), DatasetInput("toy", "77ab", "test", 20)])
    for step in range(30):
        for name in range(50):
            tracker.rundir.record(f"val/acc/d{name}", step / 100, step)
    assert tracker.deliver()
    tracker.rundir.record("train/odd(name)/[x]", math.nan, 30)
    tracker.rundir.write_evaluations([{"step": 30, "metrics": {"val/acc/d1": 0.3}}])
    (path / "weights").mkdir()
    (path / "weights" / "last.pt").write_bytes(b"1")
    (path / "checkpoint.pt").write_bytes(b"1")
    assert tracker.finish("FINISHED")

    run = stored(tracker)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "vrex/toy/art/h0t0")
    assert (run.info.start_time, run.info.end_time) == (
        tracker.rundir.state.started,
        tracker.rundir.state.ended,
    )
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == "0" * 32
    assert tags["dg.kind"] == "train" and tags["dg.algorithm"] == "vrex" and tags["mlflow.user"] == "somebody"
    assert tags["dg.config_hash"] == "0123456789abcdef" and tags["dg.run_id"] == "0123456789ab"
    assert tags["mlflow.source.name"] == "dgharness" and tags["dg.version"]
    assert tags["dg.shortened_params"] == "long"
    assert len(run.data.params) == 153 and run.data.params["hp.weight"] == "10.0"
    assert run.data.params["long"] == "x" * 6000
    inputs = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs}
    assert inputs == {("toy", "9f31", "train"), ("toy", "77ab", "test")}
    assert history(tracker, "val/acc/d7") == [(step / 100, step) for step in range(30)]
    assert math.isnan(run.data.metrics["train/odd_name_/_x_"])
    opened = client(store.uri)
    found = [file.path for file in opened.list_artifacts(run.info.run_id)]
    assert found == ["config.yaml", "evaluations.json", "weights"]
    assert opened.list_artifacts(run.info.run_id, "weights")[0].path == "weights/last.pt"
    assert tracker.rundir.state.settled and warnings == []


def test_a_metric_delivered_twice_counts_once(store, track):
    tracker = track(store)
    tracker.start()
    for step in range(5):
        tracker.rundir.record("loss", 1 / (1 + step), step)
    assert tracker.deliver()
    once = history(tracker, "loss")
    tracker.rundir.delivered = 0
    assert tracker.deliver() and tracker.rundir.delivered == 5
    assert history(tracker, "loss") == once and len(once) == 5


def test_a_resumed_run_is_the_same_run_and_replays_nothing_twice(store, track, warnings):
    tracker = track(store, params={"a": 1})
    tracker.start([DatasetInput("toy", "9f31", "train", 80)])
    tracker.rundir.record("loss", 1.0, 1)
    tracker.deliver()
    checkpoint = (list(tracker.rundir.journal), tracker.rundir.delivered)
    tracker.rundir.record("loss", 0.5, 2)
    tracker.finish("FAILED", error="the loss was not finite")
    assert stored(tracker).data.tags["dg.error"] == "the loss was not finite"
    time.sleep(0.002)

    again = track(store, resume=tracker.rundir.path.name)
    again.rundir.journal, again.rundir.delivered = checkpoint
    assert again.start([DatasetInput("toy", "9f31", "train", 80)])
    assert stored(again).info.status == "RUNNING" and "dg.error" not in stored(again).data.tags
    again.rundir.record("loss", 0.5, 2)
    again.rundir.record("loss", 0.25, 3)
    assert again.finish("FINISHED")
    assert again.rundir.state.mlflow_run_id == tracker.rundir.state.mlflow_run_id
    assert history(again, "loss") == [(1.0, 1), (0.5, 2), (0.25, 3)]
    assert len(stored(again).inputs.dataset_inputs) == 1
    assert stored(again).info.status == "FINISHED" and warnings == []


def test_a_run_created_by_an_attempt_that_never_heard_back_is_found_again(store, track):
    tracker = track(store)
    tracker.start()
    tracker.rundir.update(mlflow_run_id=None, described=False, stored_status=None)  # as if it had died there
    again = track(store, resume=tracker.rundir.path.name)
    assert again.finish("FINISHED")
    assert len(client(store.uri).search_runs([store.experiment_id])) == 1


def test_a_run_whose_mlflow_run_was_deleted_is_written_anew(store, track):
    tracker = track(store)
    tracker.start()
    tracker.rundir.record("loss", 1.0, 1)
    tracker.deliver()
    checkpoint = (list(tracker.rundir.journal), tracker.rundir.delivered)
    client(store.uri).delete_run(tracker.rundir.state.mlflow_run_id)
    again = track(store, resume=tracker.rundir.path.name)
    again.start()
    again.rundir.journal, again.rundir.delivered = checkpoint
    assert again.finish("FINISHED")
    assert again.rundir.state.mlflow_run_id != tracker.rundir.state.mlflow_run_id
    assert history(again, "loss") == [(1.0, 1)]


# A store that fails


def test_a_store_that_breaks_in_the_middle_gives_one_warning_and_loses_nothing(store, track, warnings):
    tracker = track(store)
    tracker.start()
    with broken_metrics(store):
        for step in range(3):
            tracker.rundir.record("loss", 0.5, step)
            tracker._not_before = 0.0
            assert not tracker.deliver()
    assert tracker.rundir.delivered == 0
    assert len(warnings) == 1 and "dgharness sync" in warnings[0] and "\n" not in warnings[0]
    assert tracker.finish("FINISHED")
    assert len(history(tracker, "loss")) == 3


def test_a_failing_store_is_left_alone_for_a_while(store, track):
    tracker = track(store)
    tracker.start()
    tracker.rundir.record("loss", 0.5, 0)
    with broken_metrics(store):
        began = time.monotonic()
        tracker.deliver()
        took = time.monotonic() - began
    wait = tracker._not_before - time.monotonic()
    assert 0 < wait <= 10 * took
    assert not tracker.deliver()  # the store works again, but it is too early to ask
    time.sleep(wait)
    assert tracker.deliver()


def test_deliveries_take_no_more_than_their_share_of_the_time(store, track):
    tracker = track(store, share=0.01)
    began = time.monotonic()
    tracker.start()
    took = time.monotonic() - began
    tracker.rundir.record("loss", 0.5, 0)
    assert not tracker.deliver() and 0 < tracker._not_before - time.monotonic() <= 100 * took
    assert tracker.finish("FINISHED")
    assert [value for value, _ in history(tracker, "loss")] == [0.5]


def test_a_run_that_never_reached_its_store_is_delivered_by_sync(
    track, mlflow_store, tmp_path, warnings, capfd
):
    tracker = track(Store(NOWHERE, "toy/lodo", "1"), name="n", params={"a": 1}, parent="sweep-there")
    (tracker.rundir.path / "config.yaml").write_text("")
    assert not tracker.start([DatasetInput("toy", "9f31", "train", 80)])
    tracker.rundir.record("loss", 0.5, 1)
    assert not tracker.finish("FINISHED")
    assert len(warnings) == 1 and "cannot be reached" in warnings[0] and capfd.readouterr() == ("", "")

    (failed,) = sync(tmp_path / "runs")
    assert failed.outcome == "failed" and "cannot be reached" in str(failed)
    (delivered,) = sync(tmp_path / "runs", mlflow_store)
    assert (delivered.run_id, delivered.outcome) == (tracker.rundir.path.name, "delivered")
    (record,) = load_records(open_store(mlflow_store, "toy/lodo"))
    assert (record["status"], record["name"]) == ("FINISHED", "n")
    data = client(mlflow_store).get_run(record["mlflow_run_id"]).data
    assert data.params == {"a": "1"} and data.metrics == {"loss": 0.5}
    assert "mlflow.parentRunId" not in record["tags"]
    assert sync(tmp_path / "runs", mlflow_store) == sync(tmp_path / "runs") == []


def test_sync_is_idempotent_and_completes_what_is_missing(store, track, tmp_path):
    tracker = track(store)
    tracker.start()
    tracker.rundir.record("loss", 0.5, 1)
    (tracker.rundir.path / "evaluations.json").write_text("[]")
    with broken_metrics(store):
        assert not tracker.finish("FINISHED")
    assert stored(tracker).info.status == "RUNNING"
    assert [each.outcome for each in sync(tmp_path / "runs")] == ["delivered"]
    assert stored(tracker).info.status == "FINISHED" and history(tracker, "loss") == [(0.5, 1)]
    assert sync(tmp_path / "runs") == []
    assert load_records(store)[0]["evaluations"] == []


def test_sync_leaves_a_run_under_way_alone_and_ends_one_that_died(store, track, tmp_path):
    tracker = track(store)
    tracker.start()
    with tracker.rundir.lock():
        assert [each.outcome for each in sync(tmp_path / "runs")] == ["in progress"]
    assert stored(tracker).info.status == "RUNNING"
    assert [each.outcome for each in sync(tmp_path / "runs")] == ["delivered"]
    assert stored(tracker).info.status == "KILLED"


def test_sync_moves_runs_into_another_store(store, track, tmp_path):
    tracker = track(store)
    tracker.start()
    tracker.rundir.record("loss", 0.5, 1)
    tracker.finish("FINISHED")
    other = f"sqlite:///{tmp_path}/other.db"
    Path(f"{tmp_path}/other.db").write_bytes(Path(store.uri.removeprefix("sqlite:///")).read_bytes())
    client(other).delete_run(tracker.rundir.state.mlflow_run_id)
    assert [each.outcome for each in sync(tmp_path / "runs", other)] == ["delivered"]
    (record,) = load_records(open_store(other, store.experiment))
    assert client(other).get_run(record["mlflow_run_id"]).data.metrics == {"loss": 0.5}


# Sweeps, reports, and reading back


def test_a_sweep_is_one_run_that_continues_and_a_report_is_a_new_one_each_time(store):
    plan = {"plan.json": "[]"}
    sweep = tracking.start_group(store, "sweep", "s", {"dg.sweep": "abc"}, {"trials": 3}, plan)
    assert tracking.finish_group(store, sweep, "KILLED")
    assert tracking.start_group(store, "sweep", "s", {"dg.sweep": "abc"}, {"trials": 3}) == sweep
    run = client(store.uri).get_run(sweep)
    assert (
        run.info.status == "RUNNING"
        and run.data.tags["dg.kind"] == "sweep"
        and run.data.params == {"trials": "3"}
    )
    assert tracking.group_texts(store, "sweep", "plan.json") == ["[]"]
    reports = {tracking.start_group(store, "report", "r", {}, {}) for _ in range(2)}
    assert len(reports) == 2
    assert load_records(store) == []


def test_a_sweep_that_cannot_be_ended_is_a_warning(store, warnings):
    assert not tracking.finish_group(Store(NOWHERE, "e", "1"), "x", warn=warnings.append)
    assert len(warnings) == 1


def test_records_hold_one_run_per_config_and_prefer_the_finished(store, track):
    finished = track(store, "a" * 16, name="finished", tags={"dg.algorithm": "erm"})
    finished.start()
    finished.rundir.write_evaluations([{"step": 1, "metrics": {"test/wga": math.nan, "val/acc/art": 0.5}}])
    finished.finish("FINISHED")
    time.sleep(0.002)
    track(store, "a" * 16, name="newer").start()
    failed = track(store, "b" * 16, name="failed")
    failed.start()
    failed.finish("FAILED", "why")

    records = {record["config_hash"]: record for record in load_records(store)}
    assert {key: record["name"] for key, record in records.items()} == {
        "a" * 16: "finished",
        "b" * 16: "failed",
    }
    (evaluation,) = records["a" * 16]["evaluations"]
    assert math.isnan(evaluation["metrics"]["test/wga"]) and evaluation["metrics"]["val/acc/art"] == 0.5
    assert records["b" * 16]["evaluations"] is None and records["b" * 16]["tags"]["dg.error"] == "why"
    assert tracking.finished_hashes(store) == {"a" * 16: finished.rundir.state.mlflow_run_id}
    assert [record["name"] for record in load_records(store, "tags.dg.algorithm = 'erm'")] == ["finished"]


def test_reading_goes_on_over_many_pages(store, monkeypatch):
    from dgharness.tracking import rows

    opened = client(store.uri)
    for number in range(5):
        opened.create_run(store.experiment_id, tags={"dg.kind": "train", "dg.config_hash": str(number)})
    monkeypatch.setattr(rows, "PAGE", 2)
    by_search = load_records(store, "attributes.status = 'RUNNING'")
    assert {record["config_hash"] for record in by_search} == set("01234")


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_misses_nothing(tmp_path, track, warnings, capfd):
    import socket

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]

    def serve() -> subprocess.Popen:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process
            time.sleep(0.2)
        raise TimeoutError("the server did not start")

    def end(process: subprocess.Popen) -> None:
        os.killpg(process.pid, 9)
        process.wait()

    server = serve()
    try:
        tracker = track(prepare_store(uri, "toy/lodo"), name="n")
        assert tracker.start()
        tracker.rundir.record("loss", 1.0, 1)
        assert tracker.deliver()
        end(server)
        tracker.rundir.record("loss", 0.5, 2)
        began = time.monotonic()
        assert not tracker.deliver()
        assert time.monotonic() - began < 30 and len(warnings) == 1
        tracker.rundir.write_evaluations([{"step": 2, "metrics": {"val/nll": 0.5}}])
        assert not tracker.finish("FINISHED")
        server = serve()
        assert [each.outcome for each in sync(tmp_path / "runs")] == ["delivered"]
        assert history(tracker, "loss") == [(1.0, 1), (0.5, 2)]
        (record,) = load_records(open_store(uri, "toy/lodo"))
        assert record["status"] == "FINISHED"
        assert record["evaluations"] == [{"step": 2, "metrics": {"val/nll": 0.5}}]
        assert capfd.readouterr() == ("", "")
    finally:
        end(server)
