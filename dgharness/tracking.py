"""Everything that touches MLflow: preparing the store, a run's way into it, and the way back for reports.

A run directory is the truth and the store follows it. Every step of following may be repeated: MLflow
ignores a metric with the key, value, time and step of one it has, and a run is found again by its tag
``dg.run_uid``. So what a store that was away did not take is delivered later, by the run itself or by
``sync``, and counts once.
"""

from __future__ import annotations

import getpass
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

from dgharness.errors import UsageError, did_you_mean
from dgharness.names import slug
from dgharness.rundir import Busy, DatasetInput, RunDir, Status, now_ms, read_evaluations, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH = 1000  # metrics per request, MLflow's limit
PARAM_LENGTH, TAG_LENGTH = 6000, 8000
PATIENCE = 20.0  # seconds to wait for another process to leave a sqlite store
EVALUATIONS = "evaluations.json"

# Set before MLflow is imported, unless the user has set them. Without the first it sends usage statistics;
# the others keep its messages off the terminal, and a server that is away from holding a run up for minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

_FILE_STORE = (
    "is a file store, which MLflow 3 refuses; copy it into a database with `mlflow migrate-filestore --source "
    "{path} --target sqlite:///mlflow.db` and move it away, or set MLFLOW_TRACKING_URI to another store"
)
_REMEDIES = (  # what MLflow, SQLAlchemy or the network say -> what it means and what to do
    ("maintenance mode", _FILE_STORE),
    (
        "out-of-date database schema|Can't locate revision",
        "was written by another version of MLflow; make a copy of it, then run `mlflow db upgrade {uri}` "
        "(if a newer MLflow wrote it, upgrade MLflow instead)",
    ),
    ("database is locked", "is locked by another process; wait for that process or end it"),
    ("is not a database", "is not a database; move that file away or set MLFLOW_TRACKING_URI"),
    (
        "readonly database|read-only|Read-only|unable to open database|[Pp]ermission denied|Not a directory",
        "cannot be written; mend its permissions, or set MLFLOW_TRACKING_URI to a place that can be written",
    ),
    (
        "API request to .* failed with exception|Connection|timed out",
        "cannot be reached; start that server, or set MLFLOW_TRACKING_URI to another store",
    ),
    ("No module named", "needs a driver that is not installed ({error})"),
)


@dataclass(frozen=True)
class Store:
    """One experiment of a prepared store; plain data, to be handed to worker processes."""

    uri: str
    experiment: str
    experiment_id: str

    def __str__(self) -> str:
        return f"{public(self.uri)} → {self.experiment}"


@dataclass(frozen=True)
class Synced:
    """What ``sync`` did with one run."""

    run_id: str
    outcome: Literal["delivered", "up to date", "in progress", "untracked", "failed"]
    detail: str = ""


def to_stderr(text: str) -> None:
    """The default place of warnings."""
    print(text, file=sys.stderr, flush=True)


