"""SubpopBench's photographs: its tables, its crop to 224 pixels, and no augmentation.

Where a table holds whole paths, they count from the dataset's own folder on, so that data may move.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.image_cache import Fit
from dgharness.data.images import ImageOptions, image_dataset
from dgharness.data.subpop.official import METRIC
from dgharness.data.subpop.table import (
    LEFT_OUT,
    SPLITS,
    SubpopOptions,
    Table,
    defaults,
    read_table,
    subpopulations,
    tested_on,
    with_domain,
)
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError


class SubpopImageOptions(ImageOptions):
    augment: bool = False
    """DomainBed's random crop, flip, colour jitter and grayscale, in training; SubpopBench has none."""


class AttributedImageOptions(SubpopImageOptions, SubpopOptions):
    """How images are decoded, and what training may know."""


@dataclass(frozen=True)
class Images:
    """A table of images: where they lie, how they are made square, and how training goes by default.

    ``folder`` is where relative paths start. Where there is none, ``within`` names the folders that a path
    of the table must go through; what is before them is dropped.
    """

    table: Table
    defaults: Defaults
    folder: str = ""
    within: tuple[str, ...] = ()
    fit: Fit = "crop"
    counts: Mapping[str, int] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)  # what test_split may name -> split of the table
    derived: Callable[[pd.DataFrame], pd.DataFrame] = lambda manifest: manifest  # adds columns
    attribute: str = ""  # added by ``derived``: measured, but in no group and never seen in training
    metric: str = METRIC  # what SubpopBench judges it by


def image_spec(
    name: str, images: Images, options: type[ImageOptions] = AttributedImageOptions
) -> DatasetSpec:
    """The registry's entry for a table of images."""
    where = images.folder or " and ".join(images.within)
    return DatasetSpec(
        partial(_load, f"subpop:{name}", images),
        options,
        layout=f"{images.table.layout}\n  its images under {where}/",
        counts=images.counts,
        doc=__doc__,
    )


def _load(
    name: str, images: Images, argument: str | None, root: Path | None, trial_seed: int, options: Any
) -> Dataset:
    place, table = data_root(root), images.table
    if further := images.further.get(getattr(options, "test_split", "")):
        table = tested_on(table, further)
    manifest = read_table(name, place, table)
    path = manifest.pop("filename")
    manifest["path"] = path if images.folder else _from_folder(place / table.file, path, images.within)
    manifest = images.derived(manifest)
    known = getattr(options, "attributes", "unknown") == "known"
    manifest = with_domain(manifest, table.attribute, known)
    fields = subpopulations(manifest, table.attribute, known, metric=images.metric)
    if images.attribute:
        fields["hidden"] = (*fields["hidden"], images.attribute)
    return image_dataset(
        name, place / images.folder, manifest, options, fit=images.fit, defaults=images.defaults, **fields
    )


def _from_folder(table: Path, path: pd.Series, within: Sequence[str]) -> list[str]:
    """Each path from the last of the folders ``within`` on.

    >>> _from_folder(Path("t.csv"), pd.Series(["/old/data/metashift/cat/1.jpg"]), ["metashift"])
    ['metashift/cat/1.jpg']
    """
    found = path.str.extract(rf"^(?:.*/)?((?:{'|'.join(within)})/.+)$", expand=False)
    if (outside := found.isna()).any():
        row = int(outside.to_numpy().argmax())
        raise UsageError(
            f"row {row} of {table} names the image {path.iloc[row]!r}, which is not in a folder "
            f"{' or '.join(within)}; write the table anew with SubpopBench's scripts/download.py"
        )
    return found.tolist()


# --- attributes that training may know -------------------------------------------------------------

waterbirds = image_spec(
    "waterbirds",
    Images(
        Table("waterbirds/metadata_waterbirds.csv", ("landbird", "waterbird"), "place", ("land", "water")),
        defaults("resnet50", 5000, 300),
        folder="waterbirds/waterbird_complete95_forest2water2",
        fit="squash-crop",
        counts={"land": 7051, "water": 4737},
    ),
)
"""Land birds and water birds, in training mostly in front of their own place (Sagawa et al. 2020)."""

celeba = image_spec(
    "celeba",
    Images(
        Table("celeba/metadata_celeba.csv", ("not blond", "blond"), "male", ("no", "yes")),
        defaults("resnet50", 30000, 1000),
        folder="celeba/img_align_celeba",
        fit="centre",
        counts={"no": 118165, "yes": 84434},
    ),
)
"""Blond hair or not in faces, of which few are of blond men (Liu et al. 2015; Sagawa et al. 2020)."""

