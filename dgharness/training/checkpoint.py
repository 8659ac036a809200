"""Checkpoints: everything that a resume needs, written atomically and loadable without pickled code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgharness.errors import UsageError
from dgharness.files import write_atomic
from dgharness.rundir import Metric
from dgharness.selection.rule import Evaluation

if TYPE_CHECKING:
    from dgharness.training.loop import Run

FILE = "checkpoint.pt"


def save(run: Run) -> None:
    """Write the whole state of the run, its metrics included, over the checkpoint before."""
    state = {
        "learner": run.learner.state_dict(),
        "recent": run.recent,
        "evaluations": [(evaluation.step, dict(evaluation.metrics)) for evaluation in run.evaluations],
        "sealed": run.sealed,
        "best": run.best,
        "seconds": run.seconds,
        "images": run.images,
        "journal": [tuple(metric) for metric in run.rundir.journal],
        "delivered": run.rundir.delivered,
    }
    write_atomic(run.rundir.path / FILE, lambda file: torch.save(state, file))


def load(run: Run) -> bool:
    """Continue from the checkpoint if there is one."""
    path = run.rundir.path / FILE
    if not path.exists():
        return False
    state = read(path)
    run.learner.load_state_dict(state["learner"])
    device = run.learner.device
    run.recent = [
        (t, {name: value.to(device) for name, value in metrics.items()}) for t, metrics in state["recent"]
    ]
    run.evaluations = [Evaluation(step, metrics) for step, metrics in state["evaluations"]]
    run.sealed, run.best = dict(state["sealed"]), dict(state["best"])
    run.seconds, run.images = state["seconds"], state["images"]
    run.rundir.journal = [Metric(*entry) for entry in state["journal"]]
    run.rundir.delivered = state["delivered"]
    return True


def save_weights(run: Run, name: str) -> None:
    """Keep what predicts now under a name: a rule's, or ``last``."""
    state = {"weights": run.learner.weights(), "t": run.learner.t}
    write_atomic(run.rundir.path / f"weights-{name}.pt", lambda file: torch.save(state, file))


def load_weights(run: Run, name: str) -> dict[str, Any]:
    """The weights kept under a name."""
    return read(run.rundir.path / f"weights-{name}.pt")["weights"]


def not_kept(run: Run) -> list[Path]:
    """The files that a finished run need not keep: nothing resumes it, and its results are in others."""
    path, keep = run.rundir.path, run.config.execution.keep
    state = [] if keep == "all" else [path / FILE]
    return state + (sorted(path.glob("weights-*.pt")) if keep == "results" else [])


def read(path: Any) -> dict[str, Any]:
    """Read a file of tensors and plain values; anything else in it is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"the checkpoint {path} cannot be read ({error}); remove that run's folder to start it afresh"
        ) from None
