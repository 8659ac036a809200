"""The model that a finished run chose, into MLflow's model registry.

Shapes: N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgharness import tracking
from dgharness.data.tasks import Task
from dgharness.errors import UsageError
from dgharness.rundir import RunDir
from dgharness.training.evaluation import all_rows
from dgharness.training.identity import shown_rule
from dgharness.training.inspect import kept_weights, rebuilt

EXAMPLES = 2  # of one alone, the exporter would take the size of the batch for fixed
TAGS = (
    "dg.algorithm",
    "dg.dataset",
    "dg.protocol",
    "dg.target",
    "dg.weights",
    "dg.weights_sha",
    "dg.version",
)


class Deployed(nn.Module):
    """A predictor from the raw batch to probabilities, or to numbers."""

    def __init__(self, predictor: Any, prepare: Callable[[Any], Any], task: Task) -> None:
        super().__init__()
        self.predictor, self.prepare, self.task = predictor, prepare, task.name

    def forward(self, x: Tensor) -> Tensor:
        outputs_NC: Tensor = self.predictor.classify(self.predictor.features(self.prepare(x)))
        if self.task == "classification":
            return outputs_NC.softmax(-1)
        return outputs_NC.sigmoid() if self.task == "multilabel" else outputs_NC


def check_name(name: str) -> None:
    """A UsageError if MLflow would not take this name of a model."""
    if not name.strip() or "/" in name or ":" in name:
        raise UsageError(f"--register {name!r}: the name of a model may not be empty or hold / or :")


def register(run_dir: str | Path, name: str, *, rule: str = "") -> str:
    """Register the checkpoint that ``rule`` (or the run's shown rule) chose; gives the version's number.

    What is registered takes inputs as the dataset's reader gives them, such as uint8 images [N, 3, H, W] of
    the run's size, prepares them as the run did, and gives probabilities [N, C] of classes, or numbers as
    they are. It predicts each example by itself: a test-time method is not part of it. Data that have
    changed since the run are a UsageError.
    """
    check_name(name)
    rundir = RunDir.open(Path(run_dir).parent, Path(run_dir).name)
    state = rundir.state
    if state.status != "FINISHED" or not state.mlflow_run_id:
        untracked = "" if state.mlflow_run_id else " and not in MLflow"
        raise UsageError(
            f"run {state.run_id} is {state.status}{untracked}; only a finished run that is tracked can be "
            "registered"
        )
    prepared, run = rebuilt(rundir, "cpu")
    dataset, rule = prepared.dataset, rule or shown_rule(prepared)
    predictor = run.learner.predictor(run.source, kept_weights(run, rule))
    raw = run.evaluator.reader(torch.from_numpy(all_rows(run.splits.rows["val"])[:EXAMPLES]))
    if not isinstance(raw, Tensor):
        raise UsageError(
            f"{dataset.name} has inputs of several parts, and only models of one tensor can be registered; "
            f"the weights lie in {rundir.path}"
        )
    module = Deployed(predictor, dataset.prepare, dataset.task).eval()
    tags = {key: state.tags[key] for key in TAGS if key in state.tags}
    tags |= {"dg.run_id": state.run_id, "dg.rule": rule}
    if dataset.task.name == "classification":
        tags["dg.classes"] = ", ".join(map(str, dataset.manifest["y"].cat.categories))
    uri = tracking.tracking_uri(run.config.execution.tracking_uri or None)
    return tracking.register_model(uri, state.mlflow_run_id, name, module, raw.numpy(), tags)
