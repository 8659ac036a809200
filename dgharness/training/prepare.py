"""Everything that is known about a run before anything of it is written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from dgharness import registry
from dgharness.config import DEFAULT_RULES, DataConfig, RunConfig
from dgharness.data.dataset import Dataset
from dgharness.data.groups import Grouping, grouping, metric_groups
from dgharness.data.protocols import PROTOCOLS, Splits
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.models.model import ModelSpec
from dgharness.names import listed
from dgharness.plugin import AlgorithmSpec
from dgharness.resolution import Options, config_hash, resolve
from dgharness.selection.rule import Rule
from dgharness.training.checks import check_consistency, check_needs, check_stages
from dgharness.training.epochs import in_updates, updates_per_epoch


@dataclass(frozen=True)
class Prepared:
    """A run as it will happen; nothing of it is written yet."""

    config: RunConfig  # resolved
    options: Options
    dataset: Dataset
    splits: Splits
    algorithm: AlgorithmSpec
    model: ModelSpec
    rules: tuple[Rule, ...]
    train_grouping: Grouping
    weights: tuple[str, str | None]
    config_hash: str

    @property
    def experiment(self) -> str:
        return self.config.execution.experiment or f"{self.dataset.name}/{self.config.protocol.name}"

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the algorithm is shown unlabeled examples."""
        return bool(self.algorithm.needs.unlabeled) and "unlabeled" in self.splits.rows

    @property
    def name(self) -> str:
        """As it stands in MLflow: ``irmv1/sketch/h3t1``; with the dataset in experiments of another name."""
        config = self.config
        dataset = f"{self.dataset.name}/" if config.execution.experiment else ""
        targets = listed(self.splits.targets, "+")
        return f"{config.algorithm}/{dataset}{targets}/h{config.hparams_seed}t{config.trial_seed}"


def load_dataset(data: DataConfig, root: str, trial_seed: int) -> Dataset:
    """The dataset of a configuration; what a trial generates is kept for the next run on it.

    A table that was edited is read again. What was done to images is found out after ``forget_own_files``.
    """
    options = json.dumps(data.options, sort_keys=True)
    return _load_dataset(data.name, options, root, trial_seed, _own_file(data.name))


def forget_own_files(data: DataConfig) -> None:
    """Have a dataset that its user named by a path loaded anew, whatever became of the files in there."""
    if _own_file(data.name):
        _load_dataset.cache_clear()


def _own_file(full_name: str) -> tuple[str, int, int] | None:
    """Place, time and size of the file or folder that stands in a dataset's name; None if none does."""
    rest = full_name
    while ":" in rest:  # as in corrupted:csv:PATH, where PATH may have colons of its own
        rest = rest.partition(":")[2]
        path = Path(rest).expanduser()
        try:
            state = path.stat()
        except (OSError, ValueError):  # no path, or none that could be one; loading says what is missing
            continue
        return str(path.resolve()), state.st_mtime_ns, state.st_size
    return None


@lru_cache(maxsize=4)
def _load_dataset(
    full_name: str, options: str, root: str, trial_seed: int, own_file: tuple[str, int, int] | None
) -> Dataset:
    name, argument = registry.split_argument("datasets", full_name)
    spec = registry.load("datasets", name)
    if argument and not spec.argument:
        raise UsageError(f"the dataset {name} takes nothing after its name; write --dataset {name}")
    return spec.load(
        argument or None,
        Path(root).expanduser() if root else None,
        trial_seed,
        checked(spec.options, json.loads(options), "data"),
    )


