"""A trained run as its diagnoses see it: the data that it had, and what its network makes of them.

Shapes: N examples looked at, D features, M rows of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dgharness.data.dataset import Dataset
from dgharness.data.protocols import Splits
from dgharness.data.shift import NO_ATTRIBUTES
from dgharness.errors import NotApplicable

EXAMPLES = 3000  # that are looked at in all, the same number of every domain
HELD_OUT = ("val", "id_val", "test", "id_test")  # the part of a target that is the oracle's stays its own


@dataclass(frozen=True)
class Sample:
    """Features of some examples that the run was not trained on, of as many domains as have any."""

    row_N: np.ndarray  # of the manifest
    features_ND: np.ndarray  # float64
    domain_N: np.ndarray  # numbers into ``domains``
    domains: tuple[str, ...]
    trained_on: tuple[bool, ...]  # of each domain: is it a training domain?


@dataclass(frozen=True)
class Trained:
    """One checkpoint of a finished run, on the device that it is to be looked at.

    ``encode(rows)`` gives the features [N, D] of rows of the manifest, on the CPU in float32, and
    ``inputs(rows)`` what the model takes of them, on the device and never augmented.
    """

    run_id: str
    checkpoint: str  # "last", or the rule that chose it
    dataset: Dataset
    splits: Splits
    seed: int
    predictor: Any
    encode: Callable[[np.ndarray], Tensor]
    inputs: Callable[[np.ndarray], Any]

    @cached_property
    def sample(self) -> Sample:
        """The examples by which the features are judged, drawn once for all diagnoses."""
        rows_by_domain = held_out(self.splits)
        each = max(1, EXAMPLES // len(rows_by_domain))
        random = np.random.default_rng(self.seed)
        drawn = [np.sort(random.permutation(rows)[:each]) for rows in rows_by_domain.values()]
        row_N = np.concatenate(drawn)
        return Sample(
            row_N,
            self.encode(row_N).double().numpy(),
            np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn]),
            tuple(rows_by_domain),
            tuple(name in self.splits.rows["train"] for name in rows_by_domain),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, none where the task has none."""
        if self.dataset.task.name != "classification":
            return ()
        return tuple(str(name) for name in self.dataset.manifest["y"].cat.categories)


def held_out(splits: Splits) -> dict[str, np.ndarray]:
    """Manifest rows of every domain that were not trained on, first the training domains.

    >>> part = lambda **rows: {name: np.array(of_domain) for name, of_domain in rows.items()}
    >>> found = held_out(Splits({"train": part(a=[0, 1]), "val": part(a=[2]), "test": part(a=[3], b=[4])}))
    >>> {name: rows.tolist() for name, rows in found.items()}
    {'a': [2, 3], 'b': [4]}
    """
    parts = [splits.rows[split] for split in HELD_OUT if split in splits.rows]
    everywhere = dict.fromkeys([*splits.rows["train"], *(name for part in parts for name in part)])
    rows = {name: [part[name] for part in parts if name in part] for name in everywhere}
    return {name: np.unique(np.concatenate(found)) for name, found in rows.items() if found}


def attributes(dataset: Dataset) -> dict[str, pd.Series]:
    """The categorical columns of the manifest that are neither label nor domain nor split, hidden or not."""
    columns = dataset.manifest.select_dtypes("category")
    return {str(name): column for name, column in columns.items() if name not in NO_ATTRIBUTES}


def need_classes(trained: Trained, name: str) -> None:
    """NotApplicable where the task has no classes."""
    if not trained.classes:
        raise NotApplicable(
            f"{name} needs classes, and {trained.dataset.name} is {trained.dataset.task.name}"
        )


def need_domains(sample: Sample, name: str) -> None:
    """NotApplicable where there are no two domains to be told apart."""
    if len(sample.domains) < 2:
        raise NotApplicable(f"{name} needs two domains, and there is {sample.domains[0]!r} alone")
