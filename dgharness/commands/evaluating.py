"""``dgharness evaluate``: a finished run measured anew, and nothing trained.

From its stored predictions; or from its kept weights, on another dataset or with another test-time method.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dgharness import registry, tracking
from dgharness.commands.finished import Kept, find_finished, kept_checkpoint
from dgharness.config import DataConfig, TTAConfig, given
from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import checked
from dgharness.predictions import Predictions, read_predictions
from dgharness.report.measured import LOGGED_AS, SUMMARIES, Format, as_csv, as_json, as_text, chosen, measured
from dgharness.rundir import RunDir
from dgharness.training.progress import to_stderr

if TYPE_CHECKING:
    import pandas as pd

    from dgharness.training.loop import Run

SECTIONS = ("data", "tta", "execution")  # what --set may change here
CALIBRATION = ("acc", "nll", "brier", "ece", "ece_binary")  # what a temperature is judged by


@dataclass(frozen=True)
class Asked:
    """What ``evaluate`` is to find out, and of which run."""

    run_id: str
    output: str = "runs"
    checkpoint: str = ""
    splits: Sequence[str] = ("test",)
    metrics: Sequence[str] = ()
    by: Sequence[str] = ()
    bootstrap: int = 0
    min_group_size: int | None = None
    calibrate: bool = False
    dataset: str = ""
    data_root: str = ""
    tta: str = ""
    sets: Sequence[str] = ()
    plugins: Sequence[str] = ()
    format_: str = "text"
    track: bool = True


@dataclass
class Outputs:
    """Predictions by split and kind, and what the dataset's own evaluation says of them."""

    predictions: dict[str, dict[str, Predictions]] = field(default_factory=dict)
    official: dict[str, dict[str, Mapping[str, float]]] = field(default_factory=dict)

    def add(self, split: str, kind: str, found: Predictions, official: Mapping[str, float] = {}) -> None:
        self.predictions.setdefault(split, {})[kind] = found
        self.official.setdefault(split, {})[kind] = official


def run_evaluate(asked: Asked) -> None:
    """Print the metrics of a checkpoint of a finished run, and track them as a run of their own."""
    changes = _changes(asked)
    for plugin in asked.plugins:
        registry.add_plugin(plugin)
    with tempfile.TemporaryDirectory() as scratch:
        rundir = find_finished(asked.run_id, Path(asked.output), Path(scratch))
        kept = kept_checkpoint(rundir, asked.checkpoint)
        to_stderr(f"run {rundir.state.run_id}  {rundir.state.name}  {kept}")
        outputs, temperature = _outputs(asked, changes, rundir, kept)
    table = chosen(
        measured(outputs.predictions, outputs.official, bootstrap=asked.bootstrap),
        asked.metrics or (CALIBRATION if asked.calibrate else ()),
        asked.by,
    )
    facts = {
        "run_id": rundir.state.run_id,
        "checkpoint": kept.step,
        "rules": kept.rules,
        "dataset": asked.dataset or rundir.state.tags["dg.dataset"],
        "tta": asked.tta or ("none" if asked.dataset else rundir.state.tags["dg.tta"]),
        "temperature": temperature,
    }
    content = as_json(table, facts)
    if asked.format_ == "json":
        print(content, end="")
    elif asked.format_ == "csv":
        print(as_csv(table), end="")
    else:
        print(as_text(table, in_short=not asked.metrics), end="")
    if asked.track:
        _track(rundir, facts, asked, table, content)


def _changes(asked: Asked) -> dict[str, Any]:
    """What ``--set`` gives, by section; what does not go together is refused before anything is read."""
    if asked.format_ not in get_args(Format):
        raise UsageError(
            f"there is no format {asked.format_!r}; {did_you_mean(asked.format_, get_args(Format))}"
        )
    if not asked.splits:
        raise UsageError("--split names no split; name one, as in --split test")
    if asked.calibrate and asked.tta:
        raise UsageError(
            f"--calibrate fits a temperature to the run's own predictions; leave out --tta {asked.tta}"
        )
    tree = given(sets=asked.sets)
    for section in tree:
        if section not in SECTIONS:
            raise UsageError(
                f"--set {section} changes how a run was trained, and evaluate trains nothing; it takes "
                "data.KEY of --dataset, tta.KEY of --tta, and execution.device"
            )
    for section, option, name in (("data", "--dataset", asked.dataset), ("tta", "--tta", asked.tta)):
        if section in tree and not name:
            key = next(iter(tree[section]))
            raise UsageError(f"--set {section}.{key} is a setting of {option}; add {option} NAME")
    if asked.data_root and not asked.dataset:
        tree.setdefault("execution", {})["data_root"] = asked.data_root
    return tree


# --- its predictions -------------------------------------------------------------------------------


def _outputs(
    asked: Asked, changes: Mapping[str, Any], rundir: RunDir, kept: Kept
) -> tuple[Outputs, float | None]:
    """Predictions of every split and kind that was asked for, and the temperature if one was fitted."""
    outputs = Outputs()
    if asked.dataset or asked.tta:
        outputs = _from_weights(asked, changes, rundir, kept)
    else:
        for split, found in _own(asked.splits, changes, rundir, kept).items():
            outputs.add(split, "own", found)
    if asked.min_group_size is not None:
        for kinds in outputs.predictions.values():
            for kind, found in kinds.items():
                kinds[kind] = dataclasses.replace(found, min_group_size=asked.min_group_size)
    if not asked.calibrate:
        return outputs, None
    if (tta := rundir.state.tags["dg.tta"]) != "none" and not asked.dataset:
        to_stderr(f"targets were adapted by {tta}, and validation examples only if the algorithm brings it")
    return outputs, _calibrate(outputs, _own(["val"], changes, rundir, kept)["val"])


