"""Columns of a table on disk, in CSV or Parquet, read into categories and numbers without a loop over rows.

Whatever cannot be read is a UsageError that names the line of a CSV file, or the row of a Parquet file, both
counted from 1.

Shapes: M rows of the table, L different values of a column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dgharness.data import table_file
from dgharness.data.text import not_utf8
from dgharness.errors import UsageError, did_you_mean

STRAY = 0.5  # where a larger part of a column's different texts are numbers, the others are mistakes
DAY = 86400e6  # in microseconds
EXACT = 2.0**53  # from here on fractions run together whole numbers that differ


@dataclass(frozen=True)
class Table:
    """A table as the file holds it; ``data`` is an Arrow table."""

    file: Path
    kind: str  # csv or parquet
    data: Any

    @classmethod
    def read(cls, file: Path, kind: str) -> Table:
        """Read a file whole; a UsageError says what is wrong with it."""
        return cls(file, kind, table_file.read(file, kind))

    @property
    def names(self) -> list[str]:
        return list(self.data.column_names)

    @property
    def index(self) -> list[str]:
        """Columns that were the index of the pandas table that was written: they number or name its rows."""
        named = (self.data.schema.pandas_metadata or {}).get("index_columns", ())
        return [name for name in named if isinstance(name, str)]  # a mere range has no column

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
        return table_file.place(self.file, self.kind, row)

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

    Empty texts and NaN are missing. What is none of the given levels is a UsageError, and so are numbers that
    are too large to be told apart.
    """
    column = table.column(name)
    if pa.types.is_floating(column.type):
        large_M = np.abs(column.cast(pa.float64()).to_numpy()) >= EXACT
        if large_M.any():
            raise table.first(
                large_M,
                f"has a number of more than 15 digits in the column {name!r}",
                "such numbers cannot be told apart; put a letter before them, so that they are read as text",
            )
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


def whole_fractions(table: Table, name: str, rows_M: np.ndarray) -> bool:
    """Whether a column holds fractions of which, in these rows, every one is a whole number."""
    if is_category(table, name):
        return False
    value_L = numbers(table, name)[rows_M]
    value_L = value_L[np.isfinite(value_L)]
    return len(value_L) > 0 and bool((value_L == np.rint(value_L)).all())


def numbers(
    table: Table, name: str, complete: bool = False, remedy: str = "it should hold numbers; correct it"
) -> np.ndarray:
    """A column as float64 [M], NaN where nothing is; a text is a UsageError that ends with the remedy.

    If ``complete``, so is what no float32 can hold: a gap, an infinite or too large a number.
    """
    column = table.column(name)
    if _is_text(column):
        wrong_M = (
            ~_numeric(column)
            & pc.is_valid(column).to_numpy()
            & ~pc.fill_null(pc.equal(column, ""), False).to_numpy()
        )
        if wrong_M.any():
            text = column[int(wrong_M.argmax())].as_py()
            raise table.first(wrong_M, f"has {text!r} in the column {name!r}", remedy)
        column = pc.if_else(pc.equal(column, ""), None, column)
    elif pa.types.is_temporal(column.type):
        raise UsageError(f"the column {name!r} of {table.file} holds {column.type} and should hold numbers")
    number_M = column.cast(pa.float64()).to_numpy().copy()
    if complete and not (finite_M := np.abs(number_M) <= np.finfo(np.float32).max).all():
        raise table.first(
            ~finite_M,
            f"has no finite number in the column {name!r}",
            "fill it in or take the row out (32 bits hold up to 3.4e38)",
        )
    return number_M


def dates_or_numbers(table: Table, name: str) -> np.ndarray:
    """As ``numbers``; dates become days since 1970."""
    column = table.column(name)
    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
        return numbers(
            table, name, remedy="it should hold numbers, or dates as 2020-01-31; write them so in every row"
        )
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
