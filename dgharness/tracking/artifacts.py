"""Files of tracked runs, fetched when they are asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dgharness.tracking.records import local
from dgharness.tracking.rows import RunRow, rows
from dgharness.tracking.store import Store, client, explained


@dataclass(frozen=True)
class Artifacts:
    """The files of an experiment's training runs; what lies on another machine is downloaded once."""

    store: Store
    _scratch: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def path(self, run_uid: str, name: str) -> Path | None:
        """A file of the run whose tag ``dg.run_uid`` this is; None where the run has none of that name."""
        run = self._runs.get(run_uid)
        if run is None:
            return None
        folder = local(run.artifact_uri)
        if folder is not None:
            return folder / name if (folder / name).is_file() else None
        kept = Path(self._scratch.name) / run.mlflow_run_id / name
        if not kept.exists():
            with explained(self.store.uri):
                opened = client(self.store.uri)
                if not any(file.path == name for file in opened.list_artifacts(run.mlflow_run_id)):
                    return None
                kept.parent.mkdir(exist_ok=True)
                opened.download_artifacts(run.mlflow_run_id, name, str(kept.parent))
        return kept

    @cached_property
    def _runs(self) -> dict[str, RunRow]:
        with explained(self.store.uri):
            return {run.tags["dg.run_uid"]: run for run in rows(self.store) if "dg.run_uid" in run.tags}