def tracking_uri(given: str | None = None) -> str:
    """The store: as given, else MLFLOW_TRACKING_URI, else mlflow.db here; sqlite paths made absolute."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if any(Path("mlruns").glob("[0-9]*/meta.yaml")):
            # MLflow's own tools, called here, would open it in place of the database, and refuse.
            raise UsageError(f"{Path('mlruns').absolute()} {_FILE_STORE.format(path='.')}")
        uri = "sqlite:///mlflow.db"
    path = _sqlite_path(uri)
    return uri if path is None else uri.replace(f"sqlite:///{path}", f"sqlite:///{path.absolute()}", 1)


def prepare_store(uri: str, experiment: str) -> Store:
    """Create or migrate the store and the experiment, once, before any worker exists.

    What cannot be used is a UsageError with the remedy. Processes that start alone on a fresh sqlite store
    wait for one another.
    """
    path = _sqlite_path(uri)
    with _explained(uri):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with _first_contact(path):
            client = _client(uri, may_create=True)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                # MLflow would put the artifacts where the process happens to run.
                location = path and str(path.parent.absolute() / "mlruns" / slug(experiment))
                experiment_id = client.create_experiment(experiment, artifact_location=location)
                return Store(uri, experiment, experiment_id)
    if found.lifecycle_stage == "deleted":
        raise UsageError(
            f"the experiment {experiment!r} of {public(uri)} was deleted; choose another name, or run "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return Store(uri, experiment, found.experiment_id)


def open_store(uri: str, experiment: str) -> Store:
    """An experiment that exists, for reading; an unknown one is a UsageError that names the nearest."""
    with _explained(uri):
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = [each.name for each in client.search_experiments()]
            raise UsageError(f"{public(uri)} has no experiment {experiment!r}; {did_you_mean(experiment, known)}")
    return Store(uri, experiment, found.experiment_id)


class Tracker:
    """Brings the store up to what a run's directory says. ``warn`` gets a sentence when the store fails.

    Every method returns whether the store now has everything; nothing is lost where it has not.
    """

    def __init__(self, store: Store, rundir: RunDir, warn: Callable[[str], None] = to_stderr) -> None:
        self.store, self.rundir, self.warn = store, rundir, warn
        self.trouble = ""  # why the store does not have everything
        self._client: MlflowClient | None = None
        self._may_exist = rundir.reopened  # an earlier attempt may have created the MLflow run
        self._from_zero = False  # the MLflow run is new: what was delivered went elsewhere
        self._not_before = 0.0
        self._warned = False

    def start(
        self,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent_run_id: str | None = None,
        datasets: Iterable[DatasetInput] = (),
    ) -> bool:
        """Create the MLflow run, or take up again the one that this directory had."""
        if self.rundir.state.tracking_uri not in (None, public(self.store.uri)):
            self._forget()
        self.rundir.update(
            status="RUNNING",
            ended=None,
            error=None,
            name=name,
            tags={"dg.kind": "train", **provenance(), **tags},
            params={key: str(value) for key, value in params.items()},
            datasets=list(datasets),
            parent=parent_run_id,
            experiment=self.store.experiment,
            tracking_uri=public(self.store.uri),
            described=False,
        )
        return self._follow()

    def deliver(self) -> bool:
        """Deliver the metrics recorded since the last time; call it when a checkpoint holds them.

        A store that failed is not asked again before ten times the time that the failure took, so that it
        holds the run up by a tenth at most.
        """
        return time.monotonic() >= self._not_before and self._follow()

    def log_artifacts(self, paths: Iterable[Path | str]) -> bool:
        """Deliver files of the run's directory, and folders of it with all that they hold, under their path there."""
        files = [file for path in paths for file in _files(self.rundir.path / path)]
        waiting = {file.relative_to(self.rundir.path).as_posix(): False for file in files}
        self.rundir.update(artifacts={**self.rundir.state.artifacts, **waiting})
        return self.deliver()

    def finish(self, status: Status, error: str | None = None) -> bool:
        """Write ``metrics.json`` and end the run as FINISHED, FAILED or KILLED."""
        self.rundir.save_final()
        self.rundir.update(status=status, ended=now_ms(), error=error)
        return self._follow()

    def _follow(self) -> bool:
        began = time.monotonic()
        try:
            self._client = client = self._client or _client(self.store.uri)
            run_id = self._described_run(client)
            self._send_metrics(client, run_id)
            self._send_artifacts(client, run_id)
            self._send_status(client, run_id)
        except _store_errors() as error:
            now = time.monotonic()
            self._not_before = now + 10 * (now - began)
            self.trouble = _sentence(error, self.store.uri)
            if not self._warned:
                self.warn(f"{self.trouble}; nothing is lost, `dgharness sync` delivers what it misses")
            self._warned = True
            return False
        finally:
            self.rundir.save()
        self.trouble = ""
        return True

    def _described_run(self, client: MlflowClient) -> str:
        """The id of this run in the store, created, tagged and with its parameters."""
        state = self.rundir.state
        if state.described and state.mlflow_run_id:
            return state.mlflow_run_id
        run = self._known_run(client)
        tags = {
            **state.tags,
            "dg.run_id": state.run_id,
            "dg.run_uid": state.uid,
            "dg.config_hash": state.config_hash,
            **({"mlflow.parentRunId": state.parent} if state.parent else {}),
        }
        if run is None:
            self._forget()
            self._may_exist = True
            run = client.create_run(
                self.store.experiment_id, start_time=state.started, tags=_cut(tags), run_name=state.name
            )
        run_id = run.info.run_id
        self.rundir.set(mlflow_run_id=run_id, stored_status=run.info.status)
        if "dg.error" in run.data.tags:
            client.delete_tag(run_id, "dg.error")
        kept = run.data.params
        params = {_key(key): value[:PARAM_LENGTH] for key, value in state.params.items()}
        if changed := [f"{key}={kept[key]}" for key in params if key in kept and kept[key] != params[key]]:
            self.warn(f"in MLflow this run keeps the parameters it began with: {', '.join(changed)}")
        if shortened := [key for key, value in state.params.items() if len(value) > PARAM_LENGTH]:
            tags["dg.shortened_params"] = ", ".join(shortened)
        _log_pairs(client, run_id, {k: v for k, v in params.items() if k not in kept}, _cut(tags))
        _log_datasets(client, run_id, state.datasets)
        self.rundir.set(described=True)
        return run_id

    def _known_run(self, client: MlflowClient) -> Run | None:
        """The MLflow run of this directory, unless there is none or a person has deleted it."""
        from mlflow.exceptions import MlflowException

        run_id = self.rundir.state.mlflow_run_id
        if run_id is None and self._may_exist:
            wanted = f"tags.dg.run_uid = '{self.rundir.state.uid}'"
            return next(iter(client.search_runs([self.store.experiment_id], wanted)), None)
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _forget(self) -> None:
        self._from_zero = True
        waiting = dict.fromkeys(self.rundir.state.artifacts, False)
        self.rundir.set(mlflow_run_id=None, stored_status=None, described=False, artifacts=waiting)

    def _send_metrics(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Metric

        journal = self.rundir.journal
        if self._from_zero and journal:
            self._from_zero, self.rundir.delivered = False, 0
        while batch := journal[self.rundir.delivered : self.rundir.delivered + BATCH]:
            client.log_batch(run_id, metrics=[Metric(_key(m.key), m.value, m.timestamp, m.step) for m in batch])
            self.rundir.delivered += len(batch)

    def _send_artifacts(self, client: MlflowClient, run_id: str) -> None:
        for name, stored in self.rundir.state.artifacts.items():
            file = self.rundir.path / name
            if not stored and file.exists():  # what was removed since is not wanted
                folder = Path(name).parent.as_posix()
                client.log_artifact(run_id, str(file), None if folder == "." else folder)
            self.rundir.set(artifacts={**self.rundir.state.artifacts, name: True})

    def _send_status(self, client: MlflowClient, run_id: str) -> None:
        state = self.rundir.state
        if state.stored_status == state.status:
            return
        if state.error:
            client.set_tag(run_id, "dg.error", state.error[:TAG_LENGTH])
        if state.status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, state.status, end_time=state.ended)
        self.rundir.set(stored_status=state.status)


