"""Delivering later what a store did not take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgharness.errors import UsageError
from dgharness.rundir import Busy, RunDir, now_ms, runs
from dgharness.tracking.store import Store, prepare_store, public
from dgharness.tracking.tracker import Tracker


@dataclass(frozen=True)
class Synced:
    """What ``sync`` did with a run that its store did not know all of."""

    run_id: str
    outcome: Literal["delivered", "in progress", "failed"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.run_id} {self.outcome}" + (f": {self.detail}" if self.detail else "")


def sync(root: Path, uri: str | None = None) -> list[Synced]:
    """Deliver whatever the stores miss of the runs under ``root``: to ``uri``, or else where each began.

    A run that says RUNNING while nobody works on it has died, and becomes KILLED; metrics that only its
    checkpoint holds are delivered when it is resumed. Runs whose store knows everything are not listed.
    """
    prepared: dict[tuple[str, str], Store | UsageError] = {}
    outcomes = []
    for rundir in runs(root):
        target = uri or _home(rundir)
        if not target or (rundir.state.settled and public(target) == rundir.state.tracking_uri):
            continue
        try:
            with rundir.lock():
                outcomes.append(_deliver(rundir, target, prepared))
        except Busy as busy:
            outcomes.append(Synced(rundir.state.run_id, "in progress", str(busy)))
    return outcomes


def deliver_into(store: Store, rundir: RunDir) -> bool:
    """Give a finished run to a store or an experiment that does not have it yet; whether it has it now."""
    with rundir.lock():
        rundir.load_final()
        tracker = Tracker(store, rundir, warn=lambda text: None)
        state = rundir.state
        if (state.experiment, state.tracking_uri) != (store.experiment, public(store.uri)):
            tracker.restart(store.uri)
        rundir.set(experiment=store.experiment, described=False)
        return tracker.follow()


def _deliver(rundir: RunDir, target: str, prepared: dict[tuple[str, str], Store | UsageError]) -> Synced:
    state = rundir.state
    if state.status == "RUNNING":
        rundir.update(status="KILLED", ended=now_ms(), error="the process ended without a word")
    where = (target, state.experiment)
    if where not in prepared:
        try:
            prepared[where] = prepare_store(*where)
        except UsageError as error:
            prepared[where] = error  # not asked again for every run
    store = prepared[where]
    if isinstance(store, UsageError):
        return Synced(state.run_id, "failed", str(store))
    rundir.load_final()
    tracker = Tracker(store, rundir, warn=lambda text: None)
    if public(target) != state.tracking_uri:
        tracker.restart(target)
    rundir.set(described=False)  # look whether the MLflow run is still there
    return Synced(state.run_id, "delivered" if tracker.follow() else "failed", tracker.trouble)


def _home(rundir: RunDir) -> str | None:
    """The store in which the run began; its password, never written, is that of MLFLOW_TRACKING_URI."""
    own, environment = rundir.state.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI", "")
    return environment if own and public(environment) == own else own
