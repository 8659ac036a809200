"""From a configuration to a run: fill in what was left open, and name what decides the result.

A resolved configuration says all there is to say about a run; its hash is the run's identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from dgharness.config import PROFILE, Part, ProtocolConfig, RunConfig
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import default_targets
from dgharness.errors import UsageError
from dgharness.hparams import Choice, Hparams, LogUniform, PowerOfTwo, checked, draw, settled, spaces
from dgharness.plugin import AlgorithmSpec
from dgharness.preset import preset_tree


class SmallProfile(Hparams):
    """Defaults and search spaces of small images and tables (DomainBed's for the MNISTs)."""

    lr: Annotated[float, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    weight_decay: float = 0.0
    batch_size: Annotated[int | Literal["all"], PowerOfTwo(3, 9)] = 64


class LargeProfile(Hparams):
    """Defaults and search spaces of photographs (DomainBed's)."""

    lr: Annotated[float, LogUniform(1e-5, 10**-3.5)] = 5e-5
    weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0
    batch_size: Annotated[int | Literal["all"], PowerOfTwo(3, 5)] = 32
    dropout: Annotated[float, Choice((0.0, 0.1, 0.5))] = 0.0


@dataclass(frozen=True)
class Options:
    """The typed options of the parts, as validated by their own classes."""

    hp: Any
    model: Any
    tta: Any = None
    annotator: Any = None
    data: Any = None


def resolve(
    config: RunConfig,
    dataset: Dataset,
    algorithm: AlgorithmSpec,
    model_options: type[Hparams],
    tta_hparams: type[Hparams] | None = None,
    annotator_hparams: type[Hparams] | None = None,
    data_options: type[Hparams] | None = None,
) -> tuple[RunConfig, Options]:
    """Fill in everything left open: by the dataset's defaults, and by the draw of ``hparams_seed``."""
    seeds = config.hparams_seed, config.trial_seed
    profile: type[Hparams] = SmallProfile if dataset.profile == "small" else LargeProfile
    given = {key: getattr(getattr(config, section), key) for section, key in PROFILE}
    given["batch_size"] = given["batch_size"] or dataset.defaults.batch_size
    if config.hparams_seed and config.preset and None in given.values():
        published = preset_tree(config.preset)
        for section, key in PROFILE:
            if given[key] is None and key not in spaces(profile):
                given[key] = published.get(section, {}).get(key)
    drawn: Any = draw(profile, *seeds, {key: value for key, value in given.items() if value is not None})
    model_values = {} if algorithm.model else config.model.options
    if "dropout" in model_options.model_fields and hasattr(drawn, "dropout"):
        model_values.setdefault("dropout", drawn.dropout)
    options = Options(
        hp=draw(algorithm.hparams, *seeds, config.hp),
        model=checked(model_options, model_values, "model"),
        tta=checked(tta_hparams, config.tta.options, "tta") if tta_hparams else None,
        annotator=checked(annotator_hparams, config.annotator.options, "annotator")
        if annotator_hparams
        else None,
        data=checked(data_options, config.data.options, "data") if data_options else None,
    )
    defaults, train = dataset.defaults, config.train
    model = "own" if algorithm.model else config.model.name or defaults.model
    resolved = config.model_copy(
        update={
            "hp": options.hp.model_dump(mode="json"),
            "data": config.data.model_copy(
                update={
                    "groups": config.data.groups or dataset.groups,
                    "train_groups": config.data.train_groups or dataset.train_groups,
                }
            ),
            "protocol": _protocol(config.protocol, dataset),
            "model": Part(name=model, **options.model.model_dump(mode="json")),
            "optimizer": config.optimizer.model_copy(
                update={"lr": drawn.lr, "weight_decay": drawn.weight_decay}
            ),
            "train": train.model_copy(
                update={
                    "steps": defaults.steps if train.steps is None else train.steps,
                    "rows": train.rows or defaults.rows,
                    "batch_size": drawn.batch_size,
                    "sampler": train.sampler or algorithm.sampler or defaults.sampler,
                    "eval_every": train.eval_every or defaults.eval_every,
                }
            ),
        }
    )
    return resolved, options


def _protocol(given: ProtocolConfig, dataset: Dataset) -> ProtocolConfig:
    """Name and targets as they are run; what ``cut`` and ``horizon`` ask for stands in the targets."""
    name = given.name or dataset.defaults.protocol
    for field in ("cut", "horizon"):
        if (value := getattr(given, field)) is None:
            continue
        if name != "temporal":
            raise UsageError(
                f"protocol.{field}={value} means nothing to the protocol {name}; leave it out, or use "
                "--set protocol.name=temporal"
            )
        if given.targets:
            raise UsageError(
                f"protocol.{field}={value} and the targets {', '.join(given.targets)} both say what the "
                "future is; leave one of them out"
            )
    targets = given.targets or default_targets(name, dataset, given.cut, given.horizon)
    return given.model_copy(
        update={"name": name, "targets": _in_order(targets, dataset), "cut": None, "horizon": None}
    )


def _in_order(targets: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """Targets as the dataset orders its domains; the protocol says which are unknown."""
    place = {domain: number for number, domain in enumerate(dataset.domains)}
    return tuple(sorted(targets, key=lambda target: place.get(target, len(place))))


# Where it runs, where files lie and what is printed; the digests of data and weights say what was in them.
PLACES = ("execution", "preset", "plugins", "shown", "weights_file", "cache", "cache_dir", "download")


def config_hash(
    config: RunConfig,
    versions: Mapping[str, int],
    dataset: Dataset,
    weights_sha: str | None = None,
    code: Sequence[str] = (),
    options: Options | None = None,
) -> str:
    """SHA-256 of what decides the result: settings, versions of the parts, data and weights.

    Two runs of the same hash, on the same kind of machine with as many threads, give the same result.
    ``options`` are the typed settings of the parts, which know what was added later.
    """
    named = config.model_copy(update={"data": config.data.model_copy(update={"name": dataset.name})})
    if options is not None:
        named = without_later_fields(named, options)
    identity = {
        "config": _identity(named, leave_out=PLACES),
        "versions": dict(versions),
        "data": dataset.digest,
        "weights": weights_sha,
        **({"code": list(code)} if code else {}),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=dict).encode()).hexdigest()


def without_later_fields(config: RunConfig, options: Options) -> RunConfig:
    """The configuration without the hyperparameters and model settings that are at their neutral value.

    Of the dataset's own options only those are kept that are not at their default: they are written as they
    were given, and one that says nothing new makes no other run.
    """
    model = Part(name=config.model.name, **settled(config.model.options, type(options.model)))
    kept = options.data.model_dump(exclude_defaults=True) if options.data is not None else config.data.options
    data = {key: value for key, value in config.data if key not in config.data.options or key in kept}
    return config.model_copy(
        update={
            "hp": settled(config.hp, type(options.hp)),
            "model": model,
            "data": type(config.data)(**data),
        }
    )


def _identity(model: BaseModel, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    extra = model.model_extra or {}
    kept: dict[str, Any] = {name: value for name, value in extra.items() if name not in leave_out}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if name in leave_out or not settled({name: value}, type(model)):
            continue
        kept[name] = _identity(value, leave_out) if isinstance(value, BaseModel) else value
    return kept


def flat(config: RunConfig) -> dict[str, str]:
    """Settings as ``section.key`` -> text, for MLflow's parameters.

    >>> flat(RunConfig())["protocol.holdout"]
    '0.2'
    """
    pairs: dict[str, str] = {}

    def walk(prefix: str, tree: Mapping[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                walk(f"{prefix}{key}.", value)
            else:
                pairs[prefix + key] = (
                    ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
                )

    walk("", config.model_dump(mode="json", exclude={"execution"}))
    return pairs
