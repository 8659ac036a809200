"""SubpopBench's photographs: its tables, its crop to 224 pixels, and no augmentation.

Where a table holds whole paths, they count from the dataset's own folder on, so that data may move.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.image_cache import Fit
from dgharness.data.images import ImageOptions, image_dataset, image_files
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
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
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
        counts={domain: sum(of_class.values()) for domain, of_class in images.class_counts.items()},
        class_counts=images.class_counts,
        doc=__doc__,
    )


def _load(
    name: str, images: Images, argument: str | None, root: Path | None, trial_seed: int, options: Any
) -> Dataset:
    place, table = data_root(root), images.table
    if further := images.further.get(getattr(options, "test_split", "")):
        table = tested_on(table, further)
    manifest = read_table(name, place, table)
    row_M, manifest = manifest.index.to_numpy(), manifest.reset_index(drop=True)
    path = manifest.pop("filename")
    if not images.folder:
        path = _from_folder(place / table.file, path, row_M, images.within)
    folder = place / images.folder
    files = image_files(folder, path.tolist(), lambda row: f"row {row_M[row]} of {place / table.file}")
    manifest = images.derived(manifest.assign(path=path))
    known = getattr(options, "attributes", "unknown") == "known"
    manifest = with_domain(manifest, table.attribute, known)
    fields = subpopulations(manifest, table.attribute, known, metric=images.metric)
    if images.attribute:
        fields["hidden"] = (*fields["hidden"], images.attribute)
    return image_dataset(
        name, folder, manifest, options, files=files, fit=images.fit, defaults=images.defaults, **fields
    )


def _from_folder(table: Path, path: pd.Series, row_M: np.ndarray, within: Sequence[str]) -> pd.Series:
    """Each path from the last of the folders ``within`` on; ``row_M`` are their rows of the table.

    >>> whole = pd.Series(["/old/data/metashift/cat/1.jpg"])
    >>> _from_folder(Path("t.csv"), whole, np.array([0]), ["metashift"]).tolist()
    ['metashift/cat/1.jpg']
    """
    found = path.str.extract(rf"^(?:.*/)?((?:{'|'.join(within)})/.+)$", expand=False)
    if (outside := found.isna()).any():
        first = int(outside.to_numpy().argmax())
        raise UsageError(
            f"row {row_M[first]} of {table} names the image {path.iloc[first]!r}, which is not in a folder "
            f"{' or '.join(within)}; write the table anew with SubpopBench's scripts/download.py"
        )
    return found


# --- attributes that training may know -------------------------------------------------------------

waterbirds = image_spec(
    "waterbirds",
    Images(
        Table("waterbirds/metadata_waterbirds.csv", ("landbird", "waterbird"), "place", ("land", "water")),
        defaults("resnet50", 5000, 300),
        folder="waterbirds/waterbird_complete95_forest2water2",
        fit="squash-crop",
        class_counts={
            "land": {"landbird": 6220, "waterbird": 831},
            "water": {"landbird": 2905, "waterbird": 1832},
        },
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
        class_counts={
            "no": {"not blond": 89931, "blond": 28234},
            "yes": {"not blond": 82685, "blond": 1749},
        },
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
"""Animals and things of 60 kinds in six contexts, not every kind in each of them (Zhang et al. 2023)."""


# --- attributes that appear at test alone ----------------------------------------------------------

CHANGED = ("mixed_rand", "only_fg", "no_fg")  # variations of the Backgrounds Challenge


class ImageNetBGOptions(SubpopImageOptions):
    test_split: Literal["mixed_rand", "test", "only_fg", "no_fg"] = "mixed_rand"
    """What is reported: images with the background of another class (mixed_rand), without any (only_fg),
    without the foreground (no_fg), or as photographed (test, which else is logged as id_test)."""


class BreedsOptions(SubpopImageOptions):
    test_split: Literal["zs", "test"] = "test"
    """What is reported: other images of the subclasses of training (test, as SubpopBench does for all of
    BREEDS but Living17), or subclasses that training never saw (zs; test then is logged as id_test)."""


class Living17Options(BreedsOptions):
    test_split: Literal["zs", "test"] = "zs"


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


# SubpopBench trains these from scratch: model.weights=scratch. Version 1 tested all of them on zs.
def _breeds(
    name: str,
    classes: int,
    metric: str = METRIC,
    options: type[BreedsOptions] = BreedsOptions,
    version: int = 2,
) -> DatasetSpec:
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
    return replace(image_spec(name, images, options), version=version)


living17 = _breeds("living17", 17, "accuracy", Living17Options, version=1)
"""Seventeen kinds of animal, tested on subclasses that training never saw (Santurkar et al. 2021)."""

entity13 = _breeds("entity13", 13)
"""Thirteen kinds of entity; as an option, tested on unseen subclasses (Santurkar et al. 2021)."""

entity30 = _breeds("entity30", 30)
"""Thirty kinds of entity; as an option, tested on unseen subclasses (Santurkar et al. 2021)."""

nonliving26 = _breeds("nonliving26", 26)
"""Twenty-six kinds of thing; as an option, tested on unseen subclasses (Santurkar et al. 2021)."""