def _own(
    splits: Sequence[str], changes: Mapping[str, Any], rundir: RunDir, kept: Kept
) -> dict[str, Predictions]:
    """The run's own predictions of some splits: as stored, or computed again where they were left out."""
    file = rundir.path / f"predictions-{kept.step}.parquet"
    stored = read_predictions(file) if file.is_file() else None
    held = set() if stored is None else set(stored.split_N)
    found = {split: stored.of(split) for split in splits if stored is not None and split in held}
    if missing := [split for split in splits if split not in held]:
        from dgharness.training.transfer import as_in_training, reopened

        to_stderr(f"outputs of {' and '.join(missing)} are not stored; computed again from the kept weights")
        run, predictor = reopened(rundir, kept.step, kept.weights, execution=changes.get("execution", {}))
        for split in missing:
            _say_if_sealed(run, split)
            found[split] = as_in_training(run, split, predictor)
    return {split: found[split] for split in splits}


def _from_weights(asked: Asked, changes: Mapping[str, Any], rundir: RunDir, kept: Kept) -> Outputs:
    """What the kept weights make of another dataset, or of the run's own with another test-time method."""
    from dgharness.training.transfer import adapted, other_examples, own_examples, reopened, unadapted

    tta = {"name": asked.tta or "none", **changes.get("tta", {})}
    run, predictor = reopened(
        rundir,
        kept.step,
        kept.weights,
        asked.dataset,
        execution=changes.get("execution", {}),
        tta=checked(TTAConfig, tta, "tta"),
    )
    examples = own_examples(run)
    if asked.dataset:
        data = checked(DataConfig, {"name": asked.dataset, **changes.get("data", {})}, "data")
        examples = other_examples(run, data, asked.data_root)
        to_stderr(f"this scores {asked.dataset} by its labels; nothing may be selected by it")
    outputs = Outputs()
    for split in asked.splits:
        if not asked.dataset:
            _say_if_sealed(run, split)
        plain = unadapted(examples, split, predictor)
        outputs.add(split, "unadapted", plain.predictions, plain.official)
        if tta["name"] != "none":
            whole, query = adapted(run, examples, split, predictor)
            outputs.add(split, "adapted", whole.predictions, whole.official)
            if 0 < len(query.predictions) < len(whole.predictions):
                outputs.add(split, "query", query.predictions, query.official)
    return outputs


def _say_if_sealed(run: Run, split: str) -> None:
    """Every look at the labels of a target is said."""
    from dgharness.training.target import target_splits

    if split in target_splits(run):
        to_stderr(f"this scores the target ({split}) again; nothing may be selected by it")


def _calibrate(outputs: Outputs, val: Predictions) -> float:
    """Add what one temperature, fitted to validation predictions, makes of the others."""
    from dgharness.metrics.temperature import fit_temperature

    if val.task != "classification":
        raise UsageError(f"--calibrate is for classes, and this run's task is {val.task}; leave it out")
    temperature = fit_temperature(val.outputs_NC, val.targets)
    if temperature == 0.0:
        to_stderr("no temperature: every validation example is predicted right, at any confidence the better")
        return temperature
    if math.isinf(temperature):
        to_stderr("no temperature: the outputs tell nothing of the validation labels")
        return temperature
    to_stderr(f"temperature {temperature:.4g}, fitted to {len(val)} validation examples (split val)")
    for split, kinds in outputs.predictions.items():
        (found,) = kinds.values()
        cooled = dataclasses.replace(found, outputs_NC=found.outputs_NC.double() / temperature)
        outputs.add(split, "calibrated", cooled)
    return temperature


# --- the evaluation as a tracked run ---------------------------------------------------------------


def _track(rundir: RunDir, facts: Mapping[str, Any], asked: Asked, table: pd.DataFrame, content: str) -> None:
    """An evaluation is a tracked run of its own; the same one again is the same run."""
    state = rundir.state
    identity = ("dg.algorithm", "dg.protocol", "dg.target", "dg.hparams_seed", "dg.trial_seed")
    tags = {
        **{key: state.tags[key] for key in identity if key in state.tags},
        "dg.dataset": facts["dataset"],
        "dg.tta": facts["tta"],
        "dg.run": state.run_id,
    }
    params = {
        **{key: value for key, value in facts.items() if key != "rules"},
        "bootstrap": asked.bootstrap,
        "min_group_size": asked.min_group_size,
        "set": ", ".join(asked.sets),
    }
    texts = {"evaluation.csv": as_csv(table), "evaluation.json": content}
    logged = {"tags": tags, "params": params, "texts": texts, "metrics": _summary(table)}
    try:
        store = tracking.open_store(tracking.tracking_uri(), state.experiment)
    except UsageError as error:
        to_stderr(f"the evaluation itself is not tracked: {error}")
        return
    tracking.keep_result(store, "evaluation", f"evaluation of {state.name}", content, lambda: logged)


def _summary(table: pd.DataFrame) -> dict[str, float]:
    """What of the table is logged as metrics, by the keys that a run logs: all but single slices."""
    main = "adapted" if "adapted" in set(table["predictions"]) else table["predictions"].iloc[0]
    of_all: Iterable[Any] = table[table["slice"].isin(SUMMARIES) & table["value"].notna()].itertuples()
    return {
        f"{row.split}{'' if row.predictions == main else f'_{row.predictions}'}/"
        f"{LOGGED_AS.get(row.metric, row.metric)}": row.value
        for row in of_all
    }
