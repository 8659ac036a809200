"""A trained run as its diagnoses see it: the data that it had, and what its network makes of them.

Shapes: N examples looked at, D features, M rows of the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dgharness.data.dataset import Dataset
from dgharness.data.protocols import Splits
from dgharness.data.shift import NO_ATTRIBUTES
from dgharness.errors import NotApplicable

EXAMPLES = 3000  # that are looked at in all, the same number of every domain
DOMAINS = 40  # that are looked at, half of them targets
HELD_OUT = ("val", "id_val", "test", "id_test")  # the part of a target that is the oracle's stays its own
SAMPLED = (
    f"On at most {EXAMPLES} examples that were not trained on, of each domain at most an equal share, and "
    f"on at most {DOMAINS} domains."
)


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
        everywhere, train = held_out(self.splits), self.splits.rows["train"]
        kept = shown({name: len(rows) for name, rows in everywhere.items()}, set(train), DOMAINS)
        rows_by_domain = {name: everywhere[name] for name in kept}
        each = max(1, EXAMPLES // len(rows_by_domain))
        random = np.random.default_rng(self.seed)
        drawn = [np.sort(random.permutation(rows)[:each]) for rows in rows_by_domain.values()]
        row_N = np.concatenate(drawn)
        return Sample(
            row_N,
            self.encode(row_N).double().numpy(),
            np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn]),
            tuple(rows_by_domain),
            tuple(name in train for name in rows_by_domain),
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


def shown(counts: Mapping[str, int], trained_on: Collection[str], most: int) -> list[str]:
    """Of many domains the largest, training domains and targets by turns, in the order that they had.

    >>> shown({"a": 5, "b": 9, "c": 7, "d": 1, "e": 2}, trained_on=["a", "b", "c"], most=3)
    ['b', 'c', 'e']
    """
    by_size = sorted(counts, key=lambda name: -counts[name])
    training = [name for name in by_size if name in trained_on]
    targets = [name for name in by_size if name not in trained_on]
    turns = [name for pair in zip_longest(training, targets) for name in pair if name is not None]
    return [name for name in counts if name in turns[:most]]


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
