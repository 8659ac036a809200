"""Files of tracked runs, fetched when they are asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dgharness.tracking.rows import RunRow, rows
from dgharness.tracking.store import Store, client, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        folder = Path(self._scratch.name) / run.mlflow_run_id
        if (folder / name).exists():
            return folder / name
        folder.mkdir(exist_ok=True)
        with explained(self.store.uri):
            return fetched(client(self.store.uri), run, name, folder)

    @cached_property
    def _runs(self) -> dict[str, RunRow]:
        with explained(self.store.uri):
            return {run.tags["dg.run_uid"]: run for run in rows(self.store) if "dg.run_uid" in run.tags}


def fetched(opened: MlflowClient, run: RunRow, name: str, into: Path) -> Path | None:
    """A file of a run: where it lies, if that is on this machine, or downloaded; None if there is none."""
    folder = local(run.artifact_uri)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    if not any(file.path == name for file in opened.list_artifacts(run.mlflow_run_id)):
        return None
    return Path(opened.download_artifacts(run.mlflow_run_id, name, str(into)))


def local(uri: str) -> Path | None:
    """The folder of artifacts that lie on this machine; None for those that have to be downloaded."""
    if Path(uri).is_absolute():
        return Path(uri)
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
