"""The training runs of an experiment as the store describes them, without their files.

MLflow's ``search_runs`` builds objects of every tag, parameter and last metric: 16 s for 10,000 runs, most
of it for metrics that a report never reads. Nothing in MLflow's interface lists less than that, and nothing
in it tells which runs have changed: a tag that is edited, or a run that is deleted, restored or delivered
late, leaves no date to filter by. So the runs of a local sqlite store are read from its tables, which is fast
enough to be done each time and therefore never out of date. This is the one place that knows MLflow's tables;
where they are not as it knows them, and for any other store, ``search_runs`` answers.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgharness.tracking.store import PATIENCE, Store, client, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000
TRAIN = "tags.dg.kind = 'train'"
PARAMS = ("selection.rules",)  # what reports read of the parameters,
METRICS = "cost/"  # and how the metrics begin that they read

_RUNS = """
    SELECT run_uuid, name, status, start_time, end_time, artifact_uri FROM runs
    WHERE experiment_id = ? AND lifecycle_stage = 'active' AND run_uuid IN (
        SELECT run_uuid FROM tags WHERE key = 'dg.kind' AND value = 'train'
        INTERSECT SELECT run_uuid FROM tags WHERE key = 'dg.config_hash')
    ORDER BY start_time DESC, run_uuid
"""
_TAGS = "SELECT run_uuid, key, value FROM tags"
_PARAMS = f"SELECT run_uuid, key, value FROM params WHERE key IN ({', '.join('?' * len(PARAMS))})"
_METRICS = "SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE key >= ? AND key < ?"


@dataclass(frozen=True)
class RunRow:
    """One training run in the store; of its params and metrics those that reports read."""

    mlflow_run_id: str
    name: str
    status: str
    started: int  # ms since the epoch, as is the end
    ended: int | None
    artifact_uri: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # last values


def rows(store: Store, filter: str | None = None) -> list[RunRow]:
    """Every training run of the experiment that nobody has deleted; ``filter`` is MLflow's search syntax."""
    path = sqlite_path(store.uri)
    found = _of_tables(path, store.experiment_id) if path is not None and filter is None else None
    if found is not None:
        return found
    wanted = f"{TRAIN} and {filter}" if filter else TRAIN
    return [_of_run(run) for run in search(client(store.uri), store, wanted)]


def search(opened: MlflowClient, store: Store, wanted: str) -> list[Run]:
    """All training runs that MLflow's search finds, page by page."""
    found: list[Run] = []
    token = None
    while True:
        page = opened.search_runs([store.experiment_id], wanted, max_results=PAGE, page_token=token)
        found += [run for run in page if "dg.config_hash" in run.data.tags]
        token = page.token
        if not token:
            return found


def _of_run(run: Run) -> RunRow:
    info, data = run.info, run.data
    return RunRow(
        info.run_id,
        info.run_name,
        info.status,
        info.start_time,
        info.end_time,
        info.artifact_uri,
        dict(data.tags),
        {key: value for key, value in data.params.items() if key in PARAMS},
        {key: value for key, value in data.metrics.items() if key.startswith(METRICS)},
    )


def _of_tables(path: Path, experiment_id: str) -> list[RunRow] | None:
    """The runs in one consistent reading of the tables; None where they are not as they are known here."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=PATIENCE, uri=True)
        ) as db:
            db.execute("BEGIN")
            return list(_read(db, experiment_id))
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "no such column" in str(error):
            return None
        raise


def _read(db: sqlite3.Connection, experiment_id: str) -> Iterator[RunRow]:
    found = {row[0]: RunRow(*row) for row in db.execute(_RUNS, (int(experiment_id),))}
    same: dict[str, str] = {}  # thousands of runs share the values of their tags, and their memory
    for run_id, key, value in db.execute(_TAGS):
        if run_id in found:
            found[run_id].tags[key] = same.setdefault(value, value)
    for run_id, key, value in db.execute(_PARAMS, PARAMS):
        if run_id in found:
            found[run_id].params[key] = same.setdefault(value, value)
    after: Any = METRICS[:-1] + chr(ord(METRICS[-1]) + 1)
    for run_id, key, value, is_nan in db.execute(_METRICS, (METRICS, after)):
        if run_id in found:
            found[run_id].metrics[key] = math.nan if is_nan else value
    yield from found.values()
