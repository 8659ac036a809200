"""Do the data, the sampler and the model have what the methods need? Checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dgharness.config import RunConfig
from dgharness.data.dataset import Dataset
from dgharness.data.groups import Grouping
from dgharness.data.protocols import Splits
from dgharness.data.source import TrainingSource
from dgharness.errors import NotApplicable, UsageError
from dgharness.plugin import Needs, Stage
from dgharness.step import TokenShape


def check_needs(
    name: str, needs: Needs, config: RunConfig, dataset: Dataset, splits: Splits, train_grouping: Grouping
) -> None:
    """Raise one sentence with everything that is missing for a method."""
    missing = unmet(needs, config, dataset, splits, train_grouping)
    if missing:
        raise NotApplicable(f"{name} cannot run here: it needs {' and '.join(missing)}")


def unmet(
    needs: Needs, config: RunConfig, dataset: Dataset, splits: Splits, train_grouping: Grouping
) -> list[str]:
    """What is missing, each with what there is instead."""
    domains = splits.train_domains
    finds_domains = config.annotator.name != "none"  # what it found is checked by ``check_source``
    missing = []
    if len(domains) < needs.min_domains and not finds_domains:
        missing.append(
            f"at least {needs.min_domains} training domains, and this split leaves {len(domains)} "
            f"({', '.join(domains)})"
        )
    mixed = config.train.sampler in ("pooled", "balanced", "full", "wilds-uniform")
    if mixed and (needs.domain_rows or needs.min_domains > 1):
        missing.append(
            f"rows of one domain each, and the sampler {config.train.sampler} mixes them "
            "(--set train.sampler=by-domain does not)"
        )
    if needs.groups and (train_grouping.group_M < 0).all() and not finds_domains:
        missing.append(f"known groups, and {' x '.join(config.data.train_groups)} is unknown throughout")
    if needs.tasks and dataset.task.name not in needs.tasks:
        missing.append(f"a task of {' or '.join(needs.tasks)}, and {dataset.name} is {dataset.task.name}")
    if dataset.task.places and dataset.task.name not in (*needs.tasks, *needs.places):
        missing.append(
            f"one vector of outputs and features for each example, and {dataset.name} ({dataset.task.name}) "
            "has them for many places of it"
        )
    if needs.unlabeled is True and "unlabeled" not in splits.rows:
        missing.append(f"unlabeled data, which {dataset.name} under {config.protocol.name} does not provide")
    if needs.one_tensor and isinstance(dataset.input_shape, TokenShape):
        missing.append(f"inputs of one tensor, and {dataset.name} is text")
    absent = [view for view in needs.views if view not in dataset.views]
    if absent:
        missing.append(f"the augmented views {', '.join(absent)}, which {dataset.name} does not offer")
    if needs.text:
        missing.append(f"text embeddings of the classes, which the model {config.model.name} does not have")
    return missing


def check_stages(name: str, stages: Sequence[Stage], steps: int) -> None:
    """The last stage must get updates of its own: without it another method would bear the name."""
    stages = [stage for stage in stages if stage.steps != 0]
    taken = sum(stage.steps or 0 for stage in stages[:-1])
    if taken and steps <= taken:
        before = ", ".join(f"{stage.name} {stage.steps}" for stage in stages[:-1])
        raise NotApplicable(
            f"{name} cannot run here: its stages ({before}) take {taken} updates, and train.steps={steps} "
            f"leaves none for the last, {stages[-1].name}; raise train.steps or shorten them"
        )


def check_consistency(config: RunConfig, dataset: Dataset) -> None:
    """Transformation consistency is that of classes predicted from images."""
    asked = config.selection.consistency
    if asked and (dataset.task.name != "classification" or len(dataset.input_shape) != 3):
        raise UsageError(
            f"selection.consistency.{next(iter(asked))} is measured on classified images, and {dataset.name} "
            f"is {dataset.task.name} of examples of shape {list(dataset.input_shape)}; leave it out"
        )
    if asked.get("scale", 0) >= 100:
        raise UsageError(
            f"selection.consistency.scale={asked['scale']:g} leaves no image; give less than 100"
        )


def check_source(name: str, needs: Needs, source: TrainingSource) -> None:
    """The part of the needs that an annotator may have changed."""
    if source.num_domains < needs.min_domains:
        raise NotApplicable(
            f"{name} cannot run here: it needs at least {needs.min_domains} training domains, and the "
            f"annotator found {source.num_domains}"
        )


def check_model(name: str, needs: Needs, model: nn.Module) -> None:
    """The part of the needs that only a built model can answer."""
    if needs.linear_classifier and not isinstance(getattr(model, "classifier", None), nn.Linear):
        raise NotApplicable(f"{name} cannot run here: it needs a linear classifier")
    layers = dict(model.get_submodule("featurizer").named_modules())
    absent: Sequence[str] = [layer for layer in needs.feature_maps if layer not in layers]
    if absent:
        raise NotApplicable(
            f"{name} cannot run here: it needs the outputs of the featurizer's layers {', '.join(absent)}, "
            f"and this model has {', '.join(filter(None, layers))}"
        )
