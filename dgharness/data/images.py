"""Images as every image dataset reads them: decoded once into a uint8 cache, fetched by index.

``image_dataset`` turns a manifest with a column ``path`` into a dataset; what is particular to a source is
its manifest alone.

Shapes: M images, N of a batch, H x W pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.augmentation import augment
from dgharness.data.dataset import Dataset, Defaults
from dgharness.data.image_cache import Decoded, Fit, ImageFile, decode, decoded, default_cache_dir
from dgharness.data.tasks import Task, classification
from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained weights expect
CHUNK = 8192  # files whose size and time are asked for by one thread at a time

PHOTOGRAPHS = Defaults(model="resnet50", steps=5000, eval_every=300)

log = logging.getLogger(__name__)


class ImageOptions(Hparams):
    """How images are decoded and augmented."""

    size: Annotated[int, Field(ge=1)] = 224
    """Side in pixels to which every image is brought."""
    augment: bool = True
    """DomainBed's random crop, flip, colour jitter and grayscale, in training only."""
    cache: bool = True
    """Keep decoded images on disk. Without, every image is decoded whenever it is drawn, which is slow and
    takes no disk: a cache has 3 x size x size bytes for each image."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default .dgharness-cache under the user's cache directory."""
    skip_unreadable: bool = False
    """Leave out images that cannot be decoded, with a warning, instead of stopping."""


def image_dataset(
    name: str,
    root: Path,
    manifest: pd.DataFrame,
    options: ImageOptions,
    *,
    files: Sequence[ImageFile] | None = None,
    fit: Fit = "squash",
    task: Task | None = None,
    defaults: Defaults = PHOTOGRAPHS,
    **fields: Any,
) -> Dataset:
    """A dataset of the images at ``manifest["path"]``, relative to ``root``.

    ``fit`` makes a square of an image: ``squash`` ignores its proportions, ``centre`` takes the largest one
    in its middle, ``crop`` one from its middle after the shorter side was brought to 256/224 of it, and
    ``squash-crop`` the same after both sides were. Paths that leave the root, missing files and unreadable
    images are UsageErrors that name the row.
    The column ``bytes`` is added: it lets the digest notice a file that was replaced under its old name by
    one of another size. One of the very same size is decoded anew and leaves the digest as it was.
    """
    files = image_files(root, manifest["path"].tolist()) if files is None else files
    augmentation = fields.pop("augment", augment)
    manifest = manifest.assign(bytes=np.array([file.bytes for file in files], dtype=np.int64))
    if not options.cache:
        if options.skip_unreadable:
            raise UsageError(
                "data.skip_unreadable needs the cache, where images are decoded before training; drop one of "
                "data.skip_unreadable=true and data.cache=false"
            )
        pixels = Decoded(root, {})
    else:
        place = options.cache_dir or default_cache_dir()
        pixels = decoded(root, files, options.size, place, options.skip_unreadable, fit)
    if pixels.unreadable:
        log.warning("%d unreadable images of %s are left out", len(pixels.unreadable), root)
    kept = np.setdiff1d(np.arange(len(files), dtype=np.int64), np.array([*pixels.unreadable], dtype=np.int64))
    return Dataset(
        name=name,
        manifest=manifest.iloc[kept].reset_index(drop=True),
        reader=MemoryMapped(pixels.file, kept) if options.cache else Decoding(root, files, options.size, fit),
        task=task or classification(len(manifest["y"].cat.categories)),
        input_shape=(3, options.size, options.size),
        profile="large",
        defaults=defaults,
        prepare=fields.pop("prepare", standardise),
        augment=augmentation if options.augment else None,
        folder=root,
        unreadable={row: f"{files[row].path} ({reason})" for row, reason in pixels.unreadable.items()},
        source_M=kept,
        **fields,
    )


def image_files(
    root: Path, paths: Sequence[str], place: Callable[[int], str] = "row {}".format
) -> list[ImageFile]:
    """Size and time of every file; a UsageError names the first row whose file is elsewhere or missing.

    ``place`` says where a row stands.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}, where the images are expected")
    for row, path in enumerate(paths):
        if path.startswith(("/", "\\")) or (".." in path and ".." in Path(path).parts):
            raise UsageError(
                f"{place(row)} names the image {path!r}, which leaves the folder {root}; "
                "give paths relative to it, without .."
            )
    chunks = [range(start, min(start + CHUNK, len(paths))) for start in range(0, len(paths), CHUNK)]

    missing: dict[int, str] = {}

    def stated(rows: range) -> list[ImageFile]:
        found = []
        for row in rows:
            try:
                state = os.stat(f"{root}/{paths[row]}")
            except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
                missing[row] = getattr(error, "strerror", None) or str(error)
            else:
                found.append(ImageFile(paths[row], state.st_size, state.st_mtime_ns))
        return found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = [file for found in pool.map(stated, chunks) for file in found]
    if missing:
        row = min(missing)
        more = f" ({len(missing) - 1} more of {len(paths)} are missing)" if len(missing) > 1 else ""
        raise UsageError(
            f"{place(row)} names the image {paths[row]!r}, which is not in {root} ({missing[row]}){more}; "
            "put it there or take the row out"
        )
    return files


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


class Decoding:
    """A reader that decodes image files whenever they are asked for, [N, 3, H, W] uint8."""

    def __init__(self, root: Path, files: Sequence[ImageFile], size: int, fit: Fit) -> None:
        self.root, self.files, self.size, self.fit = root, files, size, fit

    def __call__(self, index_N: Tensor) -> Tensor:
        paths = [self.root / self.files[row].path for row in index_N.tolist()]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(decode, paths, [self.size] * len(paths), [self.fit] * len(paths)))
        for path, pixels in zip(paths, found, strict=True):
            if isinstance(pixels, str):
                raise UsageError(f"the image {path} cannot be read ({pixels}); mend it or take its row out")
        return torch.from_numpy(np.stack(found))

    def to(self, device: torch.device) -> Decoding:
        return self


def standardise(x_N3HW: Tensor) -> Tensor:
    """Values 0..255 to ImageNet's zero mean and unit variance per channel; floats are overwritten."""
    scale, shift = _scale_and_shift(x_N3HW.device)
    return x_N3HW.float().mul_(scale).add_(shift)


@cache
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (MEAN, STD))
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
