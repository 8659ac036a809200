"""A finished run rebuilt from its directory, to be looked at: nothing is trained and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgharness.config import DataConfig, ExecutionConfig
from dgharness.data.source import batches
from dgharness.diagnostics.trained import Trained
from dgharness.errors import UsageError
from dgharness.rundir import RunDir
from dgharness.training import checkpoint
from dgharness.training.build import build
from dgharness.training.evaluation import BATCH
from dgharness.training.loop import Run
from dgharness.training.prepare import Prepared, forget_own_files, prepare
from dgharness.training.progress import Progress
from dgharness.training.run import read_config


def inspected(
    run_dir: str | Path, *, checkpoint_name: str = "last", device: str = "auto", data_root: str = ""
) -> Trained:
    """A run's kept checkpoint with its data, for the diagnoses of ``dgharness.diagnostics``.

    ``checkpoint_name`` is ``last`` or a selection rule whose choice was kept; ``data_root`` is where the
    data are now, unless they are where they were. Data that have changed since, a checkpoint that was not
    kept, or a run that is not finished is a UsageError.
    """
    rundir = RunDir.open(Path(run_dir).parent, Path(run_dir).name)
    if rundir.state.status != "FINISHED":
        raise UsageError(
            f"run {rundir.state.run_id} is {rundir.state.status}; dgharness train --resume "
            f"{rundir.state.run_id} ends it, and then it can be looked at"
        )
    then = read_config(rundir).execution.model_dump()
    execution = ExecutionConfig(**{**then, "device": device, "data_root": data_root or then["data_root"]})
    prepared, run = rebuilt(rundir, device, execution=execution)
    predictor = run.learner.predictor(run.source, kept_weights(run, checkpoint_name))
    dataset, where = prepared.dataset, run.evaluator.device
    size = dataset.eval_batch or BATCH[dataset.profile]

    def encode(rows: np.ndarray) -> Tensor:
        bf16 = run.config.train.precision == "bf16"
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            features = [
                predictor.features(x).flatten(1).float().cpu()
                for x in batches(dataset, run.source.reader, rows, size, where)
            ]
        return torch.cat(features)

    return Trained(
        run_id=rundir.state.run_id,
        checkpoint=checkpoint_name,
        dataset=dataset,
        splits=prepared.splits,
        seed=run.config.trial_seed,
        predictor=predictor,
        encode=encode,
        inputs=lambda rows: next(batches(dataset, run.source.reader, rows, len(rows), where)),
    )


def rebuilt(rundir: RunDir, device: str, *also_reads: str, **changes: Any) -> tuple[Prepared, Run]:
    """The parts of a run again as they were before its first update; ``also_reads`` are other datasets.

    ``changes`` are sections of its configuration that are to be others, such as ``tta``. Data that have
    changed since are a UsageError.
    """
    config = read_config(rundir)
    execution = ExecutionConfig(**{**config.execution.model_dump(), "device": device})
    for name in (config.data.name, *also_reads):
        forget_own_files(DataConfig(name=name))
    prepared = prepare(config.model_copy(update={"execution": execution, **changes}))
    then = rundir.state.tags
    if (then["dg.data_digest"], then["dg.split_digest"]) != (prepared.dataset.digest, prepared.splits.digest):
        raise UsageError(
            f"the data of run {rundir.state.run_id} have changed since, and what its network makes of them "
            "would not be its own; bring them back, or train it again"
        )
    run = build(prepared, Progress(say=lambda text: None))
    run.rundir = rundir
    return prepared, run


def kept_weights(run: Run, name: str) -> dict[str, object]:
    """The weights that a run kept under a name, or a UsageError that says which it has."""
    if name not in (kept := names_of_weights(run.rundir)):
        raise UsageError(
            f"run {run.rundir.state.run_id} keeps no checkpoint {name!r}; it has {', '.join(kept)}"
        )
    return checkpoint.load_weights(run, name)


def names_of_weights(rundir: RunDir) -> list[str]:
    """The names that a run kept weights under; a UsageError if there are none."""
    kept = sorted(path.stem.removeprefix("weights-") for path in rundir.path.glob("weights-*.pt"))
    if not kept:
        raise UsageError(
            f"run {rundir.state.run_id} keeps no weights; train it again with --set execution.keep=weights, "
            "or bring its files weights-*.pt back"
        )
    return kept
