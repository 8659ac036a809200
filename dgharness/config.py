"""The configuration of a run: frozen, and layered (defaults < preset < file < --set < flags).

Every part names an entry of a registry and carries that entry's own options beside the name:
``model: {name: resnet50, weights: scratch}``. What is left open is filled in by ``resolution.resolve``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict

from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import Hparams, checked, spaces
from dgharness.registry import load
from dgharness.training.averaging import AveragingConfig
from dgharness.training.optimizers import OptimizerConfig

DEFAULT_RULES = ("last", "training-domain-validation", "test-domain-validation", "worst-group")


class Part(Hparams):
    """A registry entry by name; every further key is one of that entry's own options."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str = ""
    """Registered name; empty takes the dataset's default."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataConfig(Part):
    """The dataset. Further keys are its own options."""

    name: str = "colored-digits"
    groups: tuple[str, ...] = ()
    """Columns whose product is the subpopulations in the metrics; empty takes the dataset's."""
    train_groups: tuple[str, ...] = ("domain",)
    """Columns whose product is the groups that algorithms see (group-dro)."""


class ProtocolConfig(Hparams):
    """How the domains are split."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    name: Literal["leave-one-domain-out"] = "leave-one-domain-out"
    targets: tuple[str, ...] = ()
    """Domains held out; empty takes the dataset's last."""
    holdout: float = 0.2
    """Part of every domain kept from training: validation, and for a target the oracle's."""


class TrainConfig(Hparams):
    """The loop."""

    steps: int | None = None
    """Updates in all."""
    batch_size: int | Literal["all"] | None = None
    """Examples per row of a batch: per domain with the by-domain sampler."""
    sampler: str = ""
    """by-domain, by-group, pooled, balanced or full; empty takes the protocol's, by-domain."""
    eval_every: int | None = None
    """Updates between evaluations; each is a checkpoint that a rule may choose."""
    log_every: int = 100
    """Updates between training metrics; divergence is noticed there."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the networks under autocast."""


class TTAConfig(Part):
    """Test-time adaptation and its protocol."""

    name: str = "none"
    mode: Literal["online", "offline"] = "online"
    """online predicts each batch as it comes; offline sees the whole domain once before predicting."""
    batch_size: int = 64
    """Target examples per call."""
    order: Literal["shuffled", "manifest"] = "shuffled"
    """Order of the target stream; shuffled by the trial's own stream."""


class AnnotatorConfig(Part):
    """What finds domains or groups before training."""

    name: str = "none"


class SelectionConfig(Hparams):
    """Which checkpoints are kept and scored on the target."""

    rules: tuple[str, ...] = DEFAULT_RULES
    """Rules whose choice is kept; the target is scored only where one of them could choose."""
    shown: str = "training-domain-validation"
    """The rule whose choice is printed."""
    min_group_size: int = 1
    """Groups below this size are left out of the worst group."""
    predictions_mb: float = 64
    """Logits of the chosen checkpoints are stored up to this size."""


class ExecutionConfig(Hparams):
    """Where and with what a run happens; none of it decides the result, so none of it is hashed."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""
    data_root: str = ""
    """Where datasets that are not bundled lie."""
    output: str = "runs"
    """Run directories are made here."""
    tracking_uri: str = ""
    """MLflow store; empty takes MLFLOW_TRACKING_URI, else ./mlflow.db."""
    experiment: str = ""
    """MLflow experiment; empty is DATASET/PROTOCOL."""


class RunConfig(Hparams):
    """One training run."""

    algorithm: str = "erm"
    """Registered name of the algorithm."""
    hp: Mapping[str, Any] = {}
    """The algorithm's hyperparameters: dgharness algorithms show NAME."""
    data: DataConfig = DataConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    model: Part = Part()
    optimizer: OptimizerConfig = OptimizerConfig()
    averaging: AveragingConfig = AveragingConfig()
    annotator: AnnotatorConfig = AnnotatorConfig()
    tta: TTAConfig = TTAConfig()
    train: TrainConfig = TrainConfig()
    selection: SelectionConfig = SelectionConfig()
    hparams_seed: int = 0
    """0 is the defaults; every other seed is a random draw of all that is not given."""
    trial_seed: int = 0
    """Generation, split, initialisation and order."""
    preset: str = ""
    """The preset that was applied."""
    plugins: tuple[str, ...] = ()
    """Uninstalled code, MODULE:ATTR or FILE.py:ATTR."""
    execution: ExecutionConfig = ExecutionConfig()


# --- layers ----------------------------------------------------------------------------------------


def compose(
    *,
    preset: str = "",
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Defaults < preset < file < ``--set`` < flags, validated.

    >>> compose(sets=["hp.weight=1e3", "model.width=64"], flags={"algorithm": "irmv1"}).hp
    {'weight': 1000.0}
    """
    tree: dict[str, Any] = {}
    if file:
        merge(tree, _read_yaml(Path(file)))
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected key=value, as in --set train.steps=1000")
        merge(tree, _nested(key.split("."), _scalar(value)))
    merge(tree, dict(flags or {}))
    preset = preset or tree.get("preset", "")
    if preset:
        tree = merge(_preset_layer(preset, tree), tree)
        tree["preset"] = preset
    return checked(RunConfig, tree, where="")


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, tables key by key; changes and returns ``base``."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value
    return base


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("dgharness") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def preset_tree(name: str) -> dict[str, Any]:
    """A preset as written: settings, and under ``algorithms`` the hyperparameters of each."""
    if name.endswith((".yaml", ".yml")):
        return _read_yaml(Path(name))
    if name not in presets():
        raise UsageError(f"there is no preset {name!r}; {did_you_mean(name, presets())}")
    return yaml.safe_load((resources.files("dgharness") / "presets" / f"{name}.yaml").read_text())


def _preset_layer(name: str, over: Mapping[str, Any]) -> dict[str, Any]:
    tree = preset_tree(name)
    tree.pop("about", None)
    per_algorithm = tree.pop("algorithms", {})
    own = dict(per_algorithm.get(over.get("algorithm", "erm"), {}))
    if int(over.get("hparams_seed", 0)):
        # A random draw replaces what the preset fixed, and what the user gave replaces the draw.
        drawn = spaces(load("algorithms", over.get("algorithm", "erm")).hparams)
        own = {key: value for key, value in own.items() if key not in drawn}
        for key in ("lr", "weight_decay"):
            tree.get("optimizer", {}).pop(key, None)
        if tree.get("train", {}).get("batch_size") != "all":
            tree.get("train", {}).pop("batch_size", None)
    return merge(tree, {"hp": own})


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no configuration file {path}")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must hold a table of settings, not a {type(tree).__name__}")
    return tree


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if len(path) > 1 else value}


def _scalar(text: str) -> Any:
    """A value as YAML reads it, except that 1e-3 is a number, as everyone but YAML thinks."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
