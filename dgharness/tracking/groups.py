"""The MLflow runs of a sweep and of a report, which have no training of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dgharness.rundir import Status
from dgharness.tracking.store import Store, client, explained, sentence, store_errors
from dgharness.tracking.tracker import cut, log_pairs, provenance, to_stderr


def start_group(
    store: Store,
    kind: Literal["sweep", "report"],
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
) -> str:
    """Start the MLflow run of a sweep or a report and give its id; the same ``dg.sweep`` goes on."""
    with explained(store.uri):
        opened = client(store.uri)
        tags = {**provenance(), **tags, "dg.kind": kind}
        if kind == "sweep" and "dg.sweep" in tags:
            wanted = f"tags.dg.kind = 'sweep' and tags.dg.sweep = '{tags['dg.sweep']}'"
            for run in opened.search_runs([store.experiment_id], wanted, max_results=1):
                opened.update_run(run.info.run_id, status="RUNNING")
                return run.info.run_id
        run = opened.create_run(store.experiment_id, tags=cut(tags), run_name=name)
        log_pairs(opened, run.info.run_id, params, {})
        return run.info.run_id


def finish_group(
    store: Store,
    run_id: str,
    status: Status = "FINISHED",
    artifacts: Iterable[Path | str] = (),
    warn: Callable[[str], None] = to_stderr,
) -> bool:
    """Log files and end the run of a sweep or a report; a store that fails gives a warning."""
    try:
        opened = client(store.uri)
        for path in artifacts:
            opened.log_artifact(run_id, str(path))
        opened.set_terminated(run_id, status)
    except store_errors() as error:
        warn(sentence(error, store.uri))
        return False
    return True
