"""The files of CIFAR and of its corrupted versions, as they were published.

Of CIFAR itself the binary version is read, else the Python version by torchvision. That one is pickled: it is
opened only where every file has the published MD5.

Shapes: M rows, N of a batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgharness.data.corruptions import SEVERITIES
from dgharness.errors import UsageError

SIDE = 32


@dataclass(frozen=True)
class Cifar:
    """Where one of the two lies below the data root."""

    name: str
    corrupted: str  # folder of the arrays
    binary: str  # folder of the binary version
    train: tuple[str, ...]
    test: str
    class_names: str
    label_bytes: int  # before the pixels of an image; the last is the class
    python: str  # folder of the Python version
    torchvision: str

    @property
    def layout(self) -> str:
        return (
            f"{self.corrupted}/labels.npy and {self.corrupted}/<corruption>.npy (gaussian_noise.npy, ...); "
            f"{self.binary}/ ({', '.join([*self.train, self.test, self.class_names])}) or {self.python}/"
        )


@dataclass(frozen=True)
class Images:
    """Labelled images: uint8 [n, 3, 32, 32], in memory or mapped from a file, and int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray


def corrupted_images(
    root: Path, source: Cifar, corruptions: Sequence[str], classes: int
) -> dict[str, Images]:
    """The array of every corruption, mapped and not read: as many rows for each severity as for another."""
    folder = root / source.corrupted
    labels = _array(folder / "labels.npy", source).astype(np.int64)
    if labels.ndim != 1 or not len(labels) or len(labels) % len(SEVERITIES):
        raise UsageError(
            f"{folder / 'labels.npy'} has the shape {list(labels.shape)}, and equally many images of five "
            "severities are expected; put the published file there"
        )
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"row {int(np.argmax((labels < 0) | (labels >= classes)))} of {folder / 'labels.npy'} is outside "
            f"the {classes} classes of CIFAR; put the file of {source.corrupted} there"
        )
    found = {}
    for name in dict.fromkeys(corruptions):
        file = folder / f"{name.replace('-', '_')}.npy"
        pixels = _array(file, source)
        if pixels.shape != (len(labels), SIDE, SIDE, 3) or pixels.dtype != np.uint8:
            raise UsageError(
                f"{file} is {pixels.dtype} of shape {list(pixels.shape)}, and the labels are those of uint8 "
                f"images {[len(labels), SIDE, SIDE, 3]}; put the published file there"
            )
        found[name] = Images(pixels.transpose(0, 3, 1, 2), labels)
    return found


def _array(file: Path, source: Cifar) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(
            f"{source.name} is not complete: there is no {file}; expected: {source.layout}"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as an array ({error}); put the published file there"
        ) from None


def clean_images(root: Path, source: Cifar) -> tuple[list[Images], list[str]]:
    """CIFAR's own images, those of the test last, and the names of its classes."""
    if (root / source.binary).is_dir():
        folder = root / source.binary
        try:
            names = (folder / source.class_names).read_text().split()
            return [
                _records(folder / file, source, len(names)) for file in (*source.train, source.test)
            ], names
        except FileNotFoundError as error:
            raise UsageError(
                f"{source.name} is not complete: there is no {error.filename}; expected: {source.layout}"
            ) from None
    if not (root / source.python).is_dir():
        raise UsageError(
            f"{source.name} needs CIFAR's own images, and {root} has neither {source.binary}/ nor "
            f"{source.python}/; expected: {source.layout}"
        )
    from torchvision import datasets

    try:
        # It compares every file with its published MD5 before it opens the first.
        opened = [getattr(datasets, source.torchvision)(root, train=train) for train in (True, False)]
    except RuntimeError:
        raise UsageError(
            f"the files in {root / source.python} are not all there with the MD5 that was published, and "
            "other pickled files are not opened; unpack the archive anew, or the binary one as "
            f"{source.binary}/"
        ) from None
    clean = [Images(each.data.transpose(0, 3, 1, 2), np.asarray(each.targets)) for each in opened]
    return clean, list(opened[0].classes)


def _records(file: Path, source: Cifar, classes: int) -> Images:
    record = np.dtype([("labels", "u1", (source.label_bytes,)), ("pixels", "u1", (3, SIDE, SIDE))])
    if not (size := file.stat().st_size) or size % record.itemsize:
        raise UsageError(
            f"{file} has {size} bytes, which is no whole number of images of {record.itemsize} bytes: it is "
            "truncated; unpack the archive anew"
        )
    table = np.memmap(file, record, mode="r")
    labels = table["labels"][:, -1].astype(np.int64)
    if labels.max() >= classes:
        raise UsageError(
            f"row {int(np.argmax(labels >= classes))} of {file} has the label {labels.max()}, and there are "
            f"{classes} classes; unpack the archive anew"
        )
    return Images(table["pixels"], labels)


class Arrays:
    """A reader of images in several arrays [n, 3, H, W]; a row is (number of the array, position in it)."""

    def __init__(self, arrays: Sequence[np.ndarray], where_M2: Tensor) -> None:
        self.arrays, self.where_M2 = arrays, where_M2

    def __call__(self, index_N: Tensor) -> Tensor:
        part_N, position_N = self.where_M2[index_N.cpu()].unbind(1)
        x_N3HW = torch.empty(len(part_N), *self.arrays[0].shape[1:], dtype=torch.uint8)
        for part in part_N.unique().tolist():
            mine_N = part_N == part
            x_N3HW[mine_N] = torch.from_numpy(self.arrays[part][position_N[mine_N].numpy()])
        return x_N3HW

    def to(self, device: torch.device) -> Arrays:
        return self
