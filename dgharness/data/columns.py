"""Columns of a table on disk, in CSV or Parquet, read into categories and numbers without a loop over rows.

Whatever cannot be read is a UsageError that names the line of a CSV file, or the row of a Parquet file, both
counted from 1.

Shapes: M rows of the table, L different values of a column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
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

STRAY = 0.5  # where a larger part of a column's different texts are numbers, the others are mistakes
DAY = 86400e6  # in microseconds


@dataclass(frozen=True)
class Table:
    """A table as the file holds it; ``data`` is an Arrow table."""

    file: Path
    kind: str  # csv or parquet
    data: Any

    @classmethod
    def read(cls, file: Path, kind: str) -> Table:
        """Read a file whole; a UsageError says what is wrong with it."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}; {kind}:PATH expects a table there")
        if not file.stat().st_size:
            raise UsageError(f"{file} is empty; it needs a first line with the names of its columns")
        try:
            data = _READ[kind](file)
            names = data.column_names
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(_why_not(file, kind, error)) from error
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{file} has two columns named {twice[0]!r}; rename one of them")
        if not data.num_rows:
            raise UsageError(f"{file} has no rows below the names of its columns; add the examples")
        return cls(file, kind, data)

    @property
    def names(self) -> list[str]:
        return list(self.data.column_names)

    @property
    def rows(self) -> int:
        return int(self.data.num_rows)

    def require(self, name: str, key: str) -> None:
        """A UsageError if there is no such column; ``key`` is the setting that names it."""
        if name not in self.names:
            raise UsageError(
                f"{self.file} has no column {name!r}; {did_you_mean(name, self.names)}; "
                f"name the one that is meant with --set {key}=COLUMN"
            )

    def place(self, row: int) -> str:
        """Where a row stands in the file."""
        return (
            f"line {_line(self.file, row)} of {self.file}"
            if self.kind == "csv"
            else f"row {row + 1} of {self.file}"
        )

    def first(self, wrong_M: np.ndarray, is_what: str, remedy: str) -> UsageError:
        """What to say of rows that are wrong: where the first of them stands, and how many more there are."""
        more = int(wrong_M.sum()) - 1
        others = f" ({more} more such {'row' if more == 1 else 'rows'})" if more else ""
        return UsageError(f"{self.place(int(wrong_M.argmax()))} {is_what}{others}; {remedy}")

    def column(self, name: str) -> Any:
        """A column as a chunked array of numbers, texts or dates; of any other kind, a UsageError."""
        column = self.data.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_null(column.type):
            column = column.cast(pa.string())
        if pa.types.is_binary(column.type):  # what the reader makes of text that is not UTF-8
            where = not_utf8(self.file) if self.kind == "csv" else ""
            raise UsageError(
                f"{where or f'the column {name!r} of {self.file} holds bytes'}; save it as text in UTF-8"
            )
        if pa.types.is_nested(column.type):
            raise UsageError(
                f"the column {name!r} of {self.file} holds a {column.type} in each row; spread it over "
                "columns of one number each, or leave it out"
            )
        return column

    def texts(self, name: str, key: str) -> list[str]:
        """A column of texts, one in every row."""
        column = self.column(name)
        if not _is_text(column):
            raise UsageError(
                f"the column {name!r} of {self.file} holds {column.type} and no text; "
                f"name the one that is meant with --set data.{key}=COLUMN"
            )
        missing_M = pc.fill_null(pc.equal(column, ""), True).to_numpy()
        if missing_M.any():
            raise self.first(missing_M, f"has no {key} (column {name!r})", "fill it in or take the row out")
        return [str(text) for text in column.to_pylist()]

    def refuse_stray_text(self, name: str, hint: str) -> None:
        """A UsageError where a column holds numbers but for a few cells, which would make all of it text."""
        column = self.column(name)
        if not _is_text(column):
            return
        distinct_L = column.unique().drop_null()
        number_L = _numeric(distinct_L)
        if len(distinct_L) and STRAY < number_L.mean() < 1:
            stray = distinct_L[int((~number_L).argmax())]
            wrong_M = pc.fill_null(pc.equal(column, stray), False).to_numpy()
            raise self.first(wrong_M, f"has {stray.as_py()!r} among the numbers of the column {name!r}", hint)


def is_category(table: Table, name: str) -> bool:
    """Whether a column holds texts, integers, yes-or-no or dates, and no fractions."""
    kind = table.column(name).type
    return not (pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_number(table: Table, name: str) -> bool:
    """Whether a column holds integers or fractions."""
    kind = table.column(name).type
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind))


