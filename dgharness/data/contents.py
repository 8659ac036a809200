"""A hash of what each example holds, whatever kind of example it is: equal content, equal hash.

Images are compared as files, byte by byte; texts and tensors as they are.

Shapes: M rows of the manifest, N of a chunk, B bytes of one example.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, InMemory

CHUNK = 4096  # examples read at once
NONE = 0  # the hash of a file that cannot be read


@dataclass(frozen=True)
class Contents:
    """``hash_M`` (uint64) is equal where contents are, and 0 where there is none to compare.

    ``not_finite_M`` says which examples hold a NaN or an infinity.
    """

    hash_M: np.ndarray
    not_finite_M: np.ndarray
    unreadable: Mapping[str, str] = field(default_factory=dict)  # file -> why


def contents(dataset: Dataset, root: Path | None = None) -> Contents:
    """Of every row of the manifest; ``root`` is where its paths lie, if the dataset does not know.

    Texts have been hashed when they were read. What is neither file, text nor tensor is hashed example by
    example.
    """
    manifest = dataset.manifest
    no_M = np.zeros(len(manifest), dtype=bool)
    if (folder := dataset.folder or root) is not None and "path" in manifest:
        hash_M, unreadable = _file_hashes(folder, manifest["path"].tolist())
        return Contents(hash_M, no_M, unreadable)
    if "text_hash" in manifest:
        return Contents(manifest["text_hash"].to_numpy().view(np.uint64), no_M)
    hashes, not_finite = [], []
    for index_N in torch.arange(len(manifest)).split(CHUNK if isinstance(dataset.reader, InMemory) else 256):
        x = dataset.reader(index_N)
        if isinstance(x, Tensor) and len(x) == len(index_N):
            x = x.cpu().flatten(1) if x.dim() > 1 else x.cpu()[:, None]
            hashes.append(_row_hashes(x))
            not_finite.append(~x.isfinite().all(1).numpy())
        else:
            ones = [_bytes(dataset.reader(index_N[n : n + 1])) for n in range(len(index_N))]
            hashes.append(np.array([_digest(one) for one in ones], dtype=np.uint64))
            not_finite.append(np.zeros(len(ones), dtype=bool))
    return Contents(np.concatenate(hashes), np.concatenate(not_finite))


def _file_hashes(folder: Path, paths: list[str]) -> tuple[np.ndarray, dict[str, str]]:
    """Only files of equal size are read; the same file named twice is equal to itself."""
    unreadable: dict[str, str] = {}
    place_M, found = pd.factorize(np.array(paths, dtype=object))
    different = [str(path) for path in found]

    def looked_at(path: str, look: Any) -> int:
        try:
            return int(look(f"{folder}/{path}"))
        except OSError as error:
            unreadable[path] = error.strerror or type(error).__name__
            return -1

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = pd.Series(list(pool.map(lambda path: looked_at(path, os.path.getsize), different)))
        twice = sizes.duplicated(keep=False) & (sizes >= 0)
        hash_F = np.arange(1, len(different) + 1, dtype=np.uint64)  # a file is equal to itself alone
        alike = np.flatnonzero(twice)
        read = pool.map(lambda number: looked_at(different[number], _file_digest), alike)
        hash_F[alike] = [max(digest, NONE) for digest in read]
    hash_F[(sizes < 0).to_numpy()] = NONE
    return hash_F[place_M], unreadable


def _file_digest(path: str) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(hashlib.file_digest(file, "sha256").digest()[:8], "little")


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _row_hashes(x_NK: Tensor) -> np.ndarray:
    """Of each row of a tensor, through its bytes, padded to whole words of 64 bits.

    >>> hashes = _row_hashes(torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]))
    >>> hashes[0] == hashes[2], hashes[0] == hashes[1]
    (np.True_, np.False_)
    """
    bytes_NB = x_NK.contiguous().view(torch.uint8).numpy()
    bytes_NB = np.pad(bytes_NB, [(0, 0), (0, -bytes_NB.shape[1] % 8)])
    words = pd.DataFrame(np.ascontiguousarray(bytes_NB).view(np.uint64))
    return pd.util.hash_pandas_object(words, index=False).to_numpy()


def _bytes(value: Any) -> bytes:
    """Whatever a reader gives for one example, written out."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _bytes(value[key]) for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return b"".join(map(_bytes, value))
    if hasattr(value, "to_dict"):  # a graph
        return _bytes(value.to_dict())
    return repr(value).encode()
