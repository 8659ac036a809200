"""A training run of which only the store has a copy, as a directory again."""

from __future__ import annotations

import re
from pathlib import Path

from dgharness.rundir import Metric, RunDir
from dgharness.tracking.rows import TRAIN
from dgharness.tracking.store import client, explained, public, sqlite_path


def fetch_run(uri: str, run_id: str, root: Path) -> RunDir | None:
    """Download a run, by its own id or MLflow's, into a directory of its id; None if the store has none.

    Of several of one id a finished one is taken first, then the newest. What it has of the run are its tags,
    the last value of every metric, and its files: all but what a resume would need.
    """
    path = sqlite_path(uri)
    if not re.fullmatch(r"[\w-]+", run_id) or (path is not None and not path.exists()):
        return None  # such an id would be read as search syntax
    with explained(uri):
        opened = client(uri)
        experiments = [each.experiment_id for each in opened.search_experiments()]
        wanted = (f"tags.dg.run_id = '{run_id}'", f"attributes.run_id = '{run_id}'")
        pages = [opened.search_runs(experiments, f"{TRAIN} and {which}") for which in wanted]
        found = [run for page in pages for run in page if "dg.run_id" in run.data.tags]
        if not found:
            return None
        run = max(found, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
        tags = dict(run.data.tags)
        rundir = RunDir.create(
            root,
            tags["dg.run_id"],
            tags["dg.config_hash"],
            name=run.info.run_name,
            status=run.info.status,
            experiment=opened.get_experiment(run.info.experiment_id).name,
            tags=tags,
            tracking_uri=public(uri),
            mlflow_run_id=run.info.run_id,
        )
        for file in opened.list_artifacts(run.info.run_id):
            if not file.is_dir:
                opened.download_artifacts(run.info.run_id, file.path, str(rundir.path))
    rundir.journal = [Metric(key, value, 0, 0) for key, value in run.data.metrics.items()]
    rundir.save_final()
    return rundir
