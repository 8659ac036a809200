"""SubpopBench's tables: ``split,filename,y,a``, one row per example, and what training may know of ``a``.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from dgharness.data.dataset import Defaults
from dgharness.data.groups import grouping
from dgharness.data.protocols import OFFICIAL
from dgharness.data.subpop.official import METRIC, evaluation
from dgharness.errors import UsageError
from dgharness.hparams import Hparams

COLUMNS = ("split", "filename", "y", "a")
SPLITS = {"0": "train", "1": "val", "2": "test"}
LEFT_OUT = ""  # the split of rows that are not read
WITHOUT = "all"  # the single domain of training that knows no attribute


class SubpopOptions(Hparams):
    """What training may know."""

    attributes: Literal["known", "unknown"] = "known"
    """Known: the attribute is the domain, and groups in training are classes by attribute. Unknown: training
    sees one domain and classes alone; validation and test are still measured by group."""


@dataclass(frozen=True)
class Table:
    """A table under the data root and the names of its numbers: of ``y``, and of the attribute in ``a``."""

    file: str
    classes: tuple[str, ...]
    attribute: str = ""  # "" where ``a`` says nothing
    values: tuple[str, ...] = ("",)
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)

    @property
    def layout(self) -> str:
        named = "" if self.classes[0] == "0" else f": {', '.join(self.classes)}"
        about = f"{self.attribute}, 0..{len(self.values) - 1}: {', '.join(self.values)}"
        return (
            f"{self.file}\n  split ({', '.join(self.splits)}), filename, "
            f"y (0..{len(self.classes) - 1}{named}), a ({about if self.attribute else '0'})"
        )


def read_table(name: str, root: Path, table: Table) -> pd.DataFrame:
    """``y``, the attribute, ``split`` and ``filename`` of every row that is not left out, by its number.

    A missing file or column, and a value that the table does not know, are a UsageError that names the row.
    """
    path = root / table.file
    if not path.is_file():
        raise UsageError(
            f"{name} needs {path}, which SubpopBench's scripts/download.py writes; "
            "put it there or name another place with --data-root DIR"
        )
    try:
        rows = pd.read_csv(
            path, dtype={"filename": str, "split": str}, usecols=lambda column: column in COLUMNS
        )
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UsageError(f"{path} cannot be read as a table ({error}); write it anew") from error
    if missing := [column for column in COLUMNS if column not in rows]:
        raise UsageError(f"{path} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    found = pd.DataFrame({"y": _named(path, rows["y"], table.classes)})
    if table.attribute:
        found[table.attribute] = _named(path, rows["a"], table.values)
    if (unnamed := rows["filename"].isna()).any():
        raise UsageError(f"row {_first(unnamed)} of {path} has no filename; fill it in or take the row out")
    split = rows["split"].map(dict(table.splits))
    if (unknown := split.isna()).any():
        row = _first(unknown)
        raise UsageError(
            f"row {row} of {path} has split={rows['split'].iloc[row]!r}, which is none of "
            f"{', '.join(table.splits)}; mend it or take the row out"
        )
    kept = split != LEFT_OUT
    found["split"] = pd.Categorical(split.where(kept), OFFICIAL)
    found["filename"] = rows["filename"]
    return found[kept]


def row_numbers(path: Path, filename: pd.Series, length: int, what: str) -> np.ndarray:
    """``filename`` as a row of something else [M], or a UsageError that names the row that is beyond it."""
    number_M = pd.to_numeric(filename, errors="coerce").astype("float64")
    if (wrong := ~((number_M >= 0) & (number_M < length))).any():
        row = _first(wrong)
        raise UsageError(
            f"row {row} of {path} has filename={filename.iloc[row]!r}, which should be a row of {what}, from "
            f"0 to {length - 1}; write both anew"
        )
    return number_M.to_numpy().astype(np.int64)


def tested_on(table: Table, split: str) -> Table:
    """The table with that split as the test; what was the test is logged as id_test."""
    moved = {value: "id_test" if name == "test" else name for value, name in table.splits.items()}
    return replace(table, splits={**moved, split: "test"})


def subpopulations(
    manifest: pd.DataFrame, attribute: str, known: bool, train: str = "", metric: str = METRIC
) -> dict[str, Any]:
    """The fields of a ``Dataset`` that follow from its attribute: the groups, and SubpopBench's evaluation.

    ``train`` is the column that training knows in the attribute's place, where that is another.
    """
    groups = ("y", attribute) if attribute else ("y",)
    targets_M = torch.from_numpy(manifest["y"].cat.codes.to_numpy(np.int64, copy=True))
    values = len(manifest[attribute].cat.categories) if attribute else 1
    shown = train or attribute
    return {
        "groups": groups,
        "train_groups": ("y", shown) if known and shown else ("y",),
        "hidden": tuple(dict.fromkeys(c for c in (attribute, train) if c and not (known and c == shown))),
        "official": evaluation(targets_M, grouping(manifest, groups).group_M, values),
        "official_metric": metric,
    }


def with_domain(manifest: pd.DataFrame, attribute: str, known: bool) -> pd.DataFrame:
    """The attribute as the domain, or one domain where training knows none."""
    if known and attribute:
        return manifest.assign(domain=manifest[attribute].cat.remove_unused_categories())
    return manifest.assign(domain=pd.Categorical([WITHOUT] * len(manifest)))


def defaults(model: str, steps: int, eval_every: int) -> Defaults:
    """SubpopBench's: one row of examples drawn from everything, on its own split."""
    return Defaults(model, steps, eval_every, protocol="subpopulation", sampler="pooled")


def _named(path: Path, column: pd.Series, names: Sequence[str]) -> pd.Categorical[str]:
    number_M = pd.to_numeric(column, errors="coerce").astype("float64")
    if (wrong := ~number_M.isin(range(len(names)))).any():
        row = _first(wrong)
        raise UsageError(
            f"row {row} of {path} has {column.name}={column.iloc[row]!r}, which is not one of the numbers "
            f"0 to {len(names) - 1}; mend it or take the row out"
        )
    return pd.Categorical.from_codes(number_M.astype("int64"), pd.Index(names))


def _first(wrong: pd.Series) -> int:
    return int(np.flatnonzero(wrong)[0])
