"""``folder:PATH``: photographs as PATH/<domain>/<class>/<image>, the way PACS and its kin are unpacked.

Every image is decoded once into a cache on disk and then fetched by index; augmentation runs on batches.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.augmentation import augment
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults, classification
from dgharness.data.image_cache import ImageFile, decoded, default_cache_dir
from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained weights expect
LAYOUT = "<domain>/<class>/<image>"

log = logging.getLogger(__name__)


class FolderOptions(Hparams):
    """How images are decoded and augmented."""

    size: Annotated[int, Field(ge=1)] = 224
    """Side in pixels to which every image is squashed."""
    augment: bool = True
    """DomainBed's random crop, flip, colour jitter and grayscale, in training only."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default .dgharness-cache under the user's cache directory."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, with a warning, instead of stopping."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: FolderOptions) -> Dataset:
    """List the images, decode those that are not in the cache; nothing depends on the trial seed.

    Rows are sorted by domain, class and file name. The column ``bytes`` lets the digest notice a file that
    was replaced under its old name.
    """
    if not argument:
        raise UsageError(f"folder needs a path, as in folder:PATH with images in PATH/{LAYOUT}")
    folder = Path(argument).expanduser()
    listing = list_images(folder)
    pixels = decoded(
        folder,
        [file for _, _, file in listing],
        options.size,
        options.cache_dir or default_cache_dir(),
        options.skip_unreadable,
    )
    if pixels.unreadable:
        log.warning("%d unreadable images of %s are left out", len(pixels.unreadable), folder)
    kept = np.array([row for row in range(len(listing)) if row not in pixels.unreadable], dtype=np.int64)
    manifest = _manifest(listing).iloc[kept].reset_index(drop=True)
    _refuse_empty(folder, manifest)
    return Dataset(
        name=folder.resolve().name,
        manifest=manifest,
        reader=MemoryMapped(pixels.file, kept),
        task=classification(len(manifest["y"].cat.categories)),
        input_shape=(3, options.size, options.size),
        profile="large",
        defaults=Defaults(model="resnet50", steps=5000, eval_every=300),
        prepare=standardise,
        augment=augment if options.augment else None,
    )


folder = DatasetSpec(load, FolderOptions, argument="PATH", doc=__doc__)


class MemoryMapped:
    """A reader of uint8 images [M, 3, H, W] in an .npy file; only what is asked for is read."""

    def __init__(self, file: Path, kept: np.ndarray) -> None:
        self.file, self.kept = file, kept
        # Copy-on-write is the one mode that torch accepts without owning the pages; nothing writes.
        self.x_M = torch.from_numpy(np.load(file, mmap_mode="c"))
        self.position_M = torch.from_numpy(kept)

    def __call__(self, index_N: Tensor) -> Tensor:
        return self.x_M.index_select(0, self.position_M[index_N.cpu()])

    def to(self, device: torch.device) -> MemoryMapped:
        return self

    def __reduce__(self) -> tuple[type[MemoryMapped], tuple[Path, np.ndarray]]:
        return MemoryMapped, (self.file, self.kept)  # another process maps the file itself


def standardise(x_N3HW: Tensor) -> Tensor:
    """Values 0..255 to ImageNet's zero mean and unit variance per channel."""
    scale, shift = _scale_and_shift(x_N3HW.device)
    return torch.addcmul(shift, x_N3HW.float(), scale)


@cache
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (MEAN, STD))
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


# --- listing ---------------------------------------------------------------------------------------

Listing = list[tuple[str, str, ImageFile]]  # domain, class, file


def list_images(folder: Path) -> Listing:
    """Every image with its domain and class, sorted; a UsageError names what is missing or differs."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; folder:PATH expects images in PATH/{LAYOUT}")
    classes_of = {domain: _folders(folder / domain) for domain in _folders(folder)}
    if not classes_of:
        raise UsageError(f"{folder} holds no domain folders; images belong in {folder}/{LAYOUT}")
    for domain, classes in classes_of.items():
        if not classes:
            raise UsageError(
                f"domain {domain!r} of {folder} is empty: it holds no class folders; "
                f"images belong in {folder}/{LAYOUT}"
            )
    _refuse_differing(folder, classes_of)
    return [
        (domain, name, file)
        for domain, classes in classes_of.items()
        for name in classes
        for file in _images(folder, domain, name)
    ]


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, domain: str, name: str) -> list[ImageFile]:
    with os.scandir(folder / domain / name) as entries:
        files = [
            ImageFile(f"{domain}/{name}/{entry.name}", entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith(".")
        ]
    if not files:
        raise UsageError(f"{folder / domain / name} holds no images; add some or remove the class everywhere")
    return sorted(files, key=lambda file: file.path)


def _refuse_differing(folder: Path, classes_of: dict[str, list[str]]) -> None:
    domains_with = Counter(name for classes in classes_of.values() for name in classes)
    partial = {name for name, count in domains_with.items() if count < len(classes_of)}
    if not partial:
        return
    lacking = [
        f"{domain!r} has no {_few(sorted(partial - set(classes)))}"
        for domain, classes in classes_of.items()
        if partial - set(classes)
    ]
    raise UsageError(
        f"the domains of {folder} have different classes: {'; '.join(lacking)}; "
        "every domain needs the same class folders"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _manifest(listing: Listing) -> pd.DataFrame:
    domains, classes = sorted({row[0] for row in listing}), sorted({row[1] for row in listing})
    return pd.DataFrame(
        {
            "y": pd.Categorical([name for _, name, _ in listing], classes),
            "domain": pd.Categorical([domain for domain, _, _ in listing], domains),
            "path": [file.path for _, _, file in listing],
            "bytes": np.array([file.bytes for _, _, file in listing], dtype=np.int64),
        }
    )


def _refuse_empty(folder: Path, manifest: pd.DataFrame) -> None:
    counts = manifest.groupby(["domain", "y"], observed=False).size()
    if len(empty := counts[counts == 0]):
        domain, name = empty.index[0]
        raise UsageError(
            f"{folder / domain / name} holds no readable image; add some or remove the class everywhere"
        )
