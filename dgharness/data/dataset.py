"""A dataset: a manifest (one row per example), a reader (rows to inputs) and a task.

Labels and metadata never require decoding an image: domains, groups, splits, class weights and the digest
all come from the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.tasks import Task
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
class Defaults:
    """What a run on this dataset does unless it is told otherwise."""

    model: str = "mlp"
    steps: int = 5000
    eval_every: int = 100
    protocol: str = "leave-one-domain-out"
    sampler: str = "by-domain"
    targets: tuple[str, ...] = ()  # held out where none is named; () is the last domain
    rows: int | None = None  # of a batch, where a row of every domain would be too many
    batch_size: int | None = None  # examples per row of a batch, where those of the profile would be too many


@dataclass(frozen=True)
class Dataset:
    """Manifest columns: ``y`` and ``domain`` (categorical, in their official order), then attributes.

    Attributes are categorical or float. A missing category is unknown. In regression ``y`` is a float, NaN
    where it is unknown. Where an example has several labels, ``targets`` holds them [M, ...], and ``y`` is
    whatever one column can say of them. A column ``split`` is the split of the protocols that have one, and
    no attribute; rows of the split ``unlabeled`` have no known ``y``.

    ``official(kept outputs, rows)`` is the evaluation of whoever published the dataset, by its own names, and
    ``official_metric`` the one of them that it is judged by.
    """

    name: str
    manifest: pd.DataFrame
    reader: Reader
    task: Task
    input_shape: tuple[int, ...]  # of one prepared example
    profile: Literal["small", "large"] = "small"
    defaults: Defaults = Defaults()
    groups: tuple[str, ...] = ("y",)  # columns whose product is the subpopulations in the metrics
    train_groups: tuple[str, ...] = ("domain",)  # ... and those that algorithms see
    hidden: tuple[str, ...] = ()  # attributes that metrics know and algorithms do not
    prepare: Callable[[Any], Any] = lambda x: x  # raw batch to what the model takes, on the device
    fit: Callable[[np.ndarray], Callable[[Any], Any]] | None = None  # rows to train on -> their ``prepare``
    augment: Callable[[Any, torch.Generator], Any] | None = None  # raw batch, in training only
    views: Mapping[str, Callable[[Any, torch.Generator], Any]] = field(default_factory=dict)
    toy: bool = False
    targets: Tensor | None = None
    official: Callable[[Tensor, np.ndarray], Mapping[str, float]] | None = None
    official_metric: str = ""
    official_sign: Literal[1, -1] = 1  # times this, a larger official metric is better
    replicates: int = 0  # how many runs its leaderboard asks for; 0 where there is no such rule
    eval_batch: int | None = None  # examples scored at once, where those of the profile would be too many
    folder: Path | None = None  # what the column path is relative to
    unreadable: Mapping[int, str] = field(default_factory=dict)  # rows that were left out, and why
    source_M: np.ndarray | None = None  # the row of the source that a row is, where some were left out
    place: Callable[[int], str] = "row {}".format  # where a row of the source stands, in words

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.manifest["domain"].cat.categories)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs of a classification: the categories of ``y``, or else their numbers."""
        y, outputs = self.manifest["y"].dtype, self.task.outputs
        if isinstance(y, pd.CategoricalDtype) and len(y.categories) == outputs:
            return tuple(str(name) for name in y.categories)
        return tuple(map(str, range(outputs)))

    @cached_property
    def targets_M(self) -> Tensor:
        """Labels of all manifest rows: classes as int64 (-1 unknown), numbers as float32."""
        if self.targets is not None:
            return self.targets
        if pd.api.types.is_float_dtype(self.manifest["y"].dtype):
            return torch.from_numpy(self.manifest["y"].to_numpy(np.float32, copy=True))
        return torch.from_numpy(self.manifest["y"].cat.codes.to_numpy(np.int64, copy=True))

    @cached_property
    def domain_M(self) -> Tensor:
        return torch.from_numpy(self.manifest["domain"].cat.codes.to_numpy(np.int64, copy=True))

    @cached_property
    def attributes_M(self) -> dict[str, Tensor]:
        """Every attribute of all manifest rows that is not hidden: codes (-1 unknown), or float32."""
        attributes = {}
        for name in self.manifest.columns.drop(["y", "domain", "split", *self.hidden], errors="ignore"):
            column = self.manifest[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                attributes[name] = torch.from_numpy(column.cat.codes.to_numpy(np.int64, copy=True))
            elif pd.api.types.is_float_dtype(column.dtype):
                attributes[name] = torch.from_numpy(column.to_numpy(np.float32, copy=True))
        return attributes

    def source_row(self, row: int) -> int:
        """The row of the source, which may have rows that were left out, that a row of the manifest is."""
        return row if self.source_M is None else int(self.source_M[row])

    def where(self, row: int) -> str:
        """Where a row of the manifest stands in its source, in words."""
        return self.place(self.source_row(row))

    def rows_of(self, domain: str) -> np.ndarray:
        """Manifest rows of one domain, in manifest order."""
        return self._rows_by_domain[self.domain_number(domain)]

    @cached_property
    def _rows_by_domain(self) -> list[np.ndarray]:
        code_M = self.manifest["domain"].cat.codes.to_numpy()
        starts = np.bincount(code_M.astype(np.int64) + 1, minlength=len(self.domains) + 1).cumsum()
        return np.split(code_M.argsort(kind="stable"), starts)[1:-1]

    def domain_number(self, domain: str) -> int:
        """The position of a domain, or a UsageError that names the nearest."""
        if domain not in self._domain_numbers:
            raise UsageError(f"{self.name} has no domain {domain!r}; {did_you_mean(domain, self.domains)}")
        return self._domain_numbers[domain]

    @cached_property
    def _domain_numbers(self) -> dict[str, int]:
        return {domain: number for number, domain in enumerate(self.domains)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 digits) over every column's names and values, and the targets beside them."""
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
        if self.targets is not None:
            sha.update(np.ascontiguousarray(self.targets.numpy()).tobytes())
        return sha.hexdigest()[:16]


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
    layout: str = ""  # the files that are expected, for those who have to put them there
    counts: Mapping[str, int] = field(default_factory=dict)  # domain -> examples of the complete dataset
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # ... -> class -> examples
    absent_groups: tuple[str, ...] = ()  # of the metrics' groups, those that the complete dataset lacks
    doc: str = ""
    version: int = 1
    api: int = API_VERSION
    group: ClassVar[str] = "datasets"
