"""A run's directory: written whole or not at all, found again, and worked on by one process."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from dgharness import files, rundir
from dgharness.errors import UsageError
from dgharness.files import write_atomic
from dgharness.rundir import Busy, DatasetInput, Metric, RunDir, find, new_run_id, runs

HASH = "0123456789abcdef"


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "0123456789ab", HASH)


@contextmanager
def unprivileged():
    """The superuser may write anywhere; be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def sealed_folder():
    """A folder that everybody may enter and nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


# Writing


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"old")
    write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def broken(file):
        file.write(b"half")
        raise ValueError("not a matter of the disk")

    with pytest.raises(ValueError, match="not a matter"):
        write_atomic(path, broken)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_a_disk_that_takes_no_more_is_a_sentence(tmp_path, monkeypatch, code, words):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    write_atomic(tmp_path / "f", b"old")
    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(UsageError, match=f"cannot write .*f: .*{words}"):
        write_atomic(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_checkpoint_that_does_not_fit_is_a_sentence(tmp_path):
    import resource

    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UsageError, match="larger than allowed"):
            write_atomic(tmp_path / "f.pt", lambda file: torch.save(torch.zeros(100_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_directory_without_permission_is_a_sentence(sealed_folder):
    with unprivileged(), pytest.raises(UsageError, match="permission is denied"):
        RunDir.create(sealed_folder / "runs", "a", HASH)
    with unprivileged(), pytest.raises(UsageError, match="permission is denied"):
        write_atomic(sealed_folder / "f", b"")


def test_a_file_in_place_of_the_root_is_a_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="part of the path is a file"):
        RunDir.create(tmp_path / "runs", "a", HASH)


# Finding


def test_run_ids_are_the_hash_and_then_numbered(tmp_path):
    assert new_run_id(tmp_path, HASH) == "0123456789ab"
    RunDir.create(tmp_path, "0123456789ab", HASH)
    assert new_run_id(tmp_path, HASH) == "0123456789ab-2"
    RunDir.create(tmp_path, "0123456789ab-2", HASH)
    assert new_run_id(tmp_path, HASH) == "0123456789ab-3"


def test_a_run_is_never_created_over_another(run):
    with pytest.raises(UsageError, match="--resume 0123456789ab"):
        RunDir.create(run.path.parent, run.path.name, HASH)


def test_an_unknown_run_names_the_nearest(run):
    with pytest.raises(UsageError, match="did you mean '0123456789ab'"):
        RunDir.open(run.path.parent, "0123456789")
    with pytest.raises(UsageError, match="known: 0123456789ab"):
        RunDir.open(run.path.parent, "zzz")
    with pytest.raises(UsageError, match="holds no runs"):
        RunDir.open(run.path.parent / "elsewhere", "zzz")


def test_find_takes_the_finished_run_of_exactly_this_config(tmp_path):
    assert find(tmp_path, HASH) is None
    RunDir.create(tmp_path, "0123456789ab", HASH).update(status="FINISHED")
    RunDir.create(tmp_path, "0123456789ab-2", HASH)
    RunDir.create(tmp_path, "0123456789ab-3", "0123456789abffff").update(status="FINISHED")
    found = find(tmp_path, HASH)
    assert found is not None and found.state.run_id == "0123456789ab"
    assert [each.state.run_id for each in runs(tmp_path)] == [
        "0123456789ab",
        "0123456789ab-2",
        "0123456789ab-3",
    ]


# State


def test_the_state_survives_being_opened_again(run):
    run.set(tags={"dg.target": "art"}, datasets=[DatasetInput("pacs", "9f31", "train", 10)], error="why")
    run.delivered = 3
    run.save()
    again = RunDir.open(run.path.parent, run.path.name)
    assert again.state == run.state
    assert again.reopened and not run.reopened
    assert json.loads((run.path / "run.json").read_text())["delivered"] == 3


def test_an_unchanged_state_is_not_written_again(run):
    before = (run.path / "run.json").stat().st_ino
    run.save()
    assert (run.path / "run.json").stat().st_ino == before
    run.update(status="FAILED")
    assert (run.path / "run.json").stat().st_ino != before


def test_a_damaged_run_is_a_sentence(run):
    (run.path / "run.json").write_text('{"run_id": ')
    with pytest.raises(UsageError, match=r"run\.json cannot be read"):
        RunDir.open(run.path.parent, run.path.name)


def test_a_run_that_another_process_holds_is_busy_and_named(run):
    held = f"""
import sys, pathlib
from dgharness.rundir import RunDir
with RunDir.open(pathlib.Path({str(run.path.parent)!r}), {run.path.name!r}).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"{run.path.name} .* another process .*:{holder.pid}"), run.lock():
            pass
        holder.communicate("\n")
    with run.lock():
        assert run.state.worker.endswith(f":{os.getpid()}")


def test_the_lock_brings_what_another_process_has_written(run):
    RunDir.open(run.path.parent, run.path.name).update(status="FINISHED")
    assert run.state.status == "RUNNING"
    with run.lock():
        assert run.state.status == "FINISHED"


# Metrics and evaluations


def test_the_journal_survives_without_a_checkpoint(run):
    run.record("val/acc/art", 0.5, 10)
    run.record("val/acc/photo", math.nan, 10)
    run.record("train/penalty", math.inf, 10)
    run.save_final()
    again = RunDir.open(run.path.parent, run.path.name)
    assert again.journal == []
    again.load_final()
    assert repr(again.journal) == repr(run.journal)  # NaN differs from itself


def test_a_replayed_metric_keeps_its_time_and_a_changed_one_does_not(run, monkeypatch):
    run.record("loss", 0.5, 1)
    run.record("loss", math.nan, 2)
    run.save_final()
    then = run.journal[0].timestamp
    monkeypatch.setattr(rundir, "now_ms", lambda: then + 1000)
    again = RunDir.open(run.path.parent, run.path.name)
    again.record("loss", 0.5, 1)
    again.record("loss", math.nan, 2)
    again.record("loss", 0.25, 1)
    assert again.journal[0] == Metric("loss", 0.5, then, 1)
    assert [metric.timestamp for metric in again.journal] == [then, run.journal[1].timestamp, then + 1000]


def test_an_attempt_that_recorded_nothing_keeps_the_metrics_of_the_one_before(run):
    run.record("loss", 0.5, 1)
    run.save_final()
    again = RunDir.open(run.path.parent, run.path.name)
    again.save_final()
    again.load_final()
    assert again.journal == run.journal


def test_evaluations_are_strict_json_and_nan_survives(run):
    assert run.evaluations() == []
    run.write_evaluations([{"step": 5, "metrics": {"test/wga": math.nan, "val/nll": -math.inf, "n": 3}}])
    json.loads((run.path / "evaluations.json").read_text(), parse_constant=pytest.fail)
    (evaluation,) = run.evaluations()
    assert evaluation["step"] == 5
    assert math.isnan(evaluation["metrics"]["test/wga"])
    assert evaluation["metrics"]["val/nll"] == -math.inf
    assert evaluation["metrics"]["n"] == 3.0


def test_importing_it_is_cheap():
    code = (
        "import sys, dgharness.rundir, dgharness.tracking; "
        "sys.exit(bool({'torch', 'mlflow', 'pandas'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
