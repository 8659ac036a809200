"""A run's own directory: everything is written here first, so that no tracking store can cost a result.

``runs/<run_id>/`` holds ``run.json`` (what the run is, and how far the store has followed it),
``metrics.json`` (every metric, written at the end) and ``evaluations.json`` (what selection rules read).
While a run is under way its metrics are in its checkpoint.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dgharness.errors import UsageError, did_you_mean
from dgharness.files import write_json, writing

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Busy(UsageError):
    """The run is being worked on by another process."""


class Metric(NamedTuple):
    """One point of one curve. The store knows a point by all four: delivered twice, it counts once."""

    key: str
    value: float
    timestamp: int  # ms since the epoch
    step: int


class DatasetInput(NamedTuple):
    """The part of a dataset that one split took."""

    name: str
    digest: str
    context: str  # train, validation, test
    rows: int


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What ``run.json`` says. From ``mlflow_run_id`` on: how far the store has followed."""

    run_id: str
    config_hash: str
    uid: str  # tells this directory from one of the same config elsewhere
    status: Status = "RUNNING"
    name: str = ""
    experiment: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetInput] = field(default_factory=list)
    parent: str | None = None  # MLflow id of the sweep
    started: int = 0  # ms since the epoch
    ended: int | None = None
    error: str | None = None
    note: str = ""  # what a person reads of the run in the store, in Markdown
    worker: str = ""  # host:pid of the process that last worked on it
    tracking_uri: str | None = None  # without password
    mlflow_run_id: str | None = None
    described: bool = False  # the store has the tags, params and datasets
    stored_status: Status | None = None
    artifacts: dict[str, bool] = field(default_factory=dict)  # path in this directory -> in the store

    @property
    def settled(self) -> bool:
        """The run is over and the store knows everything; the status is always delivered last."""
        over = self.status != "RUNNING" and self.stored_status == self.status
        return over and all(self.artifacts.values())


