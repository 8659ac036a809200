"""How an image dataset of WILDS is read: what differs between them is an ``ImageSet``.

Shapes: M rows of the manifest, N images of a batch, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.augmentation import augment
from dgharness.data.dataset import Dataset, Defaults
from dgharness.data.image_cache import Fit
from dgharness.data.images import ImageOptions, image_dataset, standardise
from dgharness.data.tasks import Task
from dgharness.data.wilds.load import Names, WildsOptions, manifest_of, official_eval, open_wilds
from dgharness.data.wilds.unlabeled import unlabeled_manifest, with_unlabeled
from dgharness.hparams import Annotated

Side = Annotated[int, Field(ge=1)]


class WildsImageOptions(WildsOptions, ImageOptions):
    """Images are not augmented unless asked for, as in the benchmark."""

    augment: bool = False


def classes(outputs: Tensor) -> Tensor:
    """Predicted classes, as most evaluations of WILDS want them."""
    return outputs.argmax(-1)


def nothing(options: Any) -> Mapping[str, Any]:
    """No further arguments."""
    return {}


@dataclass(frozen=True)
class ImageSet:
    """What is particular to one image dataset of WILDS; ``domain`` and ``groups`` are metadata fields."""

    name: str
    paths: Callable[[Any], Sequence[str]]  # of its images, relative to its folder
    domain: tuple[str, ...]
    groups: tuple[str, ...]  # of the metrics, as in its own evaluation
    model: str
    metric: str
    rows: int | None = None  # domains of a batch, None for all of them, and examples of each
    batch_size: int | None = None
    replicates: int = 0
    train_groups: tuple[str, ...] = ("domain",)
    attributes: tuple[str, ...] | None = None  # None: every metadata field
    fit: Fit = "squash"
    names: Callable[[Any], Names] = nothing
    arguments: Callable[[Any], Mapping[str, Any]] = nothing  # options -> arguments of the class
    unlabeled_arguments: Callable[[Any], Mapping[str, Any]] = nothing  # further ones
    predict: Callable[[Tensor], Tensor] = classes
    task: Task | None = None
    targets: Callable[[Any], Tensor] | None = None  # where one column cannot hold them
    prepare: Callable[[Any], Any] = standardise
    augment: Callable[[Any, torch.Generator], Any] = augment


def load(kind: ImageSet, argument: str | None, root: Path | None, seed: int, options: Any) -> Dataset:
    """The labeled examples of every split, and the unlabeled ones that are asked for."""
    source = open_wilds(kind.name, root, options.split_scheme, **kind.arguments(options))
    names = kind.names(source)
    manifest = manifest_of(source, kind.domain, kind.attributes, names=names)
    manifest = manifest.assign(row=range(len(manifest)), path=[str(path) for path in kind.paths(source)])
    dataset = image_dataset(
        f"wilds:{kind.name}",
        Path(source.data_dir),
        manifest[manifest["split"].notna()],
        options,
        fit=kind.fit,
        task=kind.task,
        defaults=Defaults(
            kind.model, eval_every=300, protocol="official", rows=kind.rows, batch_size=kind.batch_size
        ),
        groups=kind.groups,
        train_groups=kind.train_groups,
        official_metric=kind.metric,
        replicates=kind.replicates,
        prepare=kind.prepare,
        augment=kind.augment,
    )
    row_M = dataset.manifest["row"].to_numpy(copy=True)
    dataset = dataclasses.replace(
        dataset,
        official=official_eval(source, kind.predict, row_M),
        targets=kind.targets(source)[torch.from_numpy(row_M)] if kind.targets else None,
    )
    return _with_unlabeled(kind, dataset, root, options, names) if options.unlabeled else dataset


def _with_unlabeled(
    kind: ImageSet, dataset: Dataset, root: Path | None, options: Any, names: Names
) -> Dataset:
    arguments = {**kind.arguments(options), **kind.unlabeled_arguments(options)}
    source = open_wilds(kind.name, root, options.split_scheme, unlabeled=True, **arguments)
    manifest = unlabeled_manifest(source, options.unlabeled, kind.domain, names)
    paths = pd.Series([str(path) for path in kind.paths(source)], dtype=object)
    images = image_dataset(
        dataset.name,
        Path(source.data_dir),
        manifest.assign(path=paths.iloc[manifest["row"]].to_numpy()),
        options,
        fit=kind.fit,
        task=dataset.task,
    )
    return with_unlabeled(dataset, images.manifest, images.reader)


# --- RxRx1 ------------------------------------------------------------------------------------------


def standardise_each(x_N3HW: Tensor) -> Tensor:
    """Zero mean and unit variance (of a sample) for each channel of each image; a flat channel becomes 0.

    >>> standardise_each(torch.tensor([[[[0, 2]]]]).expand(1, 3, 1, 2))[0, 0]
    tensor([[-0.7071,  0.7071]])
    """
    x = x_N3HW.float() / 255
    std, mean = torch.std_mean(x, dim=(2, 3), keepdim=True)
    return (x - mean) / std.where(std > 0, 1.0)


def turn_and_flip(x_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by 0, 90, 180 or 270 degrees, and mirrored or not."""
    turns_N = torch.randint(4, (len(x_N3HW),), generator=generator).to(x_N3HW.device)
    flip_N = torch.randint(2, (len(x_N3HW),), generator=generator).to(x_N3HW.device)
    turned = x_N3HW.clone()
    for turns in (1, 2, 3):
        chosen = turns_N == turns
        turned[chosen] = torch.rot90(x_N3HW[chosen], turns, (2, 3))
    return torch.where(flip_N[:, None, None, None] > 0, turned.flip(3), turned)
