"""Whole training runs of a few tiny steps, and what they leave behind."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dgharness.config import RunConfig, compose, merge
from dgharness.errors import Interrupted
from dgharness.training.learner import Learner
from dgharness.training.progress import Progress
from dgharness.training.run import Result, resume, train

QUIET: Any = {"say": lambda text: None}


def small_config(store: str, output: Path, algorithm: str = "erm", **sections: Any) -> RunConfig:
    """Ten updates of a narrow network on colored-digits, evaluated at 4, 8 and 10."""
    base: dict[str, Any] = {
        "algorithm": algorithm,
        "model": {"name": "mlp", "width": 16},
        "train": {"steps": 10, "eval_every": 4, "log_every": 3, "batch_size": 8},
        "optimizer": {"lr": 1e-2},
        "execution": {"tracking_uri": store, "output": str(output), "device": "cpu", "keep": "all"},
    }
    return compose(flags=merge(base, sections))


def run_small(store: str, output: Path, algorithm: str = "erm", **sections: Any) -> Result:
    return train(small_config(store, output, algorithm, **sections), progress=Progress(**QUIET))


@contextmanager
def signal_after(update: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """The process gets a signal while update number ``update`` is under way."""
    step = Learner.step

    def stepped(learner: Learner, *args: Any, **kwargs: Any) -> Any:
        metrics = step(learner, *args, **kwargs)
        if learner.t == update:
            signal.raise_signal(number)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", stepped)
        yield


def saved(path: Path, name: str = "checkpoint") -> dict[str, Any]:
    return torch.load(path / f"{name}.pt", weights_only=True)


def stored(store: str, path: Path) -> dict[str, Any]:
    """Status, metrics [(key, step, value)] and tags of a run, as they lie in the database."""
    with sqlite3.connect(store.removeprefix("sqlite:///")) as db:
        uid = mlflow_id(path)
        (status,) = db.execute("SELECT status FROM runs WHERE run_uuid = ?", (uid,)).fetchone()
        metrics = db.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (uid,)).fetchall()
        tags = dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (uid,)).fetchall())
    return {"status": status, "metrics": sorted(metrics), "tags": tags}


def mlflow_id(path: Path) -> str:
    return json.loads((path / "run.json").read_text())["mlflow_run_id"]


def curve(store: str, path: Path, key: str) -> dict[int, float]:
    """A logged metric by step."""
    return {step: value for name, step, value in stored(store, path)["metrics"] if name == key}


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested states of tensors and plain values are not the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return [f"{path}: keys"]
        return [found for key in one for found in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: length"]
        return [
            found
            for number, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{path}[{number}]")
        ]
    return [] if one == other else [path]


def assert_a_resumed_run_is_an_uninterrupted_one(store, tmp_path, algorithm, stops=(3, 6), **sections):
    whole = run_small(store, tmp_path / "whole", algorithm, **sections)
    with signal_after(stops[0]), pytest.raises(Interrupted):
        run_small(store, tmp_path / "parts", algorithm, **sections)
    path = tmp_path / "parts" / whole.run_id
    for stop in stops[1:]:
        assert stored(store, path)["status"] == "KILLED"
        assert saved(path)["learner"]["t"] < stop
        torch.manual_seed(stop)  # another process starts from other random numbers
        with signal_after(stop), pytest.raises(Interrupted):
            resume(whole.run_id, tmp_path / "parts", progress=Progress(**QUIET))
    torch.manual_seed(99)
    resumed = resume(whole.run_id, tmp_path / "parts", progress=Progress(**QUIET))

    assert resumed.status == "FINISHED" and resumed.chosen == whole.chosen
    assert not differences(saved(whole.path)["learner"], saved(path)["learner"])
    files = sorted(file.name for file in whole.path.iterdir() if file.suffix in (".pt", ".parquet"))
    assert files == sorted(file.name for file in path.iterdir() if file.suffix in (".pt", ".parquet"))
    for file in files:
        if file.startswith("weights-"):
            name = file.removesuffix(".pt")
            assert not differences(saved(whole.path, name), saved(path, name))
    assert (path / "evaluations.json").read_bytes() == (whole.path / "evaluations.json").read_bytes()
    one, other = stored(store, whole.path), stored(store, path)
    assert one["status"] == other["status"] == "FINISHED"
    assert len({(key, step) for key, step, _ in other["metrics"]}) == len(other["metrics"])
    assert timeless(one["metrics"]) == timeless(other["metrics"])


def timeless(metrics):
    """Without the values of what depends on the clock and the process."""
    machine = ("cost/seconds", "cost/peak_memory_gb")
    return [(key, step, None if key in machine else value) for key, step, value in metrics]
