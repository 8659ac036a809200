"""MNIST, and what has its format, from the files that torchvision keeps under ROOT/MNIST/raw."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgharness.errors import UsageError
from dgharness.hparams import Hparams

FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


class MnistOptions(Hparams):
    """Where the images come from."""

    download: bool = False
    """Fetch the files into the data root when they are missing."""


def read_mnist(
    name: str, root: Path | None, download: bool = False, family: str = "MNIST"
) -> tuple[Tensor, Tensor]:
    """Images [70000, 28, 28] as uint8 and labels [70000]: the training part, then the test part.

    ``name`` is the dataset that asks, for the messages; ``family`` may be ``FashionMNIST``, whose files are
    of the same names and sizes. Missing or damaged files are a UsageError.
    """
    if root is None:
        raise UsageError(
            f"{name} needs --data-root DIR with {family}'s files in DIR/{family}/raw: {', '.join(FILES)}"
        )
    raw = root / family / "raw"
    if download and _missing(raw):
        _download(name, root, family)
    if missing := _missing(raw):
        raise UsageError(
            f"{name} misses {', '.join(missing)} in {raw}; put {family}'s files there, unpacked, "
            "or allow the download with --set data.download=true"
        )
    train_images, train_labels, test_images, test_labels = (
        _read(raw / file, shape) for file, shape in FILES.items()
    )
    images_NHW = torch.from_numpy(np.concatenate([train_images, test_images]))
    return images_NHW, torch.from_numpy(np.concatenate([train_labels, test_labels])).long()


def _missing(raw: Path) -> list[str]:
    return [file for file in FILES if not (raw / file).is_file()]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    # The header is a magic number and one big-endian 32-bit length per axis.
    content = np.fromfile(path, dtype=np.uint8)
    header = 4 * (1 + len(shape))
    if content.size != header + np.prod(shape):
        raise UsageError(f"{path} is not MNIST's file of {np.prod(shape) + header} bytes; fetch it again")
    return content[header:].reshape(shape)


def _download(name: str, root: Path, family: str) -> None:
    from torchvision import datasets

    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for data
            getattr(datasets, family)(str(root), download=True)
    except (OSError, RuntimeError) as error:  # the network is an OSError, a damaged file a RuntimeError
        raise UsageError(
            f"{name} could not be downloaded to {root} ({' '.join(str(error).split())}); "
            f"put {', '.join(FILES)} into {root / family / 'raw'}"
        ) from error
