"""Scoring a trained run on data that it was not trained for: corruptions, new test sets, other pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgharness.config import DataConfig, ExecutionConfig
from dgharness.data.dataset import Dataset
from dgharness.data.groups import metric_groups
from dgharness.data.protocols import OFFICIAL
from dgharness.data.suites.corrupted import CorruptedOptions, with_corrupted_tests
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.metrics.scores import Scores
from dgharness.names import slugs
from dgharness.rundir import RunDir
from dgharness.training import checkpoint
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.loop import Run
from dgharness.training.prepare import Prepared, forget_own_files, load_dataset, prepare
from dgharness.training.progress import Progress
from dgharness.training.run import build, pick_device, read_config


def score_on(
    run_dir: str | Path,
    dataset: str,
    *,
    options: Mapping[str, Any] | None = None,
    root: str | Path = "",
    checkpoint_name: str = "last",
    device: str = "auto",
) -> dict[str, float]:
    """Score a run's kept checkpoint on the test rows of another dataset; gives metrics by key.

    ``test/acc/<domain>`` stands for every domain, however many there are, beside all that a run logs of its
    own target; of corrupted images ``test/official/mean_corruption_error`` is the mean. ``options`` are the
    dataset's own, ``root`` its data root (else the run's), ``checkpoint_name`` is ``last`` or a selection
    rule whose choice was kept. The images are prepared as the run's own were. No test-time method adapts.

    ``corrupted:`` before the name of the run's own dataset corrupts the run's own targets, under whatever
    protocol it was trained. Nothing is written, and a dataset of other inputs or classes is a UsageError.
    """
    rundir = RunDir.open(Path(run_dir).parent, Path(run_dir).name)
    config = read_config(rundir)
    place = str(root) or config.execution.data_root
    execution = ExecutionConfig(**{**config.execution.model_dump(), "device": device})
    for name in (config.data.name, dataset):
        forget_own_files(DataConfig(name=name))
    prepared = prepare(config.model_copy(update={"execution": execution}))
    if dataset == f"corrupted:{config.data.name}":
        chosen = checked(CorruptedOptions, options or {}, "data")
        suite = with_corrupted_tests(_split_as_trained(prepared), chosen)
    else:
        suite = load_dataset(DataConfig(name=dataset, **(options or {})), place, config.trial_seed)
    _refuse_another_task(prepared.dataset, suite)
    suite = dataclasses.replace(suite, prepare=prepared.dataset.prepare)
    rows = _test_rows(suite)
    run = build(prepared, Progress(say=lambda text: None))
    run.rundir = rundir
    predictor = run.learner.predictor(run.source, _kept_weights(run, checkpoint_name))
    where = pick_device(device)
    evaluator = Evaluator(
        suite,
        suite.reader.to(where),
        metric_groups(suite.manifest, suite.groups),
        where,
        config.selection.min_group_size,
        config.train.precision,
    )
    scores = evaluator.scores(evaluator.outputs(predictor, rows), rows)
    found = scores.flat("test")
    if isinstance(scores, Scores):
        slug_of = slugs(scores.domains.names)
        for name, acc, _, count in scores.domains.present().rows():
            found[f"test/acc/{slug_of[name]}"] = acc
            found[f"test/count/{slug_of[name]}"] = float(count)
    return found


def _split_as_trained(prepared: Prepared) -> Dataset:
    """The run's dataset, of which only the targets have a split: whatever it was trained on is left out."""
    split_M = np.full(len(prepared.dataset.manifest), None, dtype=object)
    split_M[all_rows(prepared.splits.rows["test"])] = "test"
    manifest = prepared.dataset.manifest.assign(split=pd.Categorical(split_M, OFFICIAL))
    return dataclasses.replace(prepared.dataset, manifest=manifest)


def _test_rows(dataset: Dataset) -> np.ndarray:
    if "split" not in dataset.manifest:
        raise UsageError(
            f"{dataset.name} has no test rows of its own (a manifest column named split); take a dataset "
            "that has, or have this one corrupted"
        )
    rows = np.flatnonzero(dataset.manifest["split"] == "test")
    if not len(rows):
        raise UsageError(
            f"the column split of {dataset.name} has no row of test, and there is nothing to score"
        )
    return rows


def _kept_weights(run: Run, name: str) -> Mapping[str, Any]:
    kept = sorted(path.stem.removeprefix("weights-") for path in run.rundir.path.glob("weights-*.pt"))
    if name not in kept:
        raise UsageError(
            f"run {run.rundir.state.run_id} keeps no checkpoint {name!r}; it has {', '.join(kept) or 'none'}"
        )
    return checkpoint.load_weights(run, name)


def _refuse_another_task(trained: Dataset, suite: Dataset) -> None:
    if tuple(suite.input_shape) != tuple(trained.input_shape):
        raise UsageError(
            f"{suite.name} has examples of shape {list(suite.input_shape)}, and the run was trained on "
            f"{list(trained.input_shape)} of {trained.name}; bring them to one size, as in data.size"
        )
    same = suite.task.name == trained.task.name and suite.task.outputs == trained.task.outputs
    if not same:
        raise UsageError(
            f"{suite.name} is {suite.task.name} of {suite.task.outputs} outputs, and the run was trained for "
            f"{trained.task.name} of {trained.task.outputs}"
        )
    if trained.task.name != "classification":
        return
    classes = [list(dataset.manifest["y"].cat.categories) for dataset in (trained, suite)]
    differing = [
        (number, *pair) for number, pair in enumerate(zip(*classes, strict=False)) if pair[0] != pair[1]
    ]
    if differing:
        number, learned, other = differing[0]
        raise UsageError(
            f"output {number} is the class {learned!r} for the run and {other!r} for {suite.name}; they must "
            "have the same classes in the same order"
        )
