"""The MLflow runs of sweeps, reports, diagnoses and evaluations, which have no training of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dgharness.rundir import Status
from dgharness.tracking.store import Store, client, explained, sentence, store_errors
from dgharness.tracking.tracker import cut, log_pairs, provenance, to_stderr

Kind = Literal["sweep", "report", "diagnosis", "evaluation"]


def has_group(store: Store, kind: Kind, identity: str) -> bool:
    """Whether a run of this kind with this identity (its tag ``dg.report``, and so on) has finished."""
    with explained(store.uri):
        same = f"tags.dg.kind = '{kind}' and tags.dg.{kind} = '{identity}' and attributes.status = 'FINISHED'"
        return bool(client(store.uri).search_runs([store.experiment_id], same, max_results=1))


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
        same = f"tags.dg.kind = '{kind}' and tags.dg.{kind} = '{identity}'"
        found = opened.search_runs([store.experiment_id], same, max_results=1) if identity else []
        if found:
            run = found[0]
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
