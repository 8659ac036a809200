"""Real processes, real signals: what is saved, what MLflow says, how it exits, and that it can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dgharness import rundir, tracking

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from dgharness.cli import main; main()"]
ENDLESS = ["train.steps=1000000", "train.eval_every=20", "model.width=8"]
EXPERIMENT = "colored-digits/leave-one-domain-out"
PATIENCE = 120.0


@pytest.fixture
def start(tmp_path, mlflow_store):
    """Start a command in a directory of its own; whatever is left of it is ended."""
    started: list[subprocess.Popen] = []

    def run(*words: str, sets=ENDLESS) -> subprocess.Popen:
        settings = [word for each in sets for word in ("--set", each)]
        with open(tmp_path / f"stderr-{len(started)}.txt", "wb") as stderr:
            process = subprocess.Popen(
                [*COMMAND, *words, *settings],
                cwd=tmp_path,
                env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_store, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def said(tmp_path) -> Callable[[], str]:
    """What the latest command has said so far."""
    return lambda: sorted(tmp_path.glob("stderr-*.txt"))[-1].read_text()


def until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, "the command has ended"
        time.sleep(0.05)


def directories(tmp_path: Path) -> list[rundir.RunDir]:
    return list(rundir.runs(tmp_path / "runs"))


def with_checkpoints(tmp_path: Path, number: int) -> Callable[[], bool]:
    return lambda: len(list(tmp_path.glob("runs/*/checkpoint.pt"))) >= number


def handles_sigterm(pid: int) -> bool:
    """Linux says which signals a process has handlers for."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)


def statuses(uri: str, kind: str = "train") -> list[str]:
    from mlflow import MlflowClient

    store = tracking.open_store(uri, EXPERIMENT)
    found = MlflowClient(uri).search_runs([store.experiment_id], f"tags.dg.kind = '{kind}'")
    return sorted(run.info.status for run in found)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_its_state_and_goes_on_from_there(
    start, said, tmp_path, mlflow_store, number, code
):
    training = start("train")
    until(with_checkpoints(tmp_path, 1), training)
    training.send_signal(number)
    assert training.wait(PATIENCE) == code
    (stopped,) = directories(tmp_path)
    assert stopped.state.status == "KILLED" and statuses(mlflow_store) == ["KILLED"]
    assert "Traceback" not in said()
    assert f"dgharness train --resume {stopped.state.run_id} continues it" in said()

    resumed = start("train", "--resume", stopped.state.run_id, sets=())
    until(lambda: " step " in said() and len(said().splitlines()) > 5, resumed)
    assert statuses(mlflow_store) == ["RUNNING"]
    resumed.send_signal(signal.SIGTERM)
    assert resumed.wait(PATIENCE) == 143
    assert statuses(mlflow_store) == ["KILLED"]  # still one run, not two
    assert len(directories(tmp_path)) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_run_begins_leaves_nothing(start, said, tmp_path, number, code):
    training = start("train")
    until(lambda: handles_sigterm(training.pid), training)  # the heavy imports come after that
    training.send_signal(number)
    assert training.wait(PATIENCE) == code
    assert "Traceback" not in said()
    assert all(run.state.status == "KILLED" for run in directories(tmp_path))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_continues_its_runs_where_they_were(
    start, said, tmp_path, mlflow_store, number, code
):
    sweep = ["sweep", "-a", "erm", "--target=-90%", "--trials", "2", "--workers", "2"]
    sets = ["train.steps=3000", "train.eval_every=100", "model.width=8"]
    sweeping = start(*sweep, sets=sets)
    until(with_checkpoints(tmp_path, 2), sweeping)
    sweeping.send_signal(number)
    assert sweeping.wait(PATIENCE) == code
    assert "the same command continues the sweep" in said() and "Traceback" not in said()
    assert [run.state.status for run in directories(tmp_path)] == ["KILLED", "KILLED"]
    assert statuses(mlflow_store) == ["KILLED", "KILLED"]
    assert statuses(mlflow_store, "sweep") == ["KILLED"]

    again = start(*sweep, sets=sets)
    assert again.wait(PATIENCE) == 0
    assert "2 finished, 0 skipped, 0 failed" in said()
    assert statuses(mlflow_store) == ["FINISHED", "FINISHED"]
    assert statuses(mlflow_store, "sweep") == ["FINISHED"]
    assert len(directories(tmp_path)) == 2


def test_a_worker_that_is_killed_fails_its_run_and_no_other(start, said, tmp_path, mlflow_store):
    sweeping = start(
        *["sweep", "-a", "erm", "--target=-90%", "--trials", "2", "--workers", "2"],
        sets=["train.steps=4000", "train.eval_every=100", "model.width=8"],
    )
    until(with_checkpoints(tmp_path, 1), sweeping)
    victim = next(run for run in directories(tmp_path) if (run.path / "checkpoint.pt").exists())
    os.kill(int(victim.state.worker.rpartition(":")[2]), signal.SIGKILL)
    assert sweeping.wait(PATIENCE) == 3
    assert "its process ended early: killed by signal 9" in said() and "Traceback" not in said()
    assert statuses(mlflow_store) == ["FAILED", "FINISHED"]
    assert statuses(mlflow_store, "sweep") == ["FAILED"]
    dead = next(run for run in directories(tmp_path) if run.state.run_id == victim.state.run_id)
    assert (dead.state.status, dead.state.stored_status) == ("FAILED", "FAILED")
    assert "killed by signal 9" in (dead.state.error or "")


def test_two_sweeps_at_once_leave_every_run_whole(start, tmp_path, mlflow_store):
    sweep = ["sweep", "-a", "erm", "--target=-90%", "--trials", "2", "--workers", "1"]
    sets = ["train.steps=200", "train.eval_every=100", "model.width=8"]
    codes = {process.wait(PATIENCE) for process in [start(*sweep, sets=sets) for _ in range(2)]}
    assert codes <= {0, 3}  # a run that the other was working on counts as failed
    assert all(run.state.status == "FINISHED" for run in directories(tmp_path))
    assert start(*sweep, sets=sets).wait(PATIENCE) == 0
    assert set(statuses(mlflow_store)) == {"FINISHED"}
