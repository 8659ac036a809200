"""The file of a table, in CSV or Parquet: reading it, where its rows stand, and why it cannot be read.

A CSV file may be compressed, as its name then says (.csv.gz).
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dgharness.data.text import not_utf8
from dgharness.errors import UsageError

# What pandas, and whoever reads with it what it wrote, calls the numbers of rows.
NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
OTHERWISE = {
    ";": "semicolons",
    "\t": "tabs",
    "|": "upright bars",
}  # what cells are parted by, if not by commas
FOREIGN = {
    b"PAR1": "a Parquet file; name it as parquet:PATH",
    b"PK\x03\x04": "an Excel file or a zip archive; export the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel file; export the table as CSV",
    b"\x1f\x8b": "compressed; unpack it, or let its name end in .csv.gz",
    b"\xff\xfe": "text in UTF-16; save it as text in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as text in UTF-8",
}

log = logging.getLogger(__name__)


def read(file: Path, kind: str) -> Any:
    """An Arrow table of all columns that have a name; a UsageError says what is wrong with the file."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}; {kind}:PATH expects a table there")
    if not file.stat().st_size:
        raise UsageError(f"{file} is empty; it needs a first line with the names of its columns")
    try:
        if kind == "csv":
            _refuse_foreign(file)
        data = _READ[kind](file)
        names = data.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(_why_not(file, kind, error)) from error
    if kind == "csv" and len(names) == 1 and (otherwise := _parted_otherwise(file)):
        raise UsageError(otherwise)
    if nameless := [name for name in names if NAMELESS.fullmatch(name)]:
        log.warning("columns of %s that have no name of their own are left out: %r", file, nameless)
        data = data.select([number for number, name in enumerate(names) if name not in nameless])
    if twice := [name for name in names if names.count(name) > 1 and name not in nameless]:
        raise UsageError(f"{file} has two columns named {twice[0]!r}; rename one of them")
    if not data.num_rows:
        raise UsageError(f"{file} has no rows below the names of its columns; add the examples")
    return data


def place(file: Path, kind: str, row: int) -> str:
    """Where a row (from 0) stands in the file, in words that count from 1."""
    return f"line {_line(file, row)} of {file}" if kind == "csv" else f"row {row + 1} of {file}"


def _read_csv(file: Path) -> Any:
    # Without it a line break inside a quoted text would end a row.
    return pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))


_READ = {"csv": _read_csv, "parquet": pyarrow.parquet.read_table}


# --- why it cannot be read -------------------------------------------------------------------------


def _refuse_foreign(file: Path) -> None:
    with pa.input_stream(str(file)) as unpacked:
        start = unpacked.read(8)
    for sign, what in FOREIGN.items():
        if start.startswith(sign):
            raise UsageError(f"{file} is no table of comma-separated values but {what}")


def _why_not(file: Path, kind: str, error: Exception) -> str:
    readable = kind == "csv" and not isinstance(error, OSError)
    if readable and (found := _not_utf8(file) or _parted_otherwise(file) or _uneven(file)):
        return found
    return f"{file} cannot be read as {kind}: {' '.join(str(error).split())}"


def _not_utf8(file: Path) -> str:
    where = not_utf8(file)
    return f"{where}; save it as text in UTF-8" if where else ""


def _parted_otherwise(file: Path) -> str:
    """What other signs than commas a first line has between its cells, in words; nothing if it has none."""
    first, _ = next(_records(file), ([], 0))
    found = [name for sign, name in OTHERWISE.items() if sign in first[0]] if len(first) == 1 else []
    return f"{file} has {found[0]} between its cells; save it with commas" if found else ""


def _uneven(file: Path) -> str:
    """The first row that has more or fewer cells than there are columns, in words; nothing if none has."""
    columns = 0
    for record, line in _records(file):
        columns = columns or len(record)
        if len(record) != columns:
            return (
                f"line {line} of {file} has {len(record)} cells, and there are {columns} columns; mend it, "
                "or quote the text that holds a comma"
            )
    return ""


# --- lines of a CSV file ---------------------------------------------------------------------------


def _line(file: Path, row: int) -> int:
    """The line (from 1) where a row begins: blank lines are no rows, and a quoted text may have several."""
    record, last = next(islice(_records(file), row + 1, None))
    return last - sum(cell.count("\n") for cell in record)


def _records(file: Path) -> Iterator[tuple[list[str], int]]:
    """The cells of the names and of every row, and the line where they end."""
    csv.field_size_limit(2**31 - 1)
    unpacked = pa.input_stream(str(file))
    with io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines)
        for record in reader:
            if record:
                yield record, reader.line_num