def categories(table: Table, name: str, levels: Sequence[str] = ()) -> tuple[pd.Categorical, np.ndarray]:
    """A column as categories in natural order, or of the given levels; and which rows [M] have none.

    Empty texts and NaN are missing. What is none of the given levels is a UsageError.
    """
    column = table.column(name)
    encoded = pc.dictionary_encode(column).unify_dictionaries().combine_chunks()
    value_L = encoded.dictionary.to_pylist()
    name_L = [_level(value) for value in value_L]
    if levels and (unknown := [text for text in name_L if text is not None and text not in levels]):
        wrong_M = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) == name_L.index(unknown[0])
        raise table.first(
            wrong_M,
            f"has {unknown[0]!r} in the column {name!r}, which is none of {', '.join(levels)}",
            "correct it, or the list",
        )
    known_L = [(value, text) for value, text in zip(value_L, name_L, strict=True) if text is not None]
    known_L.sort(key=lambda pair: _natural(pair[1]) if isinstance(pair[0], str) else pair[0])
    levels = list(levels) or [text for _, text in known_L]
    number = {text: position for position, text in enumerate(levels)}
    code_L = np.array([*(number.get(text or "", -1) for text in name_L), -1])  # the last is for null
    code_M = code_L[encoded.indices.fill_null(len(value_L)).to_numpy(zero_copy_only=False)]
    return pd.Categorical.from_codes(code_M, pd.Index(levels, dtype=object)), code_M < 0


def numbers(table: Table, name: str, complete: bool = False) -> np.ndarray:
    """A column as float64 [M], NaN where nothing is; a text, and if ``complete`` a gap, is a UsageError."""
    column = table.column(name)
    if _is_text(column):
        wrong_M = (
            ~_numeric(column)
            & pc.is_valid(column).to_numpy()
            & ~pc.fill_null(pc.equal(column, ""), False).to_numpy()
        )
        if wrong_M.any():
            text = column[int(wrong_M.argmax())].as_py()
            raise table.first(
                wrong_M, f"has {text!r} in the column {name!r}", "it should hold numbers; correct it"
            )
        column = pc.if_else(pc.equal(column, ""), None, column)
    elif pa.types.is_temporal(column.type):
        raise UsageError(f"the column {name!r} of {table.file} holds {column.type} and should hold numbers")
    number_M = column.cast(pa.float64()).to_numpy().copy()
    if complete and not (finite_M := np.isfinite(number_M)).all():
        raise table.first(
            ~finite_M, f"has no finite number in the column {name!r}", "fill it in or take the row out"
        )
    return number_M


def dates_or_numbers(table: Table, name: str) -> np.ndarray:
    """As ``numbers``; dates become days since 1970."""
    column = table.column(name)
    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
        return numbers(table, name)
    microseconds = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
    return microseconds.cast(pa.float64(), safe=False).to_numpy() / DAY


# --- one value -------------------------------------------------------------------------------------


def _level(value: Any) -> str | None:
    """What a category is called.

    >>> [_level(value) for value in ("cat", "", 3, 2.0, 0.5, float("nan"), True)]
    ['cat', None, '3', '2', '0.5', None, 'True']
    """
    if value is None or value == "" or value != value:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _natural(text: str) -> list[str | int]:
    """A key that puts site 2 before site 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _is_text(column: Any) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _numeric(column: Any) -> np.ndarray:
    return pd.to_numeric(column.to_pandas(), errors="coerce").notna().to_numpy()


# --- the file --------------------------------------------------------------------------------------


def _read_csv(file: Path) -> Any:
    # Without it a line break inside a quoted text would end a row.
    return pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))


_READ = {"csv": _read_csv, "parquet": pyarrow.parquet.read_table}


def _why_not(file: Path, kind: str, error: Exception) -> str:
    if kind == "csv":
        if where := not_utf8(file):
            return f"{where}; save it as text in UTF-8"
        if uneven := _uneven(file):
            return uneven
    return f"{file} cannot be read as {kind}: {' '.join(str(error).split())}"


def _records(lines: Any) -> Any:
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines)


def _line(file: Path, row: int) -> int:
    """The line (from 1) where a row begins: blank lines are no rows, and a quoted text may have several."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        reader = _records(lines)
        record = next(islice((record for record in reader if record), row + 1, None))
        return int(reader.line_num) - sum(cell.count("\n") for cell in record)


def _uneven(file: Path) -> str:
    """The first row that has more or fewer cells than there are columns, in words; nothing if none has."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        reader = _records(lines)
        columns = len(next(reader, []))
        for record in reader:
            if record and len(record) != columns:
                return (
                    f"line {reader.line_num} of {file} has {len(record)} cells, and there are {columns} "
                    "columns; mend it, or quote the text that holds a comma"
                )
    return ""
