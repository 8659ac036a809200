"""A diagnosis as text, as CSV and as JSON; the same numbers in each."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas as pd

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.printing import for_json, text_table, wrapped

MOST_DECIMALS = 6


def as_text(found: Diagnosis, of: str) -> str:
    """Title, table, findings and caption, as a terminal shows them; ``of`` says what was diagnosed."""
    names, cells, words = zip(*_columns(found.table), strict=True)
    head = [textwrap.fill(name.replace("_", " "), width=14, break_long_words=False) for name in names]
    body = text_table(head, zip(*cells, strict=True), left=[n for n, word in enumerate(words) if word])
    findings = [wrapped(f"- {finding}", "  ") for finding in found.findings]
    return "\n".join([f"{found.title}: {of}", body, "", *findings, wrapped(found.caption)]) + "\n"


def as_csv(found: Diagnosis) -> str:
    """The table with all its digits."""
    return found.table.to_csv(index=False)


def as_json(found: Diagnosis, of: str) -> str:
    """Everything but the figure; a number that does not exist is null."""
    content = {
        "diagnosis": found.name,
        "title": found.title,
        "of": of,
        "findings": found.findings,
        "metrics": found.metrics,
        "table": found.table.to_dict("records"),
        "caption": found.caption,
    }
    return json.dumps(for_json(content), indent=1, allow_nan=False)


def shown(value: Any) -> str:
    """A cell as a person reads it.

    >>> shown(0.84912), shown(3), shown(float("nan")), shown("erm"), shown(None), shown(1914.7)
    ('0.849', '3', 'n/a', 'erm', 'n/a', '1915')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e7 else f"{value:.3g}"


def _columns(table: pd.DataFrame) -> Iterator[tuple[str, list[str], bool]]:
    """Name, cells, and whether they are words, of every column; standard errors beside what they are of."""
    spreads = {f"{SPREAD}{name}" for name in table}
    for name, column in table.items():
        if name in spreads:
            continue
        spread = table.get(f"{SPREAD}{name}")
        digits = decimals(column) if column.dtype.kind == "f" else None
        if spread is None:
            yield str(name), [_cell(value, digits) for value in column], column.dtype.kind not in "if"
        else:
            digits = None if digits is None else max(digits, decimals(spread, 2) or 0)
            pairs = zip(column, spread, strict=True)
            yield f"{name} ± s.e.", [_with_error(value, error, digits) for value, error in pairs], False


def _with_error(value: float, error: float, digits: int | None) -> str:
    return _cell(value, digits) + ("" if math.isnan(error) else f" ± {_cell(error, digits)}")


def _cell(value: Any, digits: int | None) -> str:
    return shown(value) if digits is None or math.isnan(value) else f"{value:z.{digits}f}"


def decimals(column: pd.Series, significant: int = 3) -> int | None:
    """How many decimals all numbers of a column are shown with, so that the largest has so many digits that
    mean something, and 1 as many as what is just below; None where small numbers would be lost.

    >>> [decimals(pd.Series(numbers)) for numbers in ([1.0, 0.03], [1914.7], [3.0, 1e-4], [1e-6])]
    [3, 0, None, None]
    """
    sizes = column[column.abs().between(0, math.inf, inclusive="neither")].abs()
    if sizes.empty:
        return 0
    digits = max(0, significant - math.ceil(math.log10(sizes.max())))
    return None if digits > MOST_DECIMALS or sizes.min() < sizes.max() / 1000 else digits
