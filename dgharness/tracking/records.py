"""The way back out: tracked runs as plain records, for reports and for the plan of a sweep."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dgharness.rundir import read_evaluations
from dgharness.tracking.store import Store, client, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVALUATIONS = "evaluations.json"
PAGE = 1000
TRAIN = "tags.dg.kind = 'train'"


def finished_hashes(store: Store) -> dict[str, str]:
    """``dg.config_hash`` -> MLflow id, of the finished training runs of the experiment."""
    with explained(store.uri):
        found = search(client(store.uri), store, f"{TRAIN} and attributes.status = 'FINISHED'")
    return {run.data.tags["dg.config_hash"]: run.info.run_id for run in found}


def load_records(store: Store, filter: str | None = None) -> list[dict[str, Any]]:
    """Every training run of the experiment, once per config: a finished one first, then the newest.

    Each is a dict of ``mlflow_run_id, run_id, config_hash, name, status, started, ended, tags, params,
    metrics`` (their last values) and ``evaluations``, which is None for a run that has stored none.
    ``filter`` is further MLflow search syntax, joined by *and*.
    """
    with explained(store.uri):
        opened = client(store.uri)
        found = search(opened, store, f"{TRAIN} and {filter}" if filter else TRAIN)
        found.sort(key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
        chosen = list({run.data.tags["dg.config_hash"]: run for run in found}.values())
        with ThreadPoolExecutor(8) as pool:
            evaluations = list(pool.map(lambda run: _evaluations(opened, run), chosen))
    return [_record(run, content) for run, content in zip(chosen, evaluations, strict=True)]


def search(opened: MlflowClient, store: Store, wanted: str) -> list[Run]:
    """Every run of the experiment that MLflow's search syntax finds and that has a configuration."""
    found: list[Run] = []
    token = None
    while True:
        page = opened.search_runs([store.experiment_id], wanted, max_results=PAGE, page_token=token)
        found += [run for run in page if "dg.config_hash" in run.data.tags]
        token = page.token
        if not token:
            return found


def _evaluations(opened: MlflowClient, run: Run) -> list[dict[str, Any]] | None:
    folder = local(run.info.artifact_uri)
    if folder is not None:
        path = folder / EVALUATIONS
        return read_evaluations(path.read_bytes()) if path.is_file() else None
    if not any(file.path == EVALUATIONS for file in opened.list_artifacts(run.info.run_id)):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return read_evaluations(
            Path(opened.download_artifacts(run.info.run_id, EVALUATIONS, scratch)).read_bytes()
        )


def local(uri: str) -> Path | None:
    """The folder of artifacts that lie on this machine; None for those that have to be downloaded."""
    if Path(uri).is_absolute():
        return Path(uri)
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _record(run: Run, evaluations: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {
        "mlflow_run_id": run.info.run_id,
        "run_id": run.data.tags.get("dg.run_id"),
        "config_hash": run.data.tags["dg.config_hash"],
        "name": run.info.run_name,
        "status": run.info.status,
        "started": run.info.start_time,
        "ended": run.info.end_time,
        "tags": dict(run.data.tags),
        "params": dict(run.data.params),
        "metrics": dict(run.data.metrics),
        "evaluations": evaluations,
    }
