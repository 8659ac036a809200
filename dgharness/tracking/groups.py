"""The MLflow runs of sweeps, reports, diagnoses and evaluations, which have no training of their own."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgharness.errors import UsageError
from dgharness.rundir import Status
from dgharness.tracking.store import Store, client, explained, sentence, store_errors
from dgharness.tracking.tracker import cut, log_pairs, provenance, to_stderr

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Kind = Literal["sweep", "report", "diagnosis", "evaluation"]


def keep_result(
    store: Store,
    kind: Kind,
    name: str,
    content: str,
    logged: Callable[[], Mapping[str, Any]],
    warn: Callable[[str], None] = to_stderr,
) -> None:
    """Keep a report, a diagnosis or an evaluation as a finished run; a store that fails gives a warning.

    The same ``content`` again is the same run, and nothing is written: only a new one calls ``logged``, for
    the further arguments of ``start_group``.
    """
    identity = hashlib.sha256(content.encode()).hexdigest()[:12]
    try:
        with explained(store.uri):
            found = _same(client(store.uri), store, kind, identity)
        if found is not None and found.info.status == "FINISHED":
            return
        given = dict(logged())
        tags = {**given.pop("tags", {}), f"dg.{kind}": identity}
        run_id = start_group(store, kind, name, tags, **given)
    except UsageError as error:
        warn(f"the {kind} itself is not tracked: {error}")
        return
    finish_group(store, run_id, warn=warn)


def start_group(
    store: Store,
    kind: Kind,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    texts: Mapping[str, str] | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Start the MLflow run of a sweep, a report, a diagnosis or an evaluation and give its id.

    ``texts`` and ``files`` are artifacts, name to content. The run whose tag ``dg.sweep`` (``dg.report``,
    and so on) is the same goes on, and has its params and ``metrics`` already.
    """
    with explained(store.uri):
        opened = client(store.uri)
        tags = {**provenance(), **tags, "dg.kind": kind}
        identity = tags.get(f"dg.{kind}")
        run = _same(opened, store, kind, identity) if identity else None
        if run is not None:
            opened.update_run(run.info.run_id, status="RUNNING")
        else:
            run = opened.create_run(store.experiment_id, tags=cut(tags), run_name=name)
            log_pairs(opened, run.info.run_id, params, {})
            for key, value in (metrics or {}).items():
                opened.log_metric(run.info.run_id, key, value)
        for file, text in (texts or {}).items():
            opened.log_text(run.info.run_id, text, file)
        with tempfile.TemporaryDirectory() as scratch:
            for file, content in (files or {}).items():
                path = Path(scratch) / file
                path.write_bytes(content)
                opened.log_artifact(run.info.run_id, str(path))
        return run.info.run_id


def group_texts(store: Store, kind: Literal["sweep", "report"], file: str) -> list[str]:
    """The content of one artifact of every sweep or report of the experiment, oldest first."""
    with explained(store.uri):
        opened = client(store.uri)
        runs = opened.search_runs(
            [store.experiment_id], f"tags.dg.kind = '{kind}'", order_by=["attributes.start_time"]
        )
        return [
            Path(opened.download_artifacts(run.info.run_id, file)).read_text()
            for run in runs
            if any(artifact.path == file for artifact in opened.list_artifacts(run.info.run_id))
        ]


def finish_group(
    store: Store,
    run_id: str,
    status: Status = "FINISHED",
    warn: Callable[[str], None] = to_stderr,
) -> bool:
    """End the run of a sweep or a report; a store that fails gives a warning."""
    try:
        opened = client(store.uri)
        opened.set_terminated(run_id, status)
    except store_errors() as error:
        warn(sentence(error, store.uri))
        return False
    return True


def _same(opened: MlflowClient, store: Store, kind: Kind, identity: str) -> Run | None:
    same = f"tags.dg.kind = '{kind}' and tags.dg.{kind} = '{identity}'"
    found = opened.search_runs([store.experiment_id], same, max_results=1)
    return found[0] if found else None
