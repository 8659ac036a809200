"""From rows of the manifest to inputs on the device: minibatches, evaluation, and the training data at large.

Shapes: E rows of a batch, B examples per row, N = E*B, K training domains, M rows of the manifest,
L training rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, Reader
from dgharness.data.protocols import Splits
from dgharness.errors import did_you_mean
from dgharness.step import Batch


def make_batch(
    dataset: Dataset,
    reader: Reader,
    index_EB: Tensor,
    domain_M: Tensor,
    group_M: Tensor,
    t: int,
    device: torch.device,
    augment_generator: torch.Generator | None = None,
    unlabeled_EB: Tensor | None = None,
) -> Batch:
    """Fetch the rows, augment them if a generator is given and the dataset does, prepare them on the device.

    ``domain_M`` numbers the training domains 0..K-1 and is -1 elsewhere. ``unlabeled_EB`` are rows whose
    inputs alone are shown, flat.
    """

    def fetched(index_EB: Tensor) -> Any:
        x = _to(reader(index_EB.flatten()), device)
        if augment_generator is not None and dataset.augment is not None:
            x = dataset.augment(x, augment_generator)
        return dataset.prepare(x)

    return Batch(
        x=fetched(index_EB),
        unlabeled=None if unlabeled_EB is None else fetched(unlabeled_EB),
        targets_EB=_take(dataset.targets_M, index_EB, device),
        domain_EB=_take(domain_M, index_EB, device),
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


class TrainingSource:
    """Read-only access to the training data: the ``Source`` that methods see.

    ``domain_M`` numbers the training domains 0..K-1 (-1 elsewhere) and ``group_M`` the groups; both cover
    the whole manifest, and ``annotated`` replaces them.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Splits,
        group_M: Tensor,
        device: torch.device,
        domain_names: Sequence[str],
        domain_M: Tensor | None = None,
    ) -> None:
        self.dataset, self.splits, self.group_M, self.device = dataset, splits, group_M, device
        self.reader = dataset.reader.to(device)
        self.domain_names = tuple(domain_names)
        self.domain_M = _numbered(dataset, self.domain_names) if domain_M is None else domain_M
        self.targets_M = dataset.targets_M
        self.index_L = _concatenated(splits, "train")
        columns_M = {**dataset.attributes_M, "y": self.targets_M, "domain": self.domain_M, "group": group_M}
        self.columns: Mapping[str, Tensor] = {
            "index": self.index_L.to(device),
            **{name: _take(column_M, self.index_L, device) for name, column_M in columns_M.items()},
        }
        self.counts_K = self.columns["domain"].bincount(minlength=self.num_domains)

    @property
    def num_domains(self) -> int:
        return len(self.domain_names)

    @property
    def num_groups(self) -> int:
        return int(self.group_M.max()) + 1

    def rows_by_domain(self, split: Literal["train", "val"]) -> list[np.ndarray]:
        """Manifest rows of each training domain. Annotated domains exist in ``train`` alone."""
        if split == "val":
            return list(self.splits.rows["val"].values())
        domain_L = self.domain_M[self.index_L]
        counts = torch.bincount(domain_L + 1, minlength=self.num_domains + 1).tolist()  # -1 first
        return [rows.numpy() for rows in self.index_L[domain_L.argsort(stable=True)].split(counts)[1:]]

    def annotated(self, found: Mapping[str, Tensor]) -> TrainingSource:
        """The same data with ``domain`` or ``group`` as found, one value per training row.

        Rows outside the training split become unknown (-1) in what was replaced.
        """
        found_M = {name: torch.full_like(self.targets_M, -1) for name in found}
        for name, column_L in found.items():
            if name not in ("domain", "group"):
                raise ValueError(f"an annotator may replace domain or group, not {name!r}")
            found_M[name][self.index_L] = column_L.long().cpu()
        domain_M = found_M.get("domain", self.domain_M)
        names = map(str, range(int(domain_M.max()) + 1)) if "domain" in found else self.domain_names
        return TrainingSource(
            self.dataset,
            self.splits,
            found_M.get("group", self.group_M),
            self.device,
            tuple(names),
            domain_M,
        )

    def sample(self, where: Mapping[str, int], n: int, generator: torch.Generator) -> Batch:
        """``n`` training examples (one row, with replacement) whose columns equal ``where``.

        A column that does not exist, or a combination that no example has, is a ValueError.
        """
        matches_L = torch.ones(len(self.index_L), dtype=torch.bool, device=self.device)
        for name, value in where.items():
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}; {did_you_mean(name, self.columns)}")
            matches_L &= self.columns[name] == value
        candidates = self.index_L[matches_L.cpu()]
        if not len(candidates):
            stated = ", ".join(f"{name}={value}" for name, value in where.items())
            raise ValueError(f"no training example has {stated}")
        return self._batch(candidates[torch.randint(len(candidates), (n,), generator=generator)])

    def batches(self, split: Literal["train", "val"], size: int) -> Iterator[Batch]:
        """Every example of a split once, in order and without augmentation; one row per batch."""
        for index_N in _concatenated(self.splits, split).split(size):
            yield self._batch(index_N)

    def _batch(self, index_N: Tensor) -> Batch:
        index_EB = index_N[None]
        return make_batch(
            self.dataset, self.reader, index_EB, self.domain_M, self.group_M, 0, self.device, None
        )


def _numbered(dataset: Dataset, domain_names: Sequence[str]) -> Tensor:
    numbers = torch.full((len(dataset.domains),), -1)
    for number, name in enumerate(domain_names):
        numbers[dataset.domain_number(name)] = number
    return numbers[dataset.domain_M]


def _concatenated(splits: Splits, split: str) -> Tensor:
    return torch.from_numpy(np.concatenate(list(splits.rows[split].values())))


def _take(column_M: Tensor, index: Tensor, device: torch.device) -> Tensor:
    return column_M[index.to(column_M.device)].to(device)


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, Mapping):
        return {name: _to(value, device) for name, value in x.items()}
    return x.to(device) if hasattr(x, "to") else x
