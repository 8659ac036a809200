"""A dataset: a manifest (one row per example), a reader (rows to inputs) and a task.

Labels and metadata never require decoding an image: domains, groups, splits, class weights and the digest
all come from the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import Hparams
from dgharness.plugin import API_VERSION


class Reader(Protocol):
    """Rows of the manifest to a batch of raw inputs, on whatever device holds them."""

    def __call__(self, index_N: Tensor) -> Any: ...

    def to(self, device: torch.device) -> Reader:
        """The same reader, with its data on the device if it lives in memory."""
        ...


@dataclass(frozen=True)
class Task:
    """What the outputs mean: how they are scored and read."""

    name: str
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]  # (logits [..., C], targets [...]) -> loss per example [...]
    predict: Callable[[Tensor], Tensor]  # logits [..., C] -> predictions [...]


def classification(outputs: int) -> Task:
    """Classes: cross-entropy, arg-max."""
    return Task("classification", outputs, cross_entropy, lambda logits: logits.argmax(-1))


def regression(outputs: int = 1) -> Task:
    """Numbers: squared error; several outputs are each held to the target."""
    return Task("regression", outputs, squared_error, lambda outputs: outputs.mean(-1))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per example, of [..., C] and [...].

    >>> cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)).shape
    torch.Size([2, 3])
    """
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.unflatten(0, targets.shape)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error per example, of [..., C] and [...], averaged over the outputs; 0 where a target is NaN.

    >>> squared_error(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, torch.nan]))
    tensor([4., 0.])
    """
    error = outputs - targets.nan_to_num().unsqueeze(-1)
    return torch.where(targets.isnan().unsqueeze(-1), 0.0, error).square().mean(-1)


@dataclass(frozen=True)
class Defaults:
    """What a run on this dataset does unless it is told otherwise."""

    model: str = "mlp"
    steps: int = 5000
    eval_every: int = 100
    protocol: str = "leave-one-domain-out"


@dataclass(frozen=True)
class Dataset:
    """Manifest columns: ``y`` and ``domain`` (categorical, in their official order), then attributes.

    Attributes are categorical or float. A missing category is unknown. In regression ``y`` is a float, NaN
    where it is unknown. A column ``split`` is the split of the protocol ``official``, and no attribute.
    """

    name: str
    manifest: pd.DataFrame
    reader: Reader
    task: Task
    input_shape: tuple[int, ...]  # of one prepared example
    profile: Literal["small", "large"] = "small"
    defaults: Defaults = Defaults()
    groups: tuple[str, ...] = ("y",)  # columns whose product is the subpopulations
    prepare: Callable[[Any], Any] = lambda x: x  # raw batch to what the model takes, on the device
    augment: Callable[[Any, torch.Generator], Any] | None = None  # raw batch, in training only
    views: Mapping[str, Callable[[Any, torch.Generator], Any]] = field(default_factory=dict)
    toy: bool = False

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.manifest["domain"].cat.categories)

    @cached_property
    def targets_M(self) -> Tensor:
        """Labels of all manifest rows: classes as int64, numbers as float32."""
        if pd.api.types.is_float_dtype(self.manifest["y"].dtype):
            return torch.from_numpy(self.manifest["y"].to_numpy(np.float32, copy=True))
        return torch.from_numpy(self.manifest["y"].cat.codes.to_numpy(np.int64, copy=True))

    @cached_property
    def domain_M(self) -> Tensor:
        return torch.from_numpy(self.manifest["domain"].cat.codes.to_numpy(np.int64, copy=True))

    @cached_property
    def attributes_M(self) -> dict[str, Tensor]:
        """Every attribute of all manifest rows: codes of a category (-1 unknown), float32 of a number."""
        attributes = {}
        for name in self.manifest.columns.drop(["y", "domain", "split"], errors="ignore"):
            column = self.manifest[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                attributes[name] = torch.from_numpy(column.cat.codes.to_numpy(np.int64, copy=True))
            elif pd.api.types.is_float_dtype(column.dtype):
                attributes[name] = torch.from_numpy(column.to_numpy(np.float32, copy=True))
        return attributes

    def rows_of(self, domain: str) -> np.ndarray:
        """Manifest rows of one domain, in manifest order."""
        return np.flatnonzero(self.manifest["domain"].cat.codes.to_numpy() == self.domain_number(domain))

    def domain_number(self, domain: str) -> int:
        """The position of a domain, or a UsageError that names the nearest."""
        if domain not in self.domains:
            raise UsageError(f"{self.name} has no domain {domain!r}; {did_you_mean(domain, self.domains)}")
        return self.domains.index(domain)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 digits) over every column's names and values."""
        sha = hashlib.sha256()
        for name in self.manifest.columns:
            column = self.manifest[name]
            sha.update(str(name).encode())
            if isinstance(column.dtype, pd.CategoricalDtype):
                sha.update("\0".join(map(str, column.cat.categories)).encode())
                column = column.cat.codes.astype("int64")
            if pd.api.types.is_numeric_dtype(column.dtype):
                sha.update(np.ascontiguousarray(column.to_numpy()).tobytes())
            else:
                sha.update("\0".join(map(str, column)).encode())
        return sha.hexdigest()[:16]


@dataclass(frozen=True)
class Grouping:
    """A partition of the manifest rows into the product of some columns; -1 where one is unknown."""

    names: tuple[str, ...]
    group_M: Tensor

    def __len__(self) -> int:
        return len(self.names)


def grouping(manifest: pd.DataFrame, columns: Sequence[str]) -> Grouping:
    """Group rows by the product of categorical columns, the first column varying slowest.

    >>> table = pd.DataFrame({"y": pd.Categorical(["a", "b", "b"]), "c": pd.Categorical(["r", "g", "r"])})
    >>> grouping(table, ["y", "c"]).names
    ('y=a,c=g', 'y=a,c=r', 'y=b,c=g', 'y=b,c=r')
    >>> grouping(table, ["y", "c"]).group_M
    tensor([1, 2, 3])
    """
    usable = [name for name in manifest.columns if isinstance(manifest[name].dtype, pd.CategoricalDtype)]
    names, code_M = [""], np.zeros(len(manifest), dtype=np.int64)
    for column in columns:
        if column not in usable:
            raise UsageError(f"cannot group by {column!r}; {did_you_mean(column, usable)}")
        levels = manifest[column].cat.categories
        own_M = manifest[column].cat.codes.to_numpy(np.int64)
        code_M = np.where((code_M < 0) | (own_M < 0), -1, code_M * len(levels) + own_M)
        names = [f"{left},{column}={level}".lstrip(",") for left in names for level in levels]
    return Grouping(tuple(names), torch.from_numpy(code_M))


class InMemory:
    """A reader of inputs that live in one tensor [M, ...]: fetching is indexing."""

    def __init__(self, x_M: Tensor) -> None:
        self.x_M = x_M

    def __call__(self, index_N: Tensor) -> Tensor:
        return self.x_M.index_select(0, index_N.to(self.x_M.device))

    def to(self, device: torch.device) -> InMemory:
        return InMemory(self.x_M.to(device))


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset as the registry holds it.

    ``load(argument, root, seed, options)``: the part of the name after the colon, the data root, the trial
    seed for what is generated, and the dataset's own options. Missing data is a UsageError that says what
    to put where.
    """

    load: Callable[[str | None, Path | None, int, Any], Dataset]
    options: type[Hparams] = Hparams
    argument: str | None = None  # what stands after the colon, for the help: "PATH"
    doc: str = ""
    version: int = 1
    api: int = API_VERSION
    group: ClassVar[str] = "datasets"
