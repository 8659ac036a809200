"""A run's way into the store: the run's directory is the truth, and the store follows it.

Every step of following may be repeated: MLflow ignores a metric with the key, value, time and step of one
that it has, and a run is found again by its tag ``dg.run_uid``. So what a store that was away did not take
is delivered later, by the run itself or by ``sync``, and counts once.
"""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dgharness
from dgharness.metrics.measure import measure_of
from dgharness.names import slug
from dgharness.rundir import DatasetInput, RunDir, Status, now_ms
from dgharness.tracking.store import NOTE, Store, client, public, sentence, store_errors
from dgharness.tracking.views import offer_views

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH, PAIRS = 1000, 100  # metrics, and params or tags, per request: MLflow's limits
PARAM_LENGTH, TAG_LENGTH = 6000, 8000
DOCUMENTS = ("config.yaml", "splits.json", "environment.txt")  # delivered at the start
OWN_FILES = ("run.json", "metrics.json", "checkpoint.pt")  # never delivered


def to_stderr(text: str) -> None:
    """The default place of warnings."""
    print(text, file=sys.stderr, flush=True)


class Tracker:
    """Brings the store up to what a run's directory says; ``warn`` gets one sentence if the store fails.

    Every method returns whether the store now has everything. Nothing is lost where it has not. ``share``
    is the part of the run's time that deliveries may take while it goes on.
    """

    def __init__(
        self,
        store: Store,
        rundir: RunDir,
        warn: Callable[[str], None] = to_stderr,
        share: float = 0.01,
    ) -> None:
        self.store, self.rundir, self.warn, self.share = store, rundir, warn, share
        self.trouble = ""  # why the store does not have everything
        self._client: MlflowClient | None = None
        self._may_exist = rundir.reopened  # an earlier attempt may have created the MLflow run
        self._from_zero = False  # what was delivered went to another MLflow run
        self._not_before = 0.0

    def start(self, datasets: Iterable[DatasetInput] = ()) -> bool:
        """Create the MLflow run as the directory describes it, or take up again the one that it had."""
        state = self.rundir.state
        if state.tracking_uri not in (None, public(self.store.uri)):
            self._forget()
        waiting = {name: False for name in DOCUMENTS if (self.rundir.path / name).exists()}
        self.rundir.update(
            status="RUNNING",
            ended=None,
            error=None,
            tags={"dg.kind": "train", **provenance(), **state.tags},
            datasets=list(datasets),
            experiment=self.store.experiment,
            tracking_uri=public(self.store.uri),
            described=False,
            artifacts={**waiting, **self.rundir.state.artifacts},
        )
        return self.follow()

    def deliver(self) -> bool:
        """Deliver the metrics recorded since the last time; call it when a checkpoint holds them.

        It may come too early: deliveries take ``share`` of the run's time, and a tenth of it if the store
        fails.
        """
        return time.monotonic() >= self._not_before and self.follow()

    def log_artifacts(self, paths: Iterable[Path | str]) -> bool:
        """Deliver files of the run's directory, or folders of it with all that they hold."""
        self._await(file for path in paths for file in _files(self.rundir.path / path))
        return self.deliver()

    def finish(self, status: Status, error: str | None = None, drop: Collection[Path] = ()) -> bool:
        """Write ``metrics.json`` and end the run; a FINISHED one delivers its files, its checkpoint apart.

        The files ``drop`` are removed in between, as soon as nothing can resume the run any more.
        """
        self.rundir.save_final()
        self.rundir.set(status=status, ended=now_ms(), error=error)
        if status == "FINISHED":
            delivered = self.rundir.state.artifacts
            self._await(
                file
                for file in _files(self.rundir.path)
                if file.name not in OWN_FILES and file not in drop and not delivered.get(file.name)
            )
        self.rundir.save()
        for file in drop:
            file.unlink(missing_ok=True)
        return self.follow()

    def follow(self) -> bool:
        """Do whatever the store lacks; the one place where its failures end."""
        began = time.monotonic()
        try:
            self._client = opened = self._client or client(self.store.uri)
            run_id = self._described(opened)
            self._send_metrics(opened, run_id)
            self._send_artifacts(opened, run_id)
            self._send_status(opened, run_id)
        except store_errors() as error:
            now = time.monotonic()
            self._not_before = now + 10 * (now - began)
            first, self.trouble = not self.trouble, sentence(error, self.store.uri)
            if first:
                self.warn(f"{self.trouble}. The run goes on; `dgharness sync` delivers what the store misses")
            return False
        else:
            now = time.monotonic()
            self._not_before = now + (now - began) / self.share
            self.trouble = ""
            return True
        finally:
            self.rundir.save()

    def restart(self, uri: str) -> None:
        """Follow in a store that has nothing of this run; the sweep above it is not there either."""
        self._forget()
        self.rundir.set(tracking_uri=public(uri), parent=None)

    def _forget(self) -> None:
        self._from_zero = True
        waiting = dict.fromkeys(self.rundir.state.artifacts, False)
        self.rundir.set(mlflow_run_id=None, stored_status=None, described=False, artifacts=waiting)

    def _await(self, files: Iterable[Path]) -> None:
        waiting = {file.relative_to(self.rundir.path).as_posix(): False for file in files}
        self.rundir.set(artifacts={**self.rundir.state.artifacts, **waiting})

    def _described(self, opened: MlflowClient) -> str:
        """The id of this run in the store, with its tags, params and datasets."""
        state = self.rundir.state
        if state.described and state.mlflow_run_id:
            return state.mlflow_run_id
        tags = {
            **state.tags,
            "dg.run_id": state.run_id,
            "dg.run_uid": state.uid,
            "dg.config_hash": state.config_hash,
            **({"mlflow.parentRunId": state.parent} if state.parent else {}),
        }
        if shortened := [key for key, value in state.params.items() if len(value) > PARAM_LENGTH]:
            tags["dg.shortened_params"] = ", ".join(shortened)
        run = self._found(opened)
        if run is None:
            self._forget()
            self._may_exist = True
            run = opened.create_run(
                self.store.experiment_id, state.started, cut(tags), run_name=state.name or state.run_id
            )
        elif "dg.error" in run.data.tags:
            opened.delete_tag(run.info.run_id, "dg.error")
        run_id, kept = run.info.run_id, run.data
        self.rundir.set(mlflow_run_id=run_id, stored_status=run.info.status)
        params = {key: value for key, value in state.params.items() if _key(key) not in kept.params}
        log_pairs(opened, run_id, params, {key: value for key, value in tags.items() if key not in kept.tags})
        _log_datasets(opened, run_id, state.datasets)
        self.rundir.set(described=True)
        return run_id

    def _found(self, opened: MlflowClient) -> Run | None:
        """The MLflow run of this directory, unless there is none or a person has deleted it."""
        from mlflow.exceptions import MlflowException

        run_id = self.rundir.state.mlflow_run_id
        if run_id is None:
            wanted = f"tags.dg.run_uid = '{self.rundir.state.uid}'"
            found = opened.search_runs([self.store.experiment_id], wanted) if self._may_exist else []
            return found[0] if found else None
        try:
            run = opened.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _send_metrics(self, opened: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Metric

        journal = self.rundir.journal
        if self._from_zero and journal:
            self._from_zero, self.rundir.delivered = False, 0
        while batch := journal[self.rundir.delivered : self.rundir.delivered + BATCH]:
            opened.log_batch(run_id, [Metric(_key(m.key), m.value, m.timestamp, m.step) for m in batch])
            self.rundir.delivered += len(batch)

    def _send_artifacts(self, opened: MlflowClient, run_id: str) -> None:
        for name in [name for name, stored in self.rundir.state.artifacts.items() if not stored]:
            file, folder = self.rundir.path / name, Path(name).parent.as_posix()
            if file.exists():  # what was removed since is not wanted
                opened.log_artifact(run_id, str(file), None if folder == "." else folder)
            self.rundir.set(artifacts={**self.rundir.state.artifacts, name: True})

    def _send_status(self, opened: MlflowClient, run_id: str) -> None:
        state = self.rundir.state
        if state.stored_status == state.status:
            return
        if state.error:
            opened.set_tag(run_id, "dg.error", state.error[:TAG_LENGTH])
        if state.note:
            opened.set_tag(run_id, NOTE, state.note[:TAG_LENGTH])
        if state.status == "RUNNING":
            opened.update_run(run_id, status="RUNNING")
        else:
            opened.set_terminated(run_id, state.status, end_time=state.ended)
        if state.status == "FINISHED" and (rule := state.tags.get("dg.shown")):
            measure = measure_of(metric.key for metric in self.rundir.journal)
            offer_views(opened, self.store.experiment_id, rule, measure)
        self.rundir.set(stored_status=state.status)


@cache
def provenance() -> dict[str, str]:
    """Tags that say who ran what: user, version, the commit of the working directory or the package."""
    tags = {
        "mlflow.source.name": "dgharness",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "dg.version": dgharness.__version__,
    }
    commit = _commit(Path.cwd()) or _commit(Path(__file__).parent)
    return {**tags, "dg.commit": commit} if commit else tags


def _commit(folder: Path) -> str:
    """The commit checked out there, marked ``-dirty`` if files differ from it; empty outside of git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        return "unknown"


def _files(path: Path) -> list[Path]:
    """A file, or every file below a folder but for hidden ones."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("[!.]*") if file.is_file())


def _key(name: str) -> str:
    return "/".join(slug(part) for part in name.split("/"))


def cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value)[:TAG_LENGTH] for key, value in tags.items()}


def log_pairs(opened: MlflowClient, run_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    pairs: list[Any] = [Param(_key(key), str(value)[:PARAM_LENGTH]) for key, value in params.items()]
    pairs += [RunTag(key, value) for key, value in cut(tags).items()]
    for first in range(0, len(pairs), PAIRS):
        part = pairs[first : first + PAIRS]
        opened.log_batch(
            run_id,
            params=[pair for pair in part if isinstance(pair, Param)],
            tags=[pair for pair in part if isinstance(pair, RunTag)],
        )


def _log_datasets(opened: MlflowClient, run_id: str, datasets: Iterable[DatasetInput]) -> None:
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as MlflowInput

    inputs = [
        MlflowInput(
            Dataset(
                each.name, each.digest, "dgharness", each.name, profile=json.dumps({"num_rows": each.rows})
            ),
            [InputTag("mlflow.data.context", each.context)],
        )
        for each in datasets
    ]
    if inputs:
        opened.log_inputs(run_id, inputs)
