"""From rows of the manifest to inputs on the device: minibatches, evaluation, and the training data at large.

Shapes: E rows of a batch, B examples per row, N = E*B, K training domains, M rows of the manifest,
L training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, Reader
from dgharness.data.protocols import Splits
from dgharness.errors import did_you_mean
from dgharness.step import Batch


def training_domains(dataset: Dataset, splits: Splits) -> Tensor:
    """The number 0..K-1 of every manifest row's training domain, -1 in a target."""
    numbers = torch.full((len(dataset.domains),), -1)
    for number, name in enumerate(splits.train_domains):
        numbers[dataset.domain_number(name)] = number
    return numbers[dataset.domain_M]


def make_batch(
    dataset: Dataset,
    reader: Reader,
    index_EB: Tensor,
    domain_of_M: Tensor,
    group_M: Tensor,
    t: int,
    device: torch.device,
    augment_generator: torch.Generator | None = None,
) -> Batch:
    """Fetch the rows, augment them if a generator is given and the dataset does, prepare them on the device.

    ``domain_of_M`` numbers the training domains 0..K-1 and is -1 elsewhere.
    """
    x = _to(reader(index_EB.flatten()), device)
    if augment_generator is not None and dataset.augment is not None:
        x = dataset.augment(x, augment_generator)
    return Batch(
        x=dataset.prepare(x),
        targets_EB=_take(dataset.targets_M, index_EB, device),
        domain_EB=_take(domain_of_M, index_EB, device),
        group_EB=_take(group_M, index_EB, device),
        index_EB=index_EB.to(device),
        attributes={
            name: _take(column_M, index_EB, device) for name, column_M in dataset.attributes_M.items()
        },
        t=t,
    )


def batches(
    dataset: Dataset, reader: Reader, rows: np.ndarray, size: int, device: torch.device
) -> Iterator[Any]:
    """Prepared inputs of the rows in order, ``size`` at a time and never augmented."""
    for index_N in torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).split(size):
        yield dataset.prepare(_to(reader(index_N), device))


@dataclass(frozen=True, eq=False)
class TrainingSource:
    """Read-only access to the training data: the ``Source`` that methods see.

    ``domain_of_M`` and ``group_M`` are what training uses, which an annotator may have replaced.
    """

    dataset: Dataset
    reader: Reader
    splits: Splits
    domain_of_M: Tensor
    group_M: Tensor
    device: torch.device

    @cached_property
    def counts_K(self) -> Tensor:
        """Training examples of each domain."""
        return self.columns["domain"].bincount(minlength=len(self.splits.train_domains))

    @cached_property
    def columns(self) -> Mapping[str, Tensor]:
        """``y``, ``domain``, ``group``, ``index`` and every attribute, [L] each, domain by domain."""
        index_L = self._rows("train")
        columns_M = {
            **self.dataset.attributes_M,
            "y": self.dataset.targets_M,
            "domain": self.domain_of_M,
            "group": self.group_M,
        }
        columns = {name: _take(column_M, index_L, self.device) for name, column_M in columns_M.items()}
        return {**columns, "index": index_L.to(self.device)}

    def sample(self, where: Mapping[str, int], n: int, generator: torch.Generator) -> Batch:
        """``n`` training examples (one row, with replacement) whose columns equal ``where``.

        A column that does not exist, or a combination that no example has, is a ValueError.
        """
        matches_L = torch.ones(len(self.columns["index"]), dtype=torch.bool, device=self.device)
        for name, value in where.items():
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}; {did_you_mean(name, self.columns)}")
            matches_L &= self.columns[name] == value
        candidates = self.columns["index"][matches_L].cpu()
        if not len(candidates):
            stated = ", ".join(f"{name}={value}" for name, value in where.items())
            raise ValueError(f"no training example has {stated}")
        return self._batch(candidates[torch.randint(len(candidates), (n,), generator=generator)])

    def batches(self, split: Literal["train", "val"], size: int) -> Iterator[Batch]:
        """Every example of a split once, in order and without augmentation; one row per batch."""
        for index_N in self._rows(split).split(size):
            yield self._batch(index_N)

    def _rows(self, split: str) -> Tensor:
        return torch.from_numpy(np.concatenate(list(self.splits.rows[split].values())))

    def _batch(self, index_N: Tensor) -> Batch:
        return make_batch(
            self.dataset, self.reader, index_N[None], self.domain_of_M, self.group_M, 0, self.device
        )


def _take(column_M: Tensor, index: Tensor, device: torch.device) -> Tensor:
    return column_M[index.to(column_M.device)].to(device)


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Mapping):
        return {name: _to(value, device) for name, value in x.items()}
    return x.to(device) if hasattr(x, "to") else x
