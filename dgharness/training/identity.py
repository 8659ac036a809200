"""What a run says about itself: tags, dataset inputs, and the documents beside it."""

from __future__ import annotations

import json
import os
import platform
from functools import partial
from importlib.metadata import version

import torch
import yaml

import dgharness
from dgharness import registry
from dgharness.config import compose
from dgharness.data.groups import OVERLAP
from dgharness.files import write_atomic
from dgharness.names import few, listed
from dgharness.preset import preset_tree
from dgharness.resolution import PLACES, flat, resolve, without_later_fields
from dgharness.rundir import DatasetInput, RunDir
from dgharness.selection.rule import HELD_OUT
from dgharness.training.epochs import in_updates, updates_per_epoch
from dgharness.training.leaderboard import leaderboard_tags
from dgharness.training.prepare import Prepared

WILDS_SAMPLERS = ("wilds-group", "wilds-uniform")


def run_tags(prepared: Prepared) -> dict[str, str]:
    """Every identifying fact, on the run itself, so that flat filters work without its parents."""
    config, (weights, sha) = prepared.config, prepared.weights
    sources = {plugin: entry.source for plugin in config.plugins for entry in [registry.add_plugin(plugin)]}
    entry = registry.entry("algorithms", config.algorithm)
    uses = [
        name for name in (config.tta.name, config.averaging.name, config.annotator.name) if name != "none"
    ]
    if prepared.algorithm.sampler or config.train.sampler in WILDS_SAMPLERS:
        uses.append(f"a sampler of its own ({config.train.sampler})")
    if config.optimizer.head_lr_multiplier != 1:
        uses.append(f"a learning rate of the classifier times {config.optimizer.head_lr_multiplier:g}")
    if prepared.uses_unlabeled:
        apart = list(prepared.splits.rows["unlabeled"])
        more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
        uses.append(f"unlabeled examples of {' and '.join(apart[:3])}{more}")
    if "val_train" in prepared.splits.rows:
        uses.append("half of the validation data")
    if hidden := attributes_behind_selection(prepared):
        uses.append(f"attributes hidden from training ({' and '.join(hidden)}) for worst-group in validation")
    tags = {
        "dg.kind": "train",
        "dg.algorithm": config.algorithm,
        "dg.dataset": prepared.dataset.name,
        "dg.toy": str(prepared.dataset.toy).lower(),
        "dg.protocol": config.protocol.name,
        "dg.target": listed(prepared.splits.targets),
        "dg.targets": json.dumps(few(prepared.splits.targets)),
        "dg.weights": weights,
        "dg.weights_sha": sha or "",
        "dg.tuning": "full",
        "dg.model": config.model.name,
        "dg.settings": "; ".join(f"{key} {value}" for key, value in shared_settings(prepared).items()),
        "dg.tta": config.tta.name,
        "dg.averaging": config.averaging.name,
        "dg.preset": config.preset,
        "dg.deviations": "; ".join(deviations(prepared)),
        "dg.hparams_seed": str(config.hparams_seed),
        "dg.trial_seed": str(config.trial_seed),
        "dg.config_hash": prepared.config_hash,
        "dg.data_digest": prepared.dataset.digest,
        "dg.split_digest": prepared.splits.digest,
        "dg.threads": str(torch.get_num_threads()),
        "dg.trust": entry.trust,
        "dg.source": entry.source,
        "dg.uses": ", ".join(uses),
        "dg.plugin": "; ".join(sources.values()),
        "dg.shown": shown_rule(prepared),
        "dg.validation": HELD_OUT if prepared.splits.validates_on_held_out else "",
        "dg.groups": " x ".join(config.data.groups),
        "dg.train_groups": " x ".join(config.data.train_groups),
        **leaderboard_tags(config, prepared.dataset, prepared.splits),
    }
    return {key: value for key, value in tags.items() if value}


def attributes_behind_selection(prepared: Prepared) -> list[str]:
    """Attributes that training does not see and the rule worst-group, where it is kept, chooses by."""
    columns = [level for group in prepared.config.data.groups for level in group.split(OVERLAP)]
    if all(rule.name != "worst-group" for rule in prepared.rules):
        return []
    return [column for column in columns if column in prepared.dataset.hidden]


def shown_rule(prepared: Prepared) -> str:
    """The rule whose choice is printed: the one asked for if it is kept, else the first, else the last."""
    shown, kept = prepared.config.selection.shown, [rule.name for rule in prepared.rules if not rule.pairs]
    return shown if shown in kept else (*kept, "last")[0]