def sync(root: Path, uri: str | None = None, warn: Callable[[str], None] = to_stderr) -> list[Synced]:
    """Deliver whatever the stores miss of the runs under ``root``; to ``uri`` if given, else where each began.

    A run that says RUNNING while nobody works on it has died, and becomes KILLED; what its metrics.json does
    not hold is delivered when it is resumed.
    """
    stores: dict[tuple[str, str], Store | str] = {}
    outcomes = []
    for rundir in runs(root):
        try:
            with rundir.lock():
                outcomes.append(_sync(rundir, uri, stores, warn))
        except Busy as busy:
            outcomes.append(Synced(rundir.state.run_id, "in progress", str(busy)))
    return outcomes


def _sync(rundir: RunDir, uri: str | None, stores: dict[Any, Store | str], warn: Callable[[str], None]) -> Synced:
    state = rundir.state
    own, environment = state.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI", "")
    if own is None:
        return Synced(state.run_id, "untracked")
    target = uri or (environment if public(environment) == own else own)  # ``own`` lacks the password
    if state.status == "RUNNING":
        rundir.update(status="KILLED", ended=now_ms(), error="the process ended without a word")
    if rundir.state.settled and public(target) == own:
        return Synced(state.run_id, "up to date")
    where = (target, state.experiment)
    if where not in stores:
        try:
            stores[where] = prepare_store(*where)
        except UsageError as error:
            stores[where] = str(error)
    store = stores[where]
    if isinstance(store, str):
        return Synced(state.run_id, "failed", store)
    rundir.load_final()
    tracker = Tracker(store, rundir, warn=lambda text: None)
    if public(target) != own:
        tracker._forget()
        rundir.set(tracking_uri=public(target), parent=None)  # the sweep's run is in the other store
    rundir.set(described=False)  # look whether the run is still there
    delivered = tracker._follow()
    return Synced(state.run_id, "delivered" if delivered else "failed", tracker.trouble)