class RunDir:
    """One run's directory, its state, and its metrics so far.

    ``journal`` and ``delivered`` (how many of its metrics the store has acknowledged) belong into the
    checkpoint; a resume puts them back.
    """

    def __init__(self, path: Path, state: RunState, reopened: bool) -> None:
        self.path, self.state, self.reopened = path, state, reopened
        self.journal: list[Metric] = []
        self.delivered = 0
        self._written: dict[str, Any] | None = None

    @classmethod
    def create(cls, root: Path, run_id: str, config_hash: str, **facts: Any) -> RunDir:
        """A new directory; ``facts`` are further fields of ``RunState``. One that exists is a UsageError."""
        path = Path(root) / run_id
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with writing(path, but=FileExistsError):
                path.mkdir()
        except FileExistsError:
            raise UsageError(
                f"{path} exists already; continue that run with --resume {run_id}, or move it away"
            ) from None
        for name in ("tags", "params"):
            facts[name] = {key: str(value) for key, value in facts.get(name, {}).items()}
        own: dict[str, Any] = {"run_id": run_id, "config_hash": config_hash, "uid": uuid.uuid4().hex}
        rundir = cls(path, RunState(**own, started=now_ms(), worker=_worker(), **facts), reopened=False)
        rundir.save()
        return rundir

    @classmethod
    def open(cls, root: Path, run_id: str) -> RunDir:
        """An existing run, or a UsageError that names the nearest ones."""
        path = Path(root) / run_id
        if not (path / "run.json").is_file():
            known = sorted(_run_ids(root), key=lambda name: -(Path(root) / name).stat().st_mtime)
            if not known:
                raise UsageError(f"there is no run {run_id!r}: {root} holds no runs")
            near = difflib.get_close_matches(run_id, known, n=1, cutoff=0.5) or known[:8]
            raise UsageError(f"there is no run {run_id!r} in {root}; {did_you_mean(run_id, near)}")
        return cls(path, _read_state(path), reopened=True)

    def save(self) -> None:
        """Write ``run.json`` if anything in it has changed."""
        content = {**asdict(self.state), "delivered": self.delivered}
        if content != self._written:
            write_json(self.path / "run.json", content)
            self._written = content

    def set(self, **changes: Any) -> None:
        """Change the state in memory; ``save`` writes it."""
        self.state = replace(self.state, **changes)

    def update(self, **changes: Any) -> None:
        """Change the state and write it."""
        self.set(**changes)
        self.save()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Work on this run alone; ``Busy`` at once if another process does."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            with writing(self.path, but=Timeout):
                lock.acquire()
        except Timeout:
            worker = _read_state(self.path).worker
            raise Busy(f"run {self.state.run_id} is being worked on by another process ({worker})") from None
        try:
            self.state = _read_state(self.path)
            self.update(worker=_worker())
            yield
        finally:
            lock.release()

    def record(self, key: str, value: float, step: int) -> None:
        """Add a metric to the journal.

        A point that an earlier attempt at this run has recorded keeps its time, so that what is replayed
        after a resume is not counted twice.
        """
        value = float(value)
        timestamp = self._earlier.get((key, step, _encoded(value))) or now_ms()
        self.journal.append(Metric(key, value, timestamp, step))

    def save_final(self) -> None:
        """Write the whole journal as ``metrics.json``: it can then be delivered without a checkpoint."""
        if self.journal:
            content = [(m.key, _encoded(m.value), m.timestamp, m.step) for m in self.journal]
            write_json(self.path / "metrics.json", content)

    def load_final(self) -> None:
        """Take the journal from ``metrics.json``. What was delivered before may be delivered again."""
        self.journal, self.delivered = self._final(), 0

    def write_evaluations(self, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Write ``[{"step": int, "metrics": {key: float}}]`` as strict JSON: null is NaN."""
        content = [
            {**e, "metrics": {key: _encoded(float(value)) for key, value in e["metrics"].items()}}
            for e in evaluations
        ]
        write_json(self.path / "evaluations.json", content)

    def evaluations(self) -> list[dict[str, Any]]:
        """What ``write_evaluations`` wrote, or nothing."""
        path = self.path / "evaluations.json"
        return read_evaluations(path.read_bytes()) if path.is_file() else []

    @cached_property
    def _earlier(self) -> dict[tuple[str, int, float | str | None], int]:
        return {(m.key, m.step, _encoded(m.value)): m.timestamp for m in self._final()}

    def _final(self) -> list[Metric]:
        path = self.path / "metrics.json"
        content = json.loads(path.read_bytes()) if path.is_file() else []
        return [Metric(key, _decoded(value), timestamp, step) for key, value, timestamp, step in content]


def new_run_id(root: Path, config_hash: str) -> str:
    """The first 12 digits of the config's hash, with -2, -3, ... where that directory exists.

    >>> new_run_id(Path("nowhere"), "0123456789abcdef")
    '0123456789ab'
    """
    stem, number = config_hash[:12], 1
    while (Path(root) / (run_id := stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return run_id


def find(root: Path, config_hash: str) -> RunDir | None:
    """The run of a config: a finished one before any other, then the newest."""
    pattern = re.compile(rf"{re.escape(config_hash[:12])}(-\d+)?")
    found = [RunDir.open(root, name) for name in _run_ids(root) if pattern.fullmatch(name)]
    same = [rundir for rundir in found if rundir.state.config_hash == config_hash]
    return max(same, key=lambda run: (run.state.status == "FINISHED", run.state.started), default=None)


def runs(root: Path) -> Iterator[RunDir]:
    """All runs under a root, by id."""
    return (RunDir.open(root, name) for name in sorted(_run_ids(root)))


def read_evaluations(content: bytes | str) -> list[dict[str, Any]]:
    """Evaluations from the text of an ``evaluations.json``.

    >>> read_evaluations('[{"step": 1, "metrics": {"val/acc/art": null, "val/nll": "inf"}}]')
    [{'step': 1, 'metrics': {'val/acc/art': nan, 'val/nll': inf}}]
    """
    return [
        {**e, "metrics": {key: _decoded(value) for key, value in e["metrics"].items()}}
        for e in json.loads(content)
    ]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 10**6


def _encoded(value: float) -> float | str | None:
    """A float for strict JSON, which has no word for NaN and the infinities."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _decoded(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _run_ids(root: Path) -> list[str]:
    if not Path(root).is_dir():
        return []
    return [entry.name for entry in os.scandir(root) if os.path.isfile(os.path.join(entry.path, "run.json"))]


def _read_state(path: Path) -> RunState:
    try:
        content = json.loads((path / "run.json").read_bytes())
        known = {f.name: content[f.name] for f in fields(RunState) if f.name in content}
        known["datasets"] = [DatasetInput(*entry) for entry in known.get("datasets", ())]
        return RunState(**known)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path / 'run.json'} cannot be read ({error}); move that directory away") from None


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
