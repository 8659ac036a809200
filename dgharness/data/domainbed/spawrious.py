"""Four breeds of dog, each in places that change between training and test, as DomainBed arranges them.

One to one (O2O): a breed is seen in one place, but for a small share of all breeds in a place that they have
in common; the test shows it elsewhere. Many to many (M2M): two breeds and two places go together in both
training domains, in either pairing; the test couples them with the places of the other two.

As in DomainBed the domains are Test, SC_group_1 and SC_group_2 in this order; Test is the one to hold out,
and to hold out another has no meaning. Images are taken in the order of their names, where DomainBed takes
them in whatever order the file system has. Training flips and recolours them, and does not crop.

Paper: Lynch et al., Spawrious: A Benchmark for Fine Control of Spurious Correlation Biases, 2023
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from dgharness.data.augmentation import augment
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.images import SUFFIXES, ImageOptions, image_dataset
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError

ROOT = "spawrious224"
BREEDS = ("bulldog", "dachshund", "labrador", "corgi")  # the order of the arrangements
LOCATIONS = ("beach", "desert", "dirt", "jungle", "mountain", "snow")
DOMAINS = ("Test", "SC_group_1", "SC_group_2")
IMAGES = 3168  # of a breed in a place, in either half
CORRELATED = (int(0.97 * IMAGES), int(0.87 * IMAGES))  # O2O: a breed's images in its own place, by domain


@dataclass(frozen=True)
class Folder:
    """The first ``limit`` images of one breed in one place (all where None), as part of a domain."""

    domain: str
    half: int  # 0 or 1
    location: str
    breed: str
    limit: int | None = None

    @property
    def path(self) -> str:
        return f"{self.half}/{self.location}/{self.breed}"


def one_to_one(train: Sequence[str], test: Sequence[str], common: str) -> list[Folder]:
    """``train`` and ``test`` name the place of each breed; the rest of a training domain is in ``common``."""
    folders = _placed("Test", 0, test) + _placed("Test", 1, test)
    for half, own in enumerate(CORRELATED):
        domain = DOMAINS[1 + half]
        folders += _placed(domain, half, train, own) + _placed(domain, half, [common] * 4, IMAGES - own)
    return folders


def many_to_many(train: Sequence[str], test: Sequence[str]) -> list[Folder]:
    """Each breed has its own place in the first training domain, and in the second that of its partner."""
    return [
        *_placed("Test", 0, test),
        *_placed("Test", 0, _swapped(test)),
        *_placed("SC_group_1", 0, train, IMAGES),
        *_placed("SC_group_2", 0, _swapped(train), IMAGES),
    ]


def _placed(domain: str, half: int, places: Sequence[str], limit: int | None = None) -> list[Folder]:
    return [Folder(domain, half, place, breed, limit) for breed, place in zip(BREEDS, places, strict=True)]


def _swapped(places: Sequence[str]) -> list[str]:
    return [places[1], places[0], places[3], places[2]]


def _load(
    name: str,
    folders: Sequence[Folder],
    argument: str | None,
    root: Path | None,
    trial_seed: int,
    options: ImageOptions,
) -> Dataset:
    place = data_root(root) / ROOT
    manifest = pd.concat([_listed(name, place, folder) for folder in folders], ignore_index=True)
    for column, levels in (("y", sorted(BREEDS)), ("domain", DOMAINS), ("location", LOCATIONS)):
        manifest[column] = pd.Categorical(manifest[column], levels)
    return image_dataset(
        f"domainbed:{name}",
        place,
        manifest,
        options,
        defaults=Defaults(model="resnet50", steps=5000, eval_every=100, targets=("Test",)),
        groups=("y", "location"),
        augment=partial(augment, cropping=False),
    )


def _listed(name: str, place: Path, folder: Folder) -> pd.DataFrame:
    within = place / folder.path
    files = sorted(file.name for file in within.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(
            f"domainbed:{name} needs images in {within}, and there are none; "
            f"put the folder {ROOT} under the data root, or name another with --data-root DIR"
        )
    paths = [f"{folder.path}/{file}" for file in files[: folder.limit]]
    return pd.DataFrame(
        {"y": folder.breed, "domain": folder.domain, "location": folder.location, "path": paths}
    )


def _spec(name: str, folders: Sequence[Folder]) -> DatasetSpec:
    counts: dict[str, dict[str, int]] = {domain: dict.fromkeys(BREEDS, 0) for domain in DOMAINS}
    for folder in folders:
        counts[folder.domain][folder.breed] += folder.limit or IMAGES
    present = {(folder.breed, folder.location) for folder in folders}
    return DatasetSpec(
        partial(_load, name, folders),
        ImageOptions,
        layout=f"{ROOT}/{{0,1}}/<location>/<breed>/<image>\n"
        f"  <location>: {', '.join(LOCATIONS)}\n  <breed>: {', '.join(sorted(BREEDS))}",
        counts={domain: sum(of_breed.values()) for domain, of_breed in counts.items()},
        class_counts=counts,
        absent_groups=tuple(
            f"y={breed},location={location}"
            for breed, location in product(BREEDS, LOCATIONS)
            if (breed, location) not in present
        ),
        doc=__doc__,
    )


SpawriousO2O_easy = _spec(
    "SpawriousO2O_easy",
    one_to_one(
        train=["desert", "jungle", "dirt", "snow"], test=["dirt", "snow", "desert", "jungle"], common="beach"
    ),
)
"""Four breeds of dog, each in a place of its own in training and in another at test: easy pairs."""

SpawriousO2O_medium = _spec(
    "SpawriousO2O_medium",
    one_to_one(
        train=["mountain", "beach", "dirt", "jungle"],
        test=["jungle", "dirt", "beach", "snow"],
        common="desert",
    ),
)
"""Four breeds of dog, each in a place of its own in training and in another at test: medium pairs."""

SpawriousO2O_hard = _spec(
    "SpawriousO2O_hard",
    one_to_one(
        train=["jungle", "mountain", "snow", "desert"],
        test=["mountain", "snow", "desert", "jungle"],
        common="beach",
    ),
)
"""Four breeds of dog, each in a place of its own in training and in another at test: hard pairs."""

SpawriousM2M_easy = _spec(
    "SpawriousM2M_easy",
    many_to_many(
        train=["desert", "mountain", "dirt", "jungle"], test=["dirt", "jungle", "mountain", "desert"]
    ),
)
"""Two pairs of breeds of dog that share two places in training and change them at test: easy places."""

SpawriousM2M_medium = _spec(
    "SpawriousM2M_medium",
    many_to_many(train=["beach", "snow", "mountain", "desert"], test=["desert", "mountain", "beach", "snow"]),
)
"""Two pairs of breeds of dog that share two places in training and change them at test: medium places."""

SpawriousM2M_hard = _spec(
    "SpawriousM2M_hard",
    many_to_many(train=["dirt", "jungle", "snow", "beach"], test=["snow", "beach", "dirt", "jungle"]),
)
"""Two pairs of breeds of dog that share two places in training and change them at test: hard places."""
