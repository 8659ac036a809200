"""``corrupted:DATASET``: any dataset of RGB images, tested under the common corruptions.

Training and validation are the dataset's own. Every test row stands once for every corruption and severity,
in domains such as ``gaussian-noise-3``, and once as it is, in the split ``id_test``; the domain that it came
from is the attribute ``original_domain``. A dataset without a split of its own gets one: a part of every
domain for the test, and as much for validation.

Paper: Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations, ICLR 2019
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from dgharness import registry
from dgharness.data.corruptions import Table, corrupt
from dgharness.data.dataset import Dataset, DatasetSpec, Reader
from dgharness.data.protocols import OFFICIAL
from dgharness.data.suites import CorruptionErrors, CorruptionOptions, chosen_corruptions, domain_name
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.seeds import generator

UNCORRUPTED = -1


class CorruptedOptions(CorruptionOptions):
    """The corruptions. Further keys are options of the dataset itself."""

    model_config = ConfigDict(extra="allow")

    parameters: Table = "auto"
    """Whose parameters: imagenet-c, cifar-10-c, or auto for the latter up to a side of 64 pixels."""
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Part of every domain for the test, and as much for validation, if the dataset has no own split."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: CorruptedOptions) -> Dataset:
    """Load the dataset that the argument names, and add the corrupted test rows to it."""
    if not argument:
        raise UsageError("corrupted needs a dataset, as in corrupted:domainbed:PACS or corrupted:folder:PATH")
    name, own_argument = registry.split_argument("datasets", argument)
    spec = registry.load("datasets", name)
    own_options = checked(spec.options, dict(options.model_extra or {}), "data")
    inner: Dataset = spec.load(own_argument or None, root, trial_seed, own_options)
    if "split" not in inner.manifest:
        manifest = inner.manifest.assign(split=holdout(inner, options.holdout, trial_seed))
        inner = dataclasses.replace(inner, manifest=manifest)
    return with_corrupted_tests(inner, options)


def with_corrupted_tests(inner: Dataset, options: CorruptedOptions) -> Dataset:
    """The suite of a dataset that has a split."""
    _refuse_other_than_rgb(inner)
    kinds = chosen_corruptions(options)
    row_M, kind_M = rows_and_kinds(inner, len(kinds))
    suite = dataclasses.replace(
        inner,
        name=f"corrupted:{inner.name}",
        manifest=_manifest(inner, row_M, kind_M, kinds),
        reader=CorruptedReader(
            inner.reader, torch.from_numpy(row_M), torch.from_numpy(kind_M), kinds, options.parameters
        ),
        targets=None if inner.targets is None else inner.targets[torch.from_numpy(row_M)],
        defaults=dataclasses.replace(inner.defaults, protocol="official", targets=()),
        official=None,
        official_metric="",
        replicates=0,
        folder=None,
        source_M=row_M if inner.source_M is None else inner.source_M[row_M],
    )
    if inner.task.name != "classification":
        return suite
    errors = CorruptionErrors(
        suite.targets_M,
        torch.ones(inner.task.outputs, dtype=torch.bool),
        suite.domain_M,
        {len(inner.domains) + number: corruption for number, (corruption, _) in enumerate(kinds)},
    )
    return dataclasses.replace(
        suite, official=errors, official_metric="mean_corruption_error", official_sign=-1
    )


def rows_and_kinds(dataset: Dataset, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row of the suite: which row of the dataset it shows, and the number of its corruption.

    Rows of no split are left out.
    """
    split_M = dataset.manifest["split"]
    clean, tested = np.flatnonzero(split_M.notna()), np.flatnonzero(split_M == "test")
    row_M = np.concatenate([clean, np.tile(tested, kinds)])
    return row_M, np.concatenate([np.full(len(clean), UNCORRUPTED), np.repeat(np.arange(kinds), len(tested))])


def _manifest(
    dataset: Dataset, row_M: np.ndarray, kind_M: np.ndarray, kinds: Sequence[tuple[str, int]]
) -> pd.DataFrame:
    shown = dataset.manifest.iloc[row_M].drop(columns=["path"], errors="ignore").reset_index(drop=True)
    split_M = shown["split"].astype(str)
    domain_M = np.where(kind_M == UNCORRUPTED, dataset.domain_M.numpy()[row_M], len(dataset.domains) + kind_M)
    names = [*dataset.domains, *(domain_name(*kind) for kind in kinds)]
    return shown.assign(
        domain=pd.Categorical.from_codes(domain_M, pd.Index(names)),
        split=pd.Categorical(
            split_M.mask((kind_M == UNCORRUPTED) & (split_M == "test"), "id_test"), OFFICIAL
        ),
        original_domain=shown["domain"],
    )


corrupted = DatasetSpec(
    load,
    CorruptedOptions,
    argument="DATASET",
    layout="that of the dataset; corruptions are computed when a row is read",
    doc=__doc__,
)


class CorruptedReader:
    """Reads rows of another reader and corrupts them; the kind of a row is -1 where it is left as it is."""

    def __init__(
        self,
        reader: Reader,
        row_M: Tensor,
        kind_M: Tensor,
        kinds: Sequence[tuple[str, int]],
        parameters: Table,
    ) -> None:
        self.reader, self.row_M, self.kind_M = reader, row_M, kind_M
        self.kinds, self.parameters = kinds, parameters

    def __call__(self, index_N: Tensor) -> Tensor:
        row_N, kind_N = self.row_M[index_N.cpu()], self.kind_M[index_N.cpu()]
        x_N3HW: Tensor = self.reader(row_N)
        if (kind_N == UNCORRUPTED).all():
            return x_N3HW
        done_N3HW = x_N3HW.cpu().clone()  # the same colours on every device
        for kind in kind_N[kind_N != UNCORRUPTED].unique().tolist():
            (name, severity), mine_N = self.kinds[kind], kind_N == kind
            done_N3HW[mine_N] = corrupt(
                done_N3HW[mine_N], row_N[mine_N].tolist(), name, severity, self.parameters
            )
        return done_N3HW.to(x_N3HW.device)

    def to(self, device: torch.device) -> CorruptedReader:
        return CorruptedReader(self.reader.to(device), self.row_M, self.kind_M, self.kinds, self.parameters)


def holdout(dataset: Dataset, share: float, trial_seed: int) -> np.ndarray:
    """``test`` for a random share of every domain, ``val`` for as much of it, and ``train`` for the rest."""
    order_M = torch.rand(len(dataset.manifest), generator=generator(trial_seed, "corrupted split")).numpy()
    domain_M = dataset.domain_M.numpy()
    rank_M = pd.Series(order_M).groupby(domain_M).rank(method="first").to_numpy() - 1
    apart_M = (np.bincount(domain_M) * share).astype(np.int64)[domain_M]
    return np.select([rank_M < apart_M, rank_M < 2 * apart_M], ["test", "val"], "train")


def _refuse_other_than_rgb(dataset: Dataset) -> None:
    x: Any = dataset.reader(torch.zeros(1, dtype=torch.int64))
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] != 3:
        found = (
            f"{str(x.dtype)[6:]} of shape {list(x.shape[1:])}" if isinstance(x, Tensor) else type(x).__name__
        )
        raise UsageError(
            f"{dataset.name} cannot be corrupted: corruptions are of uint8 images [3, height, width], and an "
            f"example of it is {found}"
        )
