"""One run from its configuration to its result: prepare (nothing is written), build, fit, score, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dgharness import tracking
from dgharness.config import ExecutionConfig, RunConfig
from dgharness.errors import DivergenceError, Interrupted, UsageError
from dgharness.hparams import checked
from dgharness.resolution import flat
from dgharness.rundir import RunDir, new_run_id
from dgharness.selection.rule import Evaluation
from dgharness.training import checkpoint
from dgharness.training.build import build
from dgharness.training.identity import dataset_inputs, deviations, run_tags, write_documents
from dgharness.training.loop import Run, fit
from dgharness.training.prepare import Prepared, forget_own_files, prepare
from dgharness.training.progress import Progress, header_lines, result_lines
from dgharness.training.target import score_kept


@dataclass(frozen=True)
class Result:
    """A finished run: where it lies, and the checkpoint that each rule chose in it."""

    run_id: str
    status: str
    path: Path
    chosen: dict[str, Evaluation]
    cost: dict[str, float]
    delivered: bool


def train(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    store: tracking.Store | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    header: Callable[[Prepared, tracking.Store], None] | None = None,
) -> Result:
    """Train one configuration: a new run, tracked, with its own directory."""
    if parent is None:  # the runs of a sweep share what was loaded
        forget_own_files(config.data)
    prepared = prepare(config)
    store = store or tracking.prepare_store(
        tracking.tracking_uri(config.execution.tracking_uri or None), prepared.experiment
    )
    run = build(prepared, progress or Progress())
    root = Path(config.execution.output)
    run.rundir = RunDir.create(
        root,
        new_run_id(root, prepared.config_hash),
        config_hash=prepared.config_hash,
        experiment=prepared.experiment,
        parent=parent,
    )
    write_documents(prepared, run.rundir)
    if header:
        header(prepared, store)
    return execute(prepared, run, store, tags, parent)


def resume(
    run_id: str,
    root: str | Path = "runs",
    *,
    progress: Progress | None = None,
    store: tracking.Store | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    execution: Mapping[str, Any] | None = None,
    header: Callable[[Prepared, tracking.Store], None] | None = None,
) -> Result:
    """Continue a run from its last checkpoint; the result is that of an uninterrupted run, bit for bit."""
    rundir = RunDir.open(Path(root), run_id)
    if rundir.state.status == "FINISHED":
        raise UsageError(f"run {run_id} is finished; there is nothing to resume")
    config = read_config(rundir)
    if execution:
        config = config.model_copy(update={"execution": ExecutionConfig(**execution)})
    if parent is None:
        forget_own_files(config.data)
    prepared = prepare(config)
    if prepared.config_hash != rundir.state.config_hash:
        raise UsageError(
            f"run {run_id} cannot be resumed: its data, or the version of its algorithm, has changed since; "
            "start it again with dgharness train"
        )
    store = store or tracking.prepare_store(
        tracking.tracking_uri(config.execution.tracking_uri or None), rundir.state.experiment
    )
    if header:
        header(prepared, store)
    run = build(prepared, progress or Progress())
    run.rundir = rundir
    checkpoint.load(run)
    return execute(prepared, run, store, tags, parent)


def execute(
    prepared: Prepared,
    run: Run,
    store: tracking.Store,
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> Result:
    """Fit, score the target, deliver; whatever happens, the run ends as FINISHED, FAILED or KILLED."""
    rundir, run_id = run.rundir, run.rundir.state.run_id
    with rundir.lock(), run.stop:
        run.tracker = tracking.Tracker(store, rundir, warn=run.progress.say)
        rundir.set(
            name=prepared.name,
            tags={**rundir.state.tags, **run_tags(prepared), **(tags or {})},
            params=flat(prepared.config),
            parent=parent or rundir.state.parent,
        )
        run.tracker.start(dataset_inputs(prepared))
        run.progress.start(run)
        try:
            fit(run)
            chosen = score_kept(run)
            cost = log_cost(run)
            told = [*header_lines(prepared, deviations(prepared)), *result_lines(run_id, chosen, prepared)]
            rundir.set(note="\n".join(["```", *told, "```"]))  # as it stands in the terminal
            rundir.write_evaluations([{"step": e.step, "metrics": dict(e.metrics)} for e in run.evaluations])
            delivered = run.tracker.finish("FINISHED", drop=checkpoint.not_kept(run))
        except Interrupted:
            run.tracker.finish("KILLED")
            raise
        except KeyboardInterrupt:
            run.tracker.finish("KILLED", error="interrupted twice")
            raise
        except (DivergenceError, UsageError) as error:
            run.tracker.finish("FAILED", error=str(error))
            raise
        except Exception as error:
            run.tracker.finish("FAILED", error=f"{type(error).__name__}: {error}")
            raise
    return Result(run_id, "FINISHED", rundir.path, chosen, cost, delivered)


def log_cost(run: Run) -> dict[str, float]:
    """What the run cost: seconds, images, trained parameters, peak memory, scored target checkpoints."""
    import resource

    device = run.evaluator.device
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    trained = sum(p.numel() for p in run.learner.algorithm.parameters() if p.requires_grad)
    cost = {
        "seconds": run.lap(),
        "images": run.images,
        "trained_parameters": trained,
        "peak_memory_gb": peak / 1e9,
        "test_queries": len(run.sealed),
    }
    for name, value in cost.items():
        run.rundir.record(f"cost/{name}", value, 0)
    return cost


def read_config(rundir: RunDir) -> RunConfig:
    """The resolved configuration of a run."""
    return checked(RunConfig, yaml.safe_load((rundir.path / "config.yaml").read_text()), where="")
