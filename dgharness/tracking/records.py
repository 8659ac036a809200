"""The way back out: tracked runs as plain records, for reports and for the plan of a sweep."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgharness.rundir import read_evaluations
from dgharness.tracking.artifacts import fetched, local
from dgharness.tracking.cache import add_to_cache, cache_file, read_cache
from dgharness.tracking.rows import RunRow, rows
from dgharness.tracking.store import Store, client, explained
from dgharness.tracking.tracker import to_stderr

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVALUATIONS = "evaluations.json"


def finished_hashes(store: Store) -> dict[str, str]:
    """``dg.config_hash`` -> MLflow id, of the finished training runs of the experiment."""
    with explained(store.uri):
        return {
            run.tags["dg.config_hash"]: run.mlflow_run_id for run in rows(store) if run.status == "FINISHED"
        }


def load_records(
    store: Store, filter: str | None = None, warn: Callable[[str], None] = to_stderr
) -> list[dict[str, Any]]:
    """Every training run of the experiment, once per config: a finished one first, then the newest.

    Each is a dict of ``mlflow_run_id, run_id, config_hash, name, status, started, ended, tags, params,
    metrics`` (of the last two what reports read, metrics by their last values), ``evaluations``, which is
    None for a run that has stored none, and ``failed``: (start, end) of every attempt at this configuration
    that failed or was killed, the run itself among them; the end is None where nobody saw it. ``filter`` is
    further MLflow search syntax, joined by *and*.
    """
    with explained(store.uri):
        found = rows(store, filter)
        found.sort(key=lambda run: (run.status == "FINISHED", run.started))
        chosen = list({run.tags["dg.config_hash"]: run for run in found}.values())
        evaluations = _evaluations(store, chosen, warn)
    failed: dict[str, list[tuple[int, int | None]]] = {}
    for run in found:
        if run.status in ("FAILED", "KILLED"):
            failed.setdefault(run.tags["dg.config_hash"], []).append((run.started, run.ended))
    return [
        {
            **_record(run, evaluations[run.mlflow_run_id]),
            "failed": failed.get(run.tags["dg.config_hash"], []),
        }
        for run in chosen
    ]


def _evaluations(
    store: Store, runs: Sequence[RunRow], warn: Callable[[str], None]
) -> dict[str, list[dict[str, Any]] | None]:
    """MLflow run id -> its evaluations: from the cache, or from its artifacts and then cached."""
    file = cache_file(store)
    try:
        cached = read_cache(file)
    except (OSError, sqlite3.Error) as error:
        cached = {}
        warn(_uncached(file, error))
    stamps = {run.mlflow_run_id: _stamp(run) for run in runs}
    kept = {
        run_id: cached[run_id][1]
        for run_id, stamp in stamps.items()
        if stamp and run_id in cached and cached[run_id][0] == stamp
    }
    opened = client(store.uri)
    others = [run for run in runs if run.mlflow_run_id not in kept]
    with ThreadPoolExecutor(8) as pool:
        read = dict(
            zip(
                [run.mlflow_run_id for run in others],
                pool.map(lambda run: _of_artifact(opened, run), others),
                strict=True,
            )
        )
    fresh = [(key, stamps[key], found) for key, found in read.items() if stamps[key] and found is not None]
    if fresh:
        try:
            add_to_cache(file, fresh)
        except (OSError, sqlite3.Error) as error:
            warn(_uncached(file, error))
    return {**kept, **read}


def _stamp(run: RunRow) -> str:
    """What changes whenever the evaluations of a run may have changed; empty where nothing tells.

    The time and size of a file at hand; else the end of a finished run, which a resume moves. A run's files
    are in the store before its status is.
    """
    folder = local(run.artifact_uri)
    if folder is not None:
        try:
            found = (folder / EVALUATIONS).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        return f"file {found.st_mtime_ns} {found.st_size}"
    return f"ended {run.ended}" if run.status == "FINISHED" else ""


def _uncached(file: Path, error: Exception) -> str:
    return (
        f"{file} cannot be used ({error}), so that reports on many runs stay slow; mend its permissions, or "
        "set DGHARNESS_CACHE to another folder"
    )


def _of_artifact(opened: MlflowClient, run: RunRow) -> list[dict[str, Any]] | None:
    with tempfile.TemporaryDirectory() as scratch:
        path = fetched(opened, run, EVALUATIONS, Path(scratch))
        return None if path is None else read_evaluations(path.read_bytes())


def _record(run: RunRow, evaluations: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {
        "mlflow_run_id": run.mlflow_run_id,
        "run_id": run.tags.get("dg.run_id"),
        "config_hash": run.tags["dg.config_hash"],
        "name": run.name,
        "status": run.status,
        "started": run.started,
        "ended": run.ended,
        "tags": run.tags,
        "params": run.params,
        "metrics": run.metrics,
        "evaluations": evaluations,
    }
