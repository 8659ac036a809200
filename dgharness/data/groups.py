"""Subpopulations: the product of some columns of the manifest, a partition in training.

Shapes: M rows of the manifest, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.errors import UsageError, did_you_mean

OVERLAP = "+"  # joins columns whose members may be in several groups at once: "male+female+black"
YES, NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}
NOBODY = -2  # as -1 is a row that is unknown


@dataclass(frozen=True)
class Grouping:
    """Groups of manifest rows: a number per row [M] (-1 unknown), or if they overlap who is in [M, G]."""

    names: tuple[str, ...]
    group_M: Tensor

    @property
    def counts_G(self) -> Tensor:
        """Examples of each group."""
        return self.counts(torch.arange(len(self.group_M)))

    def counts(self, index_N: Tensor) -> Tensor:
        """Examples of each group among these rows."""
        group = self.group_M[index_N]
        if group.dim() == 2:
            return group.sum(0)
        return torch.bincount(group[group >= 0], minlength=len(self.names))

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
            # Only a table of numbers has this column.
            features = "features_hash" in manifest and column not in manifest
            hint = f"; numbers are features unless told otherwise: --set data.attributes={column}"
            raise UsageError(
                f"cannot group by {column!r}; {did_you_mean(column, usable)}{hint if features else ''}"
            )
        levels = manifest[column].cat.categories
        own_M = manifest[column].cat.codes.to_numpy(np.int64)
        code_M = np.where((code_M < 0) | (own_M < 0), -1, code_M * len(levels) + own_M)
        names = [f"{left},{column}={level}".lstrip(",") for left in names for level in levels]
    return Grouping(tuple(names), torch.from_numpy(code_M))


def metric_groups(manifest: pd.DataFrame, columns: Sequence[str]) -> Grouping:
    """As ``grouping``, but ``male+female`` stands for a level of each of these columns, and those overlap.

    An example belongs to the level of a member column where that says 1, true or yes, or its last category
    where these words do not occur; where the column knows nothing but 0, false or no, nobody belongs to it.

    >>> yes_no = ["0", "1"]
    >>> table = pd.DataFrame({
    ...     "y": pd.Categorical(["0", "1"]),
    ...     "male": pd.Categorical(["1", "0"], yes_no), "black": pd.Categorical(["1", "1"], yes_no)})
    >>> metric_groups(table, ["y", "male+black"]).names
    ('y=0,male', 'y=0,black', 'y=1,male', 'y=1,black')
    >>> metric_groups(table, ["y", "male+black"]).group_M.int().tolist()
    [[1, 1, 0, 0], [0, 0, 0, 1]]
    """
    if not any(OVERLAP in column for column in columns):
        return grouping(manifest, columns)
    names, member_MG = [""], torch.ones(len(manifest), 1, dtype=torch.bool)
    for column in columns:
        levels, own_ML = _levels(manifest, column)
        member_MG = (member_MG[:, :, None] & own_ML[:, None, :]).flatten(1)
        names = [f"{left},{level}".lstrip(",") for left in names for level in levels]
    return Grouping(tuple(names), member_MG)


def _levels(manifest: pd.DataFrame, column: str) -> tuple[list[str], Tensor]:
    if OVERLAP not in column:
        own = grouping(manifest, [column])
        return list(own.names), own.group_M[:, None] == torch.arange(len(own))
    members = column.split(OVERLAP)
    own_M = [grouping(manifest, [member]).group_M for member in members]
    belongs = [_membership(manifest[member]) for member in members]
    return members, torch.stack([code_M == code for code_M, code in zip(own_M, belongs, strict=True)], dim=1)


def _membership(column: pd.Series) -> int:
    """The code of the category that says yes; one that no row has where there is none."""
    levels = [str(level).lower() for level in column.cat.categories]
    yes = [code for code, level in enumerate(levels) if level in YES]
    if yes:
        return yes[0]
    return NOBODY if set(levels) <= NO else len(levels) - 1
