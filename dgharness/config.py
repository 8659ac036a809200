"""The configuration of a run: frozen, and layered (defaults < preset < file < --set < flags).

Every part names an entry of a registry and carries that entry's own options beside the name:
``model: {name: resnet50, weights: scratch}``. What is left open is filled in by ``resolution.resolve``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import Hparams, NameList, Neutral, checked, spaces
from dgharness.preset import lay, merge, preset_tree, read_yaml, table
from dgharness.registry import add_plugin, canonical, load
from dgharness.training.averaging import AveragingConfig
from dgharness.training.optimizers import OptimizerConfig

DEFAULT_RULES = ("last", "training-domain-validation", "test-domain-validation", "worst-group")
SHOWN = "training-domain-validation"

# An alias of a rule makes no other run.
RuleName = Annotated[str, AfterValidator(partial(canonical, "selection"))]
RuleNames = Annotated[
    NameList, AfterValidator(lambda names: tuple(dict.fromkeys(canonical("selection", n) for n in names)))
]

# One name stands for a list of one, whatever commas it has.
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value])
]


class Part(Hparams):
    """A registry entry by name; every further key is one of that entry's own options."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    """Registered name; empty takes the dataset's default."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataConfig(Part):
    """The dataset. Further keys are its own options."""

    name: str = "colored-digits"
    groups: NameList = ()
    """Columns whose product is the subpopulations in the metrics, a+b for the overlapping levels of several;
    empty takes the dataset's."""
    train_groups: NameList = ()
    """Columns whose product is the groups that algorithms see (group-dro); empty takes the dataset's."""


class ProtocolConfig(Hparams):
    """How the domains are split."""

    name: Literal["", "leave-one-domain-out", "official", "subpopulation", "temporal"] = ""
    """leave-one-domain-out, official or subpopulation (the dataset's own split), or temporal (train on the
    past, test on the future); empty takes the dataset's default."""
    targets: Names = ()
    """Domains held out; empty takes the dataset's last, or those of its official split."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Part of every domain kept from training: validation, and for a target the oracle's. Not in official."""
    cut: Annotated[float | None, Neutral(None)] = None
    """temporal: the time at which the future begins, between two domains; unset, half of them are past. It
    becomes targets."""
    horizon: Annotated[PositiveInt | None, Neutral(None)] = None
    """temporal: test on so many domains from the cut on; unset, on all. A sweep moves the cut on from there,
    one domain at a time. It becomes targets."""


class TrainConfig(Hparams):
    """The loop."""

    steps: PositiveInt | None = None
    """Updates in all; unset, the dataset's default."""
    epochs: Annotated[PositiveFloat | None, Neutral(None)] = None
    """Passes over the training data in place of steps, as many updates as that makes, rounded up."""
    rows: Annotated[PositiveInt | None, Neutral(None)] = None
    """Rows of a batch: so many different domains or groups are drawn at each update; unset, the dataset's
    default, as a rule all."""
    batch_size: PositiveInt | Literal["all"] | None = None
    """Examples per row of a batch (per domain with the by-domain sampler); unset, that of the profile."""
    sampler: Literal[
        "", "by-domain", "by-group", "pooled", "balanced", "full", "wilds-group", "wilds-uniform"
    ] = ""
    """by-domain, by-group, pooled, balanced, full, or WILDS' own wilds-group and wilds-uniform; empty takes
    the dataset's default, as a rule by-domain."""
    eval_every: PositiveInt | None = None
    """Updates between evaluations, each a checkpoint that a rule may choose; unset, the dataset's default."""
    log_every: PositiveInt = 100
    """Updates between training metrics; divergence is noticed there."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs the networks under autocast."""


class TTAConfig(Part):
    """Test-time adaptation and its protocol."""

    name: str = "none"
    mode: Literal["online", "offline"] = "online"
    """online predicts each batch as it comes; offline sees the whole domain once before predicting."""
    batch_size: PositiveInt = 64
    """Target examples per call."""
    order: Literal["shuffled", "manifest"] = "shuffled"
    """Order of the target stream; shuffled by the trial's own stream."""
    choose: Annotated[NonNegativeInt, Neutral(0)] = 0
    """Draws of the method's hyperparameters to choose from by adapting to validation data, the first as
    given; 0 takes what is given."""


class AnnotatorConfig(Part):
    """What finds domains or groups before training."""

    name: str = "none"


