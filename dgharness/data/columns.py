"""Columns of a table on disk, in CSV or Parquet, read into categories and numbers without a loop over rows.

Whatever cannot be read is a UsageError that names the line of a CSV file, or the row of a Parquet file, both
counted from 1.

Shapes: M rows of the table.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from dgharness.data.text import not_utf8
from dgharness.errors import UsageError, did_you_mean

Column = pa.ChunkedArray
STRAY = 0.5  # above this share of numbers, the rest of a column of texts is a mistake


@dataclass(frozen=True)
class Table:
    """A table as the file holds it."""

    file: Path
    kind: str  # csv or parquet
    data: pa.Table

    @classmethod
    def read(cls, file: Path, kind: str) -> Table:
        """Read a file whole; a UsageError says what is wrong with it."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}; {kind}:PATH expects a table there")
        if not file.stat().st_size:
            raise UsageError(f"{file} is empty; it needs a first line with the names of its columns")
        try:
            data = _read_csv(file) if kind == "csv" else pyarrow.parquet.read_table(file)
            names = data.column_names
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
            where = not_utf8(file) if kind == "csv" else ""
            reason = f"{where}; save it as UTF-8" if where else f"{file} cannot be read ({_one_line(error)})"
            raise UsageError(reason) from error
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{file} has two columns named {twice[0]!r}; rename one of them")
        if not data.num_rows:
            raise UsageError(f"{file} has no rows below the names of its columns; add the examples")
        return cls(file, kind, data)

    @property
    def names(self) -> list[str]:
        return self.data.column_names

    @property
    def rows(self) -> int:
        return self.data.num_rows

    @cached_property
    def texts_found(self) -> dict[str, Column]:
        return {}

    def require(self, name: str, key: str) -> None:
        """A UsageError if there is no such column."""
        if name not in self.names:
            raise UsageError(
                f"{self.file} has no column {name!r}; {did_you_mean(name, self.names)}; "
                f"name it with --set {key}=COLUMN"
            )

    def place(self, row: int) -> str:
        """Where a row stands in the file."""
        if self.kind != "csv":
            return f"row {row + 1} of {self.file}"
        with self.file.open(encoding="utf-8-sig", newline="") as lines:
            records = csv.reader(lines)
            before = 0
            for number, _ in enumerate(_with_ends(records)):
                if number == row + 1:  # the names of the columns are a record as well
                    break
                before = records.line_num
        return f"line {before + 1} of {self.file}"

    def others(self, wrong_M: np.ndarray) -> str:
        """The end of a sentence about the first of several rows."""
        more = int(wrong_M.sum()) - 1
        return f" ({more} more such {'row' if more == 1 else 'rows'})" if more else ""

    def column(self, name: str) -> Column:
        """A column, decoded; of a kind that is no number, text or date, a UsageError."""
        column = self.data.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            where = not_utf8(self.file) if self.kind == "csv" else f"the column {name!r} of {self.file} holds bytes"
            raise UsageError(f"{where}; save it as UTF-8 text")
        if pa.types.is_nested(column.type):
            raise UsageError(
                f"the column {name!r} of {self.file} holds {column.type}; a column holds one number or text a row"
            )
        return column

    def texts(self, name: str, key: str) -> list[str]:
        """A column of texts, each there."""
        column = self.column(name)
        if not _is_text(column.type):
            raise UsageError(
                f"the column {name!r} of {self.file} holds {column.type} and no text; "
                f"name another with --set data.{key}=COLUMN"
            )
        missing_M = pc.is_null(column).to_numpy()
        if key == "path":
            missing_M |= pc.equal(column, "").fill_null(True).to_numpy()
        if missing_M.any():
            row = int(missing_M.argmax())
            raise UsageError(
                f"{self.place(row)} has no {key} (column {name!r}); fill it in or take the row out"
                f"{self.others(missing_M)}"
            )
        return column.to_pylist()

    def refuse_stray_text(self, name: str, hint: str) -> None:
        """A UsageError about a column of numbers but for a few cells, which make all of it text."""
        column = self.column(name)
        if not _is_text(column.type):
            return
        distinct = column.unique().drop_null()
        number_L = pd.to_numeric(distinct.to_pandas(), errors="coerce").notna().to_numpy()
        if STRAY < number_L.mean() < 1 if len(distinct) else False:
            stray = distinct[int((~number_L).argmax())].as_py()
            row = pc.index(column, stray).as_py()
            raise UsageError(
                f"{self.place(row)} has {stray!r} in the column {name!r}, which else holds numbers; mend it; {hint}"
            )


def _with_ends(records: Any) -> Any:
    """Records of a CSV file without blank lines, which count as no row."""
    return (record for record in records if record)