def start_group(
    store: Store, kind: Literal["sweep", "report"], name: str, tags: Mapping[str, str], params: Mapping[str, Any]
) -> str:
    """Start the MLflow run of a sweep or a report, and give its id; the sweep of the same ``dg.sweep`` goes on."""
    with _explained(store.uri):
        client = _client(store.uri)
        tags = {**provenance(), **tags, "dg.kind": kind}
        if kind == "sweep" and "dg.sweep" in tags:
            wanted = f"tags.dg.kind = 'sweep' and tags.dg.sweep = '{tags['dg.sweep']}'"
            for run in client.search_runs([store.experiment_id], wanted, max_results=1):
                client.update_run(run.info.run_id, status="RUNNING")
                return run.info.run_id
        run = client.create_run(store.experiment_id, tags=_cut(tags), run_name=name)
        _log_pairs(client, run.info.run_id, {_key(k): str(v)[:PARAM_LENGTH] for k, v in params.items()}, {})
        return run.info.run_id


def finish_group(
    store: Store,
    run_id: str,
    status: Status = "FINISHED",
    artifacts: Sequence[Path | str] = (),
    warn: Callable[[str], None] = to_stderr,
) -> bool:
    """Log files and end the run of a sweep or a report; a store that fails gives a warning."""
    try:
        client = _client(store.uri)
        for path in artifacts:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status)
    except _store_errors() as error:
        warn(_sentence(error, store.uri))
        return False
    return True


def finished_hashes(store: Store) -> dict[str, str]:
    """``dg.config_hash`` -> MLflow id of the finished training runs of the experiment."""
    runs = _search(store, "tags.dg.kind = 'train' and attributes.status = 'FINISHED'")
    return {run.data.tags["dg.config_hash"]: run.info.run_id for run in runs if "dg.config_hash" in run.data.tags}


def load_records(store: Store, filter: str | None = None) -> list[dict[str, Any]]:
    """Every training run of the experiment, once per config: a finished one before any other, then the newest.

    Each is a dict of ``mlflow_run_id, run_id, config_hash, name, status, started, ended, tags, params,
    metrics`` (their last values) and ``evaluations``, which is None where the run has stored none.
    ``filter`` is further MLflow search syntax, joined by *and*.
    """
    runs = _search(store, " and ".join(["tags.dg.kind = 'train'", *([filter] if filter else [])]))
    chosen: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.info.status == "FINISHED", run.info.start_time)):
        chosen[run.data.tags.get("dg.config_hash", run.info.run_id)] = run
    with _explained(store.uri):
        client = _client(store.uri)
        with ThreadPoolExecutor(8) as pool:
            evaluations = list(pool.map(lambda run: _evaluations(client, run), chosen.values()))
    return [
        {
            "mlflow_run_id": run.info.run_id,
            "run_id": run.data.tags.get("dg.run_id"),
            "config_hash": run.data.tags.get("dg.config_hash"),
            "name": run.info.run_name,
            "status": run.info.status,
            "started": run.info.start_time,
            "ended": run.info.end_time,
            "tags": dict(run.data.tags),
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "evaluations": content,
        }
        for run, content in zip(chosen.values(), evaluations, strict=True)
    ]
