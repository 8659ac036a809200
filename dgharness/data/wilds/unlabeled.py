"""The unlabeled examples of WILDS 2.0, behind the labeled ones in one dataset.

Sagawa et al., *Extending the WILDS Benchmark for Unsupervised Adaptation* (2022).

Shapes: M rows of the manifest, N of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, Reader
from dgharness.data.wilds.load import Names, described
from dgharness.errors import UsageError


def unlabeled_manifest(
    dataset: Any, split: str, domain: Sequence[str], names: Names | None = None
) -> pd.DataFrame:
    """``domain`` and ``row`` (the example's number in ``dataset``) of one unlabeled split, as "test".

    No attributes: some of them are the label under another name.
    """
    splits = dataset.split_dict
    if f"{split}_unlabeled" not in splits:
        offered = ", ".join(name.removesuffix("_unlabeled") for name in splits)
        name = dataset.dataset_name.removesuffix("_unlabeled")
        raise UsageError(f"wilds:{name} has no unlabeled examples {split!r}; data.unlabeled may be {offered}")
    row_M = np.flatnonzero(np.asarray(dataset.split_array) == splits[f"{split}_unlabeled"])
    columns = described(dataset, domain, (), names)
    return pd.DataFrame({"domain": columns["domain"][row_M].remove_unused_categories(), "row": row_M})


def with_unlabeled(dataset: Dataset, manifest: pd.DataFrame, reader: Reader) -> Dataset:
    """The dataset with further rows at its end: of unknown ``y``, of the split ``unlabeled``.

    Columns that ``manifest`` lacks are unknown in them; domains of theirs alone come last.
    """
    own = dataset.manifest
    known, theirs = own["domain"].cat.categories, manifest["domain"].cat.categories
    dtypes = {name: dtype for name, dtype in own.dtypes.items() if isinstance(dtype, pd.CategoricalDtype)}
    dtypes["domain"] = pd.CategoricalDtype(known.append(theirs[~theirs.isin(known)]))
    further = manifest.reindex(columns=own.columns).assign(split="unlabeled").astype(dtypes)
    joined = pd.concat([own.astype({"domain": dtypes["domain"]}), further], ignore_index=True)
    return dataclasses.replace(
        dataset, manifest=joined, reader=Joined(dataset.reader, reader, len(own)), source_M=None
    )


class Joined:
    """A reader of the rows of one dataset and, from row ``size`` on, of another's."""

    def __init__(self, first: Reader, second: Reader, size: int) -> None:
        self.first, self.second, self.size = first, second, size

    def __call__(self, index_N: Tensor) -> Any:
        further_N = index_N >= self.size
        if not further_N.any():
            return self.first(index_N)
        if further_N.all():
            return self.second(index_N - self.size)
        x = torch.cat([self.first(index_N[~further_N]), self.second(index_N[further_N] - self.size)])
        place_N = torch.cat([(~further_N).nonzero(), further_N.nonzero()]).flatten()
        return torch.empty_like(x).index_copy_(0, place_N, x)

    def to(self, device: torch.device) -> Joined:
        return Joined(self.first.to(device), self.second.to(device), self.size)
