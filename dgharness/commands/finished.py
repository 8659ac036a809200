"""A finished run to be looked at again, and its checkpoints that were kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgharness import registry, tracking
from dgharness.config import SHOWN
from dgharness.errors import UsageError, did_you_mean
from dgharness.rundir import RunDir
from dgharness.training.progress import to_stderr


@dataclass(frozen=True)
class Kept:
    """A checkpoint of a finished run that was kept."""

    step: int
    rules: tuple[str, ...]  # that chose it
    weights: str = ""  # the name that its weights are kept under; empty if they are not

    def __str__(self) -> str:
        return f"checkpoint {self.step}, chosen by {', '.join(self.rules)}"


def find_finished(run_id: str, root: Path, scratch: Path) -> RunDir:
    """A finished run by its directory under the root, or by what the store has of it, put into ``scratch``.

    One that is unknown or has not finished is a UsageError.
    """
    try:
        rundir = RunDir.open(root, run_id)
    except UsageError as missing:
        if (root / run_id / "run.json").is_file():
            raise
        uri = tracking.tracking_uri()
        fetched = tracking.fetch_run(uri, run_id, scratch)
        if fetched is None:
            hint = "; evaluate takes one run, and dgharness diagnose an experiment" if "/" in run_id else ""
            raise UsageError(
                f"{missing}; nor is it in the MLflow store {tracking.public(uri)}{hint}"
            ) from None
        to_stderr(f"run {fetched.state.run_id} is not in {root}; taken from {tracking.public(uri)}")
        rundir = fetched
    state = rundir.state
    if state.status != "FINISHED":
        raise UsageError(
            f"run {state.run_id} is {state.status} and has no result to measure; dgharness train --resume "
            f"{state.run_id} ends it"
        )
    return rundir


def kept_checkpoint(rundir: RunDir, wanted: str) -> Kept:
    """A kept checkpoint by the rule that chose it, by its step, or the one that the run shows."""
    rundir.load_final()
    step_of = {
        metric.key.split("/")[1]: int(metric.value)
        for metric in rundir.journal
        if metric.key.startswith("chosen/") and metric.key.endswith("/step")
    }
    if not (evaluations := rundir.evaluations()):
        raise UsageError(
            f"the store has not got all of run {rundir.state.run_id}; run dgharness sync where it was trained"
        )
    step_of.setdefault("last", evaluations[-1]["step"])
    name = registry.canonical("selection", wanted or rundir.state.tags.get("dg.shown", SHOWN))
    steps = {str(step): step for step in step_of.values()}
    if name not in step_of and name not in steps:
        raise UsageError(
            f"run {rundir.state.run_id} has kept no checkpoint {name!r}; "
            f"{did_you_mean(name, [*step_of, *steps])}"
        )
    step = step_of.get(name, steps.get(name))
    assert step is not None
    rules = sorted((rule for rule in step_of if step_of[rule] == step), key=lambda rule: rule != name)
    weights = [rule for rule in rules if (rundir.path / f"weights-{rule}.pt").is_file()]
    return Kept(step, tuple(rules), weights[0] if weights else "")