def prepare(config: RunConfig) -> Prepared:
    """Load the data, split it, resolve every setting and check every need."""
    for plugin in config.plugins:
        registry.add_plugin(plugin)
    config = config.model_copy(update={"algorithm": registry.canonical("algorithms", config.algorithm)})
    algorithm = registry.load("algorithms", config.algorithm)
    tta_name = _tta_name(config, algorithm)
    tta = registry.load("tta", tta_name) if tta_name != "none" else None
    annotator = (
        registry.load("annotators", config.annotator.name) if config.annotator.name != "none" else None
    )
    dataset = load_dataset(config.data, config.execution.data_root, config.trial_seed)
    kind = registry.load("datasets", registry.split_argument("datasets", config.data.name)[0])
    model = algorithm.model or registry.load("models", config.model.name or dataset.defaults.model)
    rules = tuple(registry.load("selection", name) for name in config.selection.rules)
    asked = config.train
    config, options = resolve(
        config.model_copy(update={"tta": config.tta.model_copy(update={"name": tta_name})}),
        dataset,
        algorithm,
        model.options,
        tta.hparams if tta else None,
        annotator.hparams if annotator else None,
        kind.options,
    )
    splits = PROTOCOLS[config.protocol.name](
        dataset, config.protocol.targets, config.trial_seed, config.protocol.holdout
    )
    if dataset.fit is not None:
        rows = np.concatenate(list(splits.rows["train"].values()))
        dataset = dataclasses.replace(dataset, prepare=dataset.fit(rows))
    if any(stage.split == "val" for stage in algorithm.stages(options.hp)):
        splits = halved_validation(splits)
    if seen := set(config.data.train_groups) & set(dataset.hidden):
        raise UsageError(
            f"data.train_groups names {min(seen)!r}, which this configuration of {dataset.name} hides from "
            "training; leave it out or take the dataset's other configuration"
        )
    train_grouping = training_groups(grouping(dataset.manifest, config.data.train_groups), splits)
    metric_groups(dataset.manifest, config.data.groups)
    config = in_updates(config, asked, partial(updates_per_epoch, config, dataset, splits, train_grouping))
    check_consistency(config, dataset)
    check_needs(config.algorithm, algorithm.needs, config, dataset, splits, train_grouping)
    check_stages(config.algorithm, algorithm.stages(options.hp), config.train.steps or 0)
    if tta:
        check_needs(tta_name, tta.needs, config, dataset, splits, train_grouping)
    weights = model.weights(options.model)
    parts = {"algorithm": algorithm, "model": model, "tta": tta, "annotator": annotator}
    return Prepared(
        config=config,
        options=options,
        dataset=dataset,
        splits=splits,
        algorithm=algorithm,
        model=model,
        rules=usable_rules(rules, dataset, splits, config),
        train_grouping=train_grouping,
        weights=weights,
        config_hash=config_hash(
            config,
            {kind: part.version for kind, part in parts.items() if part},
            dataset,
            weights[1],
            code=uninstalled_code(config),
            options=options,
        ),
    )


def usable_rules(
    rules: Sequence[Rule], dataset: Dataset, splits: Splits, config: RunConfig
) -> tuple[Rule, ...]:
    """The rules, all of which must be able to choose here.

    Among the rules of a configuration that names none, an oracle that no examples are held back for is left
    out.
    """
    if "test_holdout" not in splits.rows and config.selection.rules == DEFAULT_RULES:
        rules = [rule for rule in rules if rule.needs != "test_holdout"]
    protocol = config.protocol.name
    lacking: dict[str, tuple[bool, str]] = {  # need -> is it there, and what to say if it is not
        "official metric": (bool(dataset.official_metric), f"{dataset.name} has no official metric"),
        "classes": (dataset.task.name == "classification", f"{dataset.name} has no classes"),
        "id_val": ("id_val" in splits.rows, f"{dataset.name} under {protocol} has no split id_val"),
        "held-out validation domains": (
            splits.validates_on_held_out,
            f"under {protocol} the validation domains of {dataset.name} are trained on",
        ),
        "test_holdout": (
            "test_holdout" in splits.rows,
            f"the protocol {protocol} holds no target examples back for an oracle",
        ),
    }
    for rule in rules:
        there, what = lacking.get(rule.needs, (True, ""))
        if not there:
            raise UsageError(
                f"the rule {rule.name} cannot choose here: {what}; leave it out of selection.rules"
            )
    return tuple(rules)


def uninstalled_code(config: RunConfig) -> list[str]:
    """Hashes of the files behind parts of this run that are not installed: an edit makes another run."""
    named = {
        "algorithms": [config.algorithm],
        "datasets": [registry.split_argument("datasets", config.data.name)[0]],
        "models": [config.model.name],
        "tta": [config.tta.name],
        "annotators": [config.annotator.name],
        "selection": config.selection.rules,
    }
    entries = [registry.add_plugin(plugin) for plugin in config.plugins]
    if config.algorithm.startswith("domainbed:"):
        entries.append(registry.entry("algorithms", config.algorithm))
    return sorted(entry.sha256 for entry in entries if entry.name in named[entry.group])


def halved_validation(splits: Splits) -> Splits:
    """Leave half of every domain's validation rows for selection; ``val_train`` is what a stage trains on."""
    halves = {
        name: (rows[: len(rows) // 2], rows[len(rows) // 2 :]) for name, rows in splits.rows["val"].items()
    }
    return Splits(
        {
            **splits.rows,
            "val": {name: kept for name, (_, kept) in halves.items()},
            "val_train": {name: trained for name, (trained, _) in halves.items()},
        }
    )


def training_groups(everywhere: Grouping, splits: Splits) -> Grouping:
    """The groups that training rows hold, numbered anew; rows of any other group are unknown (-1).

    A group of the target alone must not get a share of what an algorithm gives its groups.
    """
    rows = torch.from_numpy(np.concatenate(list(splits.rows["train"].values())))
    held = [int(group) for group in everywhere.group_M[rows].unique() if group >= 0]
    anew = torch.full((len(everywhere) + 1,), -1)  # the last entry is for -1
    anew[held] = torch.arange(len(held))
    return Grouping(tuple(everywhere.names[group] for group in held), anew[everywhere.group_M])


def _tta_name(config: RunConfig, algorithm: AlgorithmSpec) -> str:
    return algorithm.tta if config.tta.name == "none" and algorithm.tta else config.tta.name
