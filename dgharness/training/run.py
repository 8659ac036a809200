"""One run from its configuration to its result: prepare (nothing is written), build, fit, score, finish."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dgharness import registry, tracking
from dgharness.config import ExecutionConfig, RunConfig
from dgharness.data.groups import metric_groups
from dgharness.data.protocols import Splits
from dgharness.data.sampling import Sampler, make_sampler
from dgharness.data.source import TrainingSource
from dgharness.errors import DivergenceError, Interrupted, UsageError
from dgharness.hparams import checked
from dgharness.models.model import build_model
from dgharness.plugin import Dims
from dgharness.resolution import flat
from dgharness.rundir import RunDir, new_run_id
from dgharness.seeds import seed_hash, seeded
from dgharness.selection.rule import Evaluation
from dgharness.training import checkpoint
from dgharness.training.checks import check_model, check_source
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.identity import dataset_inputs, deviations, run_tags, write_documents
from dgharness.training.learner import Learner
from dgharness.training.loop import Run, fit
from dgharness.training.prepare import Prepared, forget_own_files, prepare
from dgharness.training.progress import Progress, header_lines, result_lines
from dgharness.training.signals import StopFlag
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


def build(prepared: Prepared, progress: Progress) -> Run:
    """The parts of a run, on their device, not yet attached to a directory."""
    config, dataset, splits = prepared.config, prepared.dataset, prepared.splits
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device = pick_device(config.execution.device)

    def network(copy: int) -> tuple[torch.nn.Module, int]:
        model, features = build_model(
            prepared.model,
            dataset.input_shape,
            dataset.task.outputs,
            prepared.options.model,
            config.trial_seed,
            copy,
        )
        return model.to(device), features

    model, features = network(0)
    check_model(config.algorithm, prepared.algorithm.needs, model)
    if config.tta.name != "none":
        check_model(config.tta.name, registry.load("tta", config.tta.name).needs, model)
    # Methods see as validation data what they may train on; selection has the other half to itself.
    seen = Splits({**splits.rows, "val": splits.rows.get("val_train", splits.rows["val"])})
    source = TrainingSource(
        dataset, seen, prepared.train_grouping.group_M, device, domain_names=splits.train_domains
    )
    group_names = prepared.train_grouping.names
    if config.annotator.name != "none":
        copies = count(-1, -1)  # apart from the networks of the algorithm, which count upwards
        seed = seed_hash(config.trial_seed, "annotator")
        with seeded(seed, "annotator"):
            found = dict(
                registry.load("annotators", config.annotator.name).annotate(
                    source, lambda: network(next(copies))[0], prepared.options.annotator, seed
                )
            )
        if "domain" in found and config.data.train_groups == ("domain",):
            found.setdefault("group", found["domain"])
        source = source.annotated(found)
        if "group" in found:
            group_names = tuple(map(str, range(source.num_groups)))
        check_source(config.algorithm, prepared.algorithm.needs, source)
    learner = Learner(
        prepared.algorithm,
        model,
        Dims(
            dataset.task.outputs,
            features,
            source.num_domains,
            source.num_groups,
            len(dataset.manifest),
            tuple(dataset.input_shape),
        ),
        prepared.options.hp,
        config.optimizer,
        config.trial_seed,
        steps=config.train.steps or 0,
        loss=dataset.task.loss,
        averaging=config.averaging,
        precision=config.train.precision,
        new_model=lambda number: network(number)[0],
        views=dataset.views,
        source=source,
        batch_size=config.train.batch_size,
    )
    if config.tta.name != "none":  # whether the method can use this predictor is known only here
        registry.load("tta", config.tta.name).factory(
            copy.deepcopy(learner.predictor(source)), prepared.options.tta, source, config.trial_seed
        )
    samplers: dict[tuple[str, str], Sampler] = {
        (name, stage.split): make_sampler(
            name,
            source.rows_by_domain(stage.split),
            source.targets_M,
            source.group_M,
            config.train.batch_size or 1,
            config.trial_seed,
            config.train.rows,
        )
        for stage in learner.stages
        for name in [stage.sampler or config.train.sampler]
    }
    if prepared.uses_unlabeled:
        samplers["pooled", "unlabeled"] = unlabeled_sampler(prepared, source)
    groups = metric_groups(dataset.manifest, config.data.groups)
    evaluator = Evaluator(
        dataset,
        source.reader,
        groups,
        device,
        config.selection.min_group_size,
        config.train.precision,
        groups.counts(torch.from_numpy(all_rows(splits.rows["train"]))),
    )
    unattached: Any = None
    return Run(
        config=config,
        learner=learner,
        source=source,
        splits=splits,
        samplers=samplers,
        evaluator=evaluator,
        row_names={
            "domains": source.domain_names,
            "groups": tuple(group_names[g] for g in source.columns["group"].unique().tolist() if g >= 0),
        },
        rules=prepared.rules,
        rundir=unattached,
        tracker=unattached,
        stop=StopFlag(),
        progress=progress,
    )


def unlabeled_sampler(prepared: Prepared, source: TrainingSource) -> Sampler:
    """One row of unlabeled examples, as many at a time as there are labeled ones, in shuffled epochs."""
    config, apart = prepared.config, prepared.splits.rows["unlabeled"]
    rows = [np.concatenate(list(apart.values()))]
    size = config.train.batch_size or 1
    total = size if size == "all" else size * (config.train.rows or source.num_domains)
    seed = seed_hash(config.trial_seed, "unlabeled")
    return make_sampler("pooled", rows, source.targets_M, source.group_M, total, seed)


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
            dropped = checkpoint.not_kept(run)
            delivered = run.tracker.finish("FINISHED", without=dropped)
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
        for file in dropped:  # only now is there nothing left to resume
            file.unlink(missing_ok=True)
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


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device {name!r} is not available ({str(error).splitlines()[0]}); "
            "use --set execution.device=cpu or auto"
        ) from None
    return device
