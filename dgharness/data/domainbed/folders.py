"""DomainBed's datasets of photographs: folders of domains, of classes, of images.

Domains are numbered in the order of their folders' names, and classes likewise: the splits are DomainBed's. A
folder that is missing or too many would shift the numbers, so it is a UsageError.

Paper: Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.folder import list_images, manifest_of_listing
from dgharness.data.images import PHOTOGRAPHS, ImageOptions, image_dataset
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError


def _load(
    name: str,
    folder: str,
    domains: tuple[str, ...],
    classes: int,
    eval_every: int,
    argument: str | None,
    root: Path | None,
    trial_seed: int,
    options: ImageOptions,
) -> Dataset:
    place = data_root(root) / folder
    if not place.is_dir():
        raise UsageError(
            f"domainbed:{name} needs the folder {place} with one folder each for {', '.join(domains)}; "
            "put it there, or name another place with --data-root DIR"
        )
    listing = list_images(place)
    manifest = manifest_of_listing(listing)
    _refuse_other(name, place, tuple(manifest["domain"].cat.categories), domains)
    if (found := len(manifest["y"].cat.categories)) != classes:
        raise UsageError(
            f"the domains in {place} have {found} classes, and those of domainbed:{name} have {classes}; "
            f"complete them, or load your own selection as folder:{place}"
        )
    return image_dataset(
        f"domainbed:{name}",
        place,
        manifest,
        options,
        files=[file for _, _, file in listing],
        defaults=replace(PHOTOGRAPHS, eval_every=eval_every),
    )


def _refuse_other(name: str, place: Path, found: tuple[str, ...], domains: tuple[str, ...]) -> None:
    missing = [domain for domain in domains if domain not in found]
    foreign = [domain for domain in found if domain not in domains]
    if missing:
        raise UsageError(f"{place} has no folder {missing[0]!r}, a domain of domainbed:{name}; put it there")
    if foreign:
        raise UsageError(
            f"{place} holds the folder {foreign[0]!r}, which is no domain of domainbed:{name}; move it away"
        )


def _spec(
    name: str,
    folder: str,
    domains: Mapping[str, int | None],
    classes: int,
    eval_every: int = 300,
    note: str = "",
    class_counts: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> DatasetSpec:
    """``domains`` are the folders with the number of images in the complete dataset, None where unknown."""
    return DatasetSpec(
        partial(_load, name, folder, tuple(sorted(domains)), classes, eval_every),
        ImageOptions,
        layout=f"{folder}/<domain>/<class>/<image>\n  <domain>: {', '.join(sorted(domains))}{note}",
        counts={domain: count for domain, count in sorted(domains.items()) if count is not None},
        class_counts=class_counts,
        doc=__doc__,
    )


def _by_class(classes: Sequence[str], **counts: Sequence[int]) -> dict[str, dict[str, int]]:
    return {domain: dict(zip(classes, of_class, strict=True)) for domain, of_class in counts.items()}


PACS = _spec(
    "PACS",
    "PACS",
    {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
    7,
    class_counts=_by_class(
        ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
        art_painting=(379, 255, 285, 184, 201, 295, 449),
        cartoon=(389, 457, 346, 135, 324, 288, 405),
        photo=(189, 202, 182, 186, 199, 280, 432),
        sketch=(772, 740, 753, 608, 816, 80, 160),
    ),
)
"""Paintings, cartoons, photographs and sketches of 7 kinds of object (Li et al. 2017)."""

VLCS = _spec(
    "VLCS",
    "VLCS",
    {"Caltech101": 1415, "LabelMe": 2656, "SUN09": 3282, "VOC2007": 3376},
    5,
    class_counts=_by_class(
        ("bird", "car", "chair", "dog", "person"),
        Caltech101=(237, 123, 118, 67, 870),
        LabelMe=(80, 1209, 89, 43, 1235),
        SUN09=(21, 933, 1036, 31, 1261),
        VOC2007=(330, 699, 428, 420, 1499),
    ),
)
"""Photographs of 5 kinds of object from four collections (Fang et al. 2013)."""

OfficeHome = _spec(
    "OfficeHome",
    "office_home",
    {"Art": 2427, "Clipart": 4365, "Product": 4439, "Real World": 4357},
    65,
)
"""Objects of office and home, 65 kinds, as art, clip art, product images and photographs
(Venkateswara et al. 2017)."""

TerraIncognita = _spec(
    "TerraIncognita",
    "terra_incognita",
    {"location_100": 4741, "location_38": 9736, "location_43": 3970, "location_46": 5883},
    10,
    note="\n  The counts are of today's download, 24,330 images; the paper had 24,788.",
)
"""Wild animals, 10 kinds, in front of camera traps at four places (Beery et al. 2018)."""

DomainNet = _spec(
    "DomainNet",
    "domain_net",
    {
        "clipart": 48129,
        "infograph": 51605,
        "painting": 72266,
        "quickdraw": 172500,
        "real": 172947,
        "sketch": 69128,
    },
    345,
    eval_every=1000,
    note="\n  without the 9,431 duplicates that DomainBed lists (domainbed/misc/domain_net_duplicates.txt)",
)
"""Objects of 345 kinds in six styles, less the duplicates that DomainBed removes (Peng et al. 2019)."""

SVIRO = _spec(
    "SVIRO",
    "sviro",
    dict.fromkeys(
        ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"), None
    ),
    7,
)
"""Rendered rear seats of ten cars, and what occupies them, of 7 kinds (Dias Da Cruz et al. 2020)."""