metashift = image_spec(
    "metashift",
    Images(
        Table("metashift/metadata_metashift.csv", ("dog", "cat"), "place", ("outdoor", "indoor")),
        defaults("resnet50", 5000, 300),
        within=("metashift",),
    ),
)
"""Cats, mostly indoors, and dogs, mostly outdoors (Liang and Zou 2022)."""

nicopp = image_spec(
    "nico++",
    Images(
        Table(
            "nicopp/metadata.csv",
            tuple(map(str, range(60))),
            "context",
            ("autumn", "dim", "grass", "outdoor", "rock", "water"),
        ),
        defaults("resnet50", 30000, 1000),
        within=("nicopp",),
    ),
)
"""Animals and things of 60 kinds in six contexts, not all of them seen in training (Zhang et al. 2023)."""


# --- attributes that appear at test alone ----------------------------------------------------------

CHANGED = ("mixed_rand", "only_fg", "no_fg")  # variations of the Backgrounds Challenge


class ImageNetBGOptions(SubpopImageOptions):
    test_split: Literal["mixed_rand", "test", "only_fg", "no_fg"] = "mixed_rand"
    """What is reported: images with the background of another class (mixed_rand), without any (only_fg),
    without the foreground (no_fg), or as photographed (test, which else is logged as id_test)."""


class BreedsOptions(SubpopImageOptions):
    test_split: Literal["zs", "test"] = "zs"
    """What is reported: subclasses that training never saw (zs), or its own (test, which else is logged as
    id_test)."""


def _with_background(manifest: pd.DataFrame) -> pd.DataFrame:
    """The variation is the folder in ``bg_challenge``; the rest of ImageNet-9 is as photographed."""
    variation = manifest["path"].str.extract(r"bg_challenge/([^/]+)/", expand=False)
    levels = ("original", *CHANGED)
    return manifest.assign(background=pd.Categorical(variation.fillna("original"), levels))


def _with_subclass(manifest: pd.DataFrame) -> pd.DataFrame:
    """The subclass is the folder of the image, ImageNet's own class."""
    return manifest.assign(
        subclass=pd.Categorical(manifest["path"].str.extract(r"([^/]+)/[^/]+$", expand=False))
    )


imagenet_bg = image_spec(
    "imagenet-bg",
    Images(
        Table(
            "backgrounds_challenge/metadata.csv",
            (
                "dog",
                "bird",
                "wheeled vehicle",
                "reptile",
                "carnivore",
                "insect",
                "musical instrument",
                "primate",
                "fish",
            ),
            splits={"train": "train", "val": "val", "test": "test"} | dict.fromkeys(CHANGED, LEFT_OUT),
        ),
        defaults("resnet50", 10000, 500),
        within=("backgrounds_challenge",),
        further={variation: variation for variation in CHANGED},
        derived=_with_background,
        attribute="background",
    ),
    ImageNetBGOptions,
)
"""ImageNet-9, tested on foregrounds that were given another background (Xiao et al. 2021)."""


# SubpopBench trains these from scratch: model.weights=scratch.
def _breeds(name: str, classes: int, metric: str = METRIC) -> DatasetSpec:
    images = Images(
        Table(
            f"breeds/metadata_{name}.csv",
            tuple(map(str, range(classes))),
            splits=SPLITS | {"3": LEFT_OUT},
        ),
        defaults("resnet50", 60000, 2000),
        within=("imagenet",),
        further={"zs": "3"},
        derived=_with_subclass,
        attribute="subclass",
        metric=metric,
    )
    return image_spec(name, images, BreedsOptions)


living17 = _breeds("living17", 17, metric="accuracy")
"""Seventeen kinds of animal, tested on subclasses that training never saw (Santurkar et al. 2021)."""

entity13 = _breeds("entity13", 13)
"""Thirteen kinds of entity, tested on subclasses that training never saw (Santurkar et al. 2021)."""

entity30 = _breeds("entity30", 30)
"""Thirty kinds of entity, tested on subclasses that training never saw (Santurkar et al. 2021)."""

nonliving26 = _breeds("nonliving26", 26)
"""Twenty-six kinds of thing, tested on subclasses that training never saw (Santurkar et al. 2021)."""