class SelectionConfig(Hparams):
    """Which checkpoints are kept and scored on the target."""

    rules: RuleNames = DEFAULT_RULES
    """Rules whose choice is kept; the target is scored only where one of them could choose."""
    shown: RuleName = SHOWN
    """The rule whose choice is printed, or else the first."""
    min_group_size: PositiveInt = 1
    """Groups below this size are left out of the worst group."""
    predictions_mb: NonNegativeFloat = 64
    """Logits of the chosen checkpoints are stored up to this size."""
    consistency: Annotated[Mapping[Literal["shift", "rotation", "scale"], PositiveFloat], Neutral({})] = {}
    """Transformations of images under which predictions on the target should stay as they are, each with its
    amount: shift in pixels, rotation in degrees, scale in per cent (consistency.shift=4)."""

    @model_validator(mode="after")
    def _shown_is_kept(self) -> SelectionConfig:
        if not self.rules:
            raise UsageError("selection.rules is empty; name at least one rule, as in selection.rules=last")
        if self.shown not in (SHOWN, *self.rules):
            raise UsageError(
                f"selection.shown={self.shown} is not among selection.rules; "
                f"{did_you_mean(self.shown, self.rules)}"
            )
        return self


class ExecutionConfig(Hparams):
    """Where and with what a run happens; none of it decides the result, so none of it is hashed."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: NonNegativeInt = 0
    """CPU threads; 0 leaves PyTorch's choice."""
    data_root: str = ""
    """Where datasets that are not bundled lie."""
    output: str = "runs"
    """Run directories are made here."""
    tracking_uri: str = ""
    """MLflow store; empty takes MLFLOW_TRACKING_URI, else ./mlflow.db."""
    experiment: str = ""
    """MLflow experiment; empty is DATASET/PROTOCOL."""
    keep: Literal["results", "weights", "all"] = "weights"
    """What stays of a finished run on disk: results are its metrics and predictions, weights the networks
    that a rule chose as well, all the state of training too."""


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
    hparams_seed: NonNegativeInt = 0
    """0 is the defaults; every other seed is a random draw of all that is not given."""
    trial_seed: NonNegativeInt = 0
    """Generation, split, initialisation and order."""
    preset: str = ""
    """The preset that was applied."""
    plugins: Names = ()
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
    tree = given(preset=preset, file=file, sets=sets, flags=flags)
    if preset := tree.get("preset", ""):
        # Checked before the preset is laid under it, which reads the algorithm and the seed.
        own = checked(RunConfig, tree, where="")
        tree = lay(_preset_layer(preset, own, tree), tree)
    return checked(RunConfig, tree, where="")


def given(
    *,
    preset: str = "",
    file: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the user asked for, as a tree: file < ``--set`` < flags; the preset by its name alone.

    >>> given(sets=["train.steps=1e3"], flags={"algorithm": "irmv1"})
    {'train': {'steps': 1000.0}, 'algorithm': 'irmv1'}
    """
    tree: dict[str, Any] = {}
    if file:
        merge(tree, read_yaml(Path(file)))
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        if not equals or not all(path := key.strip().split(".")):
            raise UsageError(f"--set {assignment}: expected KEY=VALUE, as in --set train.steps=1000")
        merge(tree, _nested(path, _scalar(value)))
    merge(tree, {**(flags or {}), **({"preset": preset} if preset else {})})
    # A section all of whose lines are commented out reads as null.
    sections = RunConfig.model_fields
    return {key: value for key, value in tree.items() if value is not None or key not in sections}


# What the dataset's profile has a default for, and perhaps a search space: section, key.
PROFILE = (("optimizer", "lr"), ("optimizer", "weight_decay"), ("train", "batch_size"))


def _preset_layer(name: str, own: RunConfig, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The preset for one algorithm, without what is asked for in its place (``own``, and as given ``tree``).

    A random draw goes without what would be drawn. Whether the profile draws a setting is known only with the
    dataset: ``resolve`` puts the others back.
    """
    layer = preset_tree(name)
    layer.pop("about", None)
    algorithms = table(layer.pop("algorithms", None), f"algorithms of the preset {name}")
    algorithm = canonical("algorithms", layer.get("algorithm", own.algorithm))
    if "algorithm" in tree and canonical("algorithms", own.algorithm) != algorithm:
        raise UsageError(
            f"the preset {name} is for {algorithm}, and not for {own.algorithm}; leave one of them out"
        )
    hp = dict(table(algorithms.get(algorithm), f"algorithms.{algorithm} of the preset {name}"))
    lay(layer, table(hp.pop("settings", None), f"algorithms.{algorithm}.settings of the preset {name}"))
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if getattr(own.train, given) is not None:
            layer.get("train", {}).pop(other, None)
    chosen_by = layer.get("selection", {})
    shown = canonical("selection", chosen_by.get("shown", ""))
    if "rules" in tree.get("selection", {}) and shown not in own.selection.rules:
        chosen_by.pop("shown", None)
    if own.hparams_seed:
        for plugin in own.plugins:
            add_plugin(plugin)
        drawn = spaces(load("algorithms", algorithm).hparams)
        hp = {key: value for key, value in hp.items() if key not in drawn}
        for section, key in PROFILE:
            settings = table(layer.get(section), f"{section} of the preset {name}")
            if settings.get(key) != "all":  # full batches are a way of training, not a size to search
                settings.pop(key, None)
    return merge(layer, {"hp": hp})


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
