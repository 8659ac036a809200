"""The 1,797 handwritten digits that come with scikit-learn: small, real, always there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

BRIGHTEST = 16  # of the original values
DIGITS = tuple("0123456789")


def bundled_digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 8, 8] as uint8 over 0..255, and the digits [1797].

    Source: scikit-learn's copy of the test part of the UCI handwritten digits.
    """
    table = _table()
    pixels = np.round(table[:, :-1] * (255 / BRIGHTEST)).astype(np.uint8)
    return torch.from_numpy(pixels).reshape(-1, 8, 8), torch.from_numpy(table[:, -1].astype(np.int64))


def _table() -> np.ndarray:
    # Reading the file itself takes milliseconds; importing sklearn.datasets takes a second.
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def brightness(x: Tensor) -> Tensor:
    """Pixels 0..255 as floats in [0, 1].

    >>> brightness(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return x.float().div_(255)


def categorical(codes_N: Tensor, categories: Sequence[str]) -> pd.Categorical[str]:
    """A manifest column from its codes."""
    return pd.Categorical.from_codes(codes_N.numpy().astype(np.int64), pd.Index(categories))
