"""A trained run predicts once more: on data that it was not trained for, or with another test-time method.

Nothing is trained and nothing of the run is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgharness.config import DataConfig, ExecutionConfig
from dgharness.data.dataset import Dataset
from dgharness.data.groups import metric_groups
from dgharness.data.protocols import OFFICIAL
from dgharness.data.suites.corrupted import CorruptedOptions, with_corrupted_tests
from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import checked
from dgharness.metrics.scores import Scores
from dgharness.names import slugs
from dgharness.plugin import Predictor
from dgharness.predictions import Predictions
from dgharness.rundir import RunDir
from dgharness.training.adaptation import best
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.inspect import kept_weights, names_of_weights, rebuilt
from dgharness.training.loop import Run
from dgharness.training.prepare import load_dataset
from dgharness.training.run import read_config
from dgharness.training.target import adaptation_of, target_splits


@dataclass(frozen=True)
class Examples:
    """What a run can be scored on: rows by split and domain, and what scores them."""

    evaluator: Evaluator
    rows: Mapping[str, Mapping[str, np.ndarray]]  # split -> domain -> rows of the manifest


@dataclass(frozen=True)
class Predicted:
    """What a checkpoint makes of some rows, and what the dataset's own evaluation says of that."""

    predictions: Predictions
    official: Mapping[str, float]


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
    _, run = rebuilt(RunDir.open(Path(run_dir).parent, Path(run_dir).name), device, dataset)
    examples = other_examples(run, DataConfig(name=dataset, **(options or {})), root)
    rows = all_rows(rows_of(examples, "test"))
    predictor = run.learner.predictor(run.source, kept_weights(run, checkpoint_name))
    scores = examples.evaluator.scores(examples.evaluator.outputs(predictor, rows), rows)
    found = scores.flat("test")
    if isinstance(scores, Scores):
        slug_of = slugs(scores.domains.names)
        for name, acc, _, count in scores.domains.present().rows():
            found[f"test/acc/{slug_of[name]}"] = acc
            found[f"test/count/{slug_of[name]}"] = float(count)
    return found


def reopened(
    rundir: RunDir, step: int, weights: str, *also_reads: str, execution: Mapping[str, Any], **changes: Any
) -> tuple[Run, Predictor]:
    """A finished run with what its kept weights of a step predict; ``execution`` may be in other settings.

    Weights that are not there are a UsageError, and so are data that have changed since.
    """
    run_id = rundir.state.run_id
    if not weights:
        raise UsageError(
            f"the weights of checkpoint {step} of run {run_id} are gone; choose another with --checkpoint: "
            f"{', '.join(names_of_weights(rundir))}"
        )
    own = {**read_config(rundir).execution.model_dump(), "device": "auto", **execution}
    changes["execution"] = checked(ExecutionConfig, own, "execution")
    _, run = rebuilt(rundir, own["device"], *also_reads, **changes)
    return run, run.learner.predictor(run.source, kept_weights(run, weights))


def own_examples(run: Run) -> Examples:
    """The run's own rows of every split that has labels."""
    return Examples(
        run.evaluator, {split: rows for split, rows in run.splits.rows.items() if split != "unlabeled"}
    )


def other_examples(run: Run, data: DataConfig, root: str | Path = "") -> Examples:
    """The rows of another dataset, by the split that its manifest has; prepared as the run's own were."""
    own, config = run.evaluator.dataset, run.config
    if data.name == f"corrupted:{config.data.name}":
        suite = with_corrupted_tests(_split_as_trained(run), checked(CorruptedOptions, data.options, "data"))
    else:
        suite = load_dataset(data, str(root) or config.execution.data_root, config.trial_seed)
    _refuse_another_task(own, suite)
    if "split" not in suite.manifest:
        raise UsageError(
            f"{suite.name} has no test rows of its own (a manifest column named split); take a dataset "
            "that has, or have this one corrupted"
        )
    suite = dataclasses.replace(suite, prepare=own.prepare)
    where = run.evaluator.device
    evaluator = Evaluator(
        suite,
        suite.reader.to(where),
        metric_groups(suite.manifest, data.groups or suite.groups),
        where,
        config.selection.min_group_size,
        config.train.precision,
    )
    split_M, domain_M = suite.manifest["split"].astype(object), suite.domain_M.numpy()
    rows = {}
    for split in split_M.dropna().unique():
        of_split = np.flatnonzero(split_M == split)
        numbers = np.unique(domain_M[of_split])
        rows[split] = {suite.domains[n]: of_split[domain_M[of_split] == n] for n in numbers}
    return Examples(evaluator, rows)


def rows_of(examples: Examples, split: str) -> Mapping[str, np.ndarray]:
    """Rows of a split by domain; a split that there is not is a UsageError."""
    if split not in examples.rows:
        name = examples.evaluator.dataset.name
        raise UsageError(
            f"{name} has no rows of the split {split!r} to score; {did_you_mean(split, examples.rows)}"
        )
    return examples.rows[split]


def unadapted(examples: Examples, split: str, predictor: Predictor) -> Predicted:
    """What a predictor makes of each example of a split by itself."""
    rows = all_rows(rows_of(examples, split))
    return _predicted(examples, split, rows, examples.evaluator.outputs(predictor, rows))


def adapted(run: Run, examples: Examples, split: str, predictor: Predictor) -> tuple[Predicted, Predicted]:
    """What the run's test-time method makes of a split: of all its examples, and of the query examples.

    The latter are those that the method did not adapt on before it predicted any. Each domain is a stream of
    its own. Where hyperparameters are to be chosen, the run's own validation rows choose them.
    """
    adaptation = adaptation_of(run)
    assert adaptation is not None
    draws = adaptation.tried(predictor, run.splits.rows["val"])
    hp = (best(draws) if draws else adaptation.draw()).hp
    by_domain = rows_of(examples, split)
    found = dataclasses.replace(adaptation, evaluator=examples.evaluator).outputs(predictor, by_domain, hp)
    rows, query_N = all_rows(by_domain), found.query_N
    return (
        _predicted(examples, split, rows, found.outputs_NC),
        _predicted(examples, split, rows[query_N.numpy()], found.outputs_NC[query_N]),
    )


def as_in_training(run: Run, split: str, predictor: Predictor) -> Predictions:
    """What the run stored of a split, or would have stored if there had been room."""
    examples = own_examples(run)
    adapts = run.adapts_by_nature or split in target_splits(run)
    if adapts and adaptation_of(run) is not None:
        return adapted(run, examples, split, predictor)[0].predictions
    return unadapted(examples, split, predictor).predictions


def _predicted(examples: Examples, split: str, rows: np.ndarray, outputs: torch.Tensor) -> Predicted:
    evaluator = examples.evaluator
    official = evaluator.dataset.official(outputs, rows) if evaluator.dataset.official else {}
    return Predicted(evaluator.predictions({split: rows}, {split: outputs}), official)


def _split_as_trained(run: Run) -> Dataset:
    """The run's dataset, of which only the targets have a split: whatever it was trained on is left out."""
    dataset = run.evaluator.dataset
    split_M = np.full(len(dataset.manifest), None, dtype=object)
    split_M[all_rows(run.splits.rows["test"])] = "test"
    manifest = dataset.manifest.assign(split=pd.Categorical(split_M, OFFICIAL))
    return dataclasses.replace(dataset, manifest=manifest)


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