def shared_settings(prepared: Prepared) -> dict[str, str]:
    """The settings that runs must have in common to be compared.

    Left out is what differs by design: targets and seeds, what a random draw decides, what an algorithm's
    own methods are, and how results are chosen and stored.
    """
    named: tuple[str, ...] = ("protocol.targets", "data.name", "model.name", "train.log_every")
    drawn = ("optimizer.lr", "optimizer.weight_decay", "train.batch_size", "model.dropout")
    settings = flat(without_later_fields(prepared.config, prepared.options))
    if prepared.config.train.epochs is not None:  # which say the same, and differ by target
        named += ("train.steps", "train.eval_every")
    if prepared.config.optimizer.decay_epochs is not None:
        named += ("optimizer.decay_every",)
    if settings["train.sampler"] == prepared.algorithm.sampler:
        # The algorithm's own exception, which dg.uses names.
        settings["train.sampler"] = prepared.dataset.defaults.sampler
    elif settings["train.sampler"] in WILDS_SAMPLERS:  # by which WILDS draws for some of its algorithms
        settings["train.sampler"] = "pooled"
    settings["optimizer.head_lr_multiplier"] = "1.0"  # a learning rate, as those that are drawn
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(("data.", "protocol.", "model.", "train.", "optimizer."))
        and key not in (*named, *drawn)
        and key.rpartition(".")[2] not in PLACES
    }


def deviations(prepared: Prepared) -> list[str]:
    """Where the run departs from its preset, setting by setting."""
    config = prepared.config
    if not config.preset:
        return []
    as_published = compose(
        preset=config.preset,
        flags={
            "algorithm": config.algorithm,
            "hparams_seed": config.hparams_seed,
            "trial_seed": config.trial_seed,
            "data": {"name": config.data.name},
            "protocol": {"targets": list(config.protocol.targets), "cut": None, "horizon": None},
            "plugins": list(config.plugins),
        },
    )
    model = prepared.model
    if not prepared.algorithm.model and as_published.model.name:
        model = registry.load("models", as_published.model.name)
    published, _ = resolve(as_published, prepared.dataset, prepared.algorithm, model.options)
    # A batch of another size is a deviation, and that an epoch of such batches is longer is none.
    per_epoch = partial(updates_per_epoch, config, prepared.dataset, prepared.splits, prepared.train_grouping)
    published = in_updates(published, as_published.train, per_epoch)
    theirs, ours = flat(published), flat(config)
    written_for = preset_tree(config.preset).get("data", {}).get("name", config.data.name)
    elsewhere = written_for != config.data.name
    return [f"data.name {config.data.name} (preset: {written_for})"] * elsewhere + [
        f"{key} {ours.get(key, 'unset')} (preset: {theirs.get(key, 'unset')})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not key.startswith(("selection.", "tta.", "averaging."))
    ]


def dataset_inputs(prepared: Prepared) -> list[DatasetInput]:
    """One MLflow input per split, with the digest of its index lists: "same split?" becomes searchable."""
    splits = prepared.splits
    return [
        DatasetInput(prepared.dataset.name, digest, split, sum(map(len, splits.rows[split].values())))
        for split, digest in splits.digests.items()
    ]


def write_documents(prepared: Prepared, rundir: RunDir) -> None:
    """The resolved configuration, the split digests and the environment, beside the run."""
    config = yaml.safe_dump(prepared.config.model_dump(mode="json"), sort_keys=False)
    write_atomic(rundir.path / "config.yaml", config.encode())
    splits = {
        "digest": prepared.splits.digest,
        "splits": {
            split: {domain: len(rows) for domain, rows in by_domain.items()}
            for split, by_domain in prepared.splits.rows.items()
        },
        "digests": dict(prepared.splits.digests),
    }
    write_atomic(rundir.path / "splits.json", json.dumps(splits, indent=1).encode())
    write_atomic(rundir.path / "environment.txt", environment().encode())


def environment() -> str:
    """Versions and the machine, one per line."""
    packages = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "mlflow", "pydantic")
    return "\n".join(
        [
            f"dgharness {dgharness.__version__}",
            f"python {platform.python_version()}",
            f"platform {platform.platform()}",
            f"cpus {os.cpu_count()}, torch threads {torch.get_num_threads()}",
            f"cuda {torch.version.cuda if torch.cuda.is_available() else 'none'}",
            *(f"{package} {version(package)}" for package in packages),
            "",
        ]
    )
