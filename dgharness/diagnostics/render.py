"""A diagnosis as text, as CSV and as JSON; the same numbers in each."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.printing import decimals, for_json, text_table, wrapped

MOST_DECIMALS = 6
LARGE, LARGEST_COUNT = 1e7, 1e12  # from here on numbers have exponents
ROUNDING = 1e-12  # relative: standard errors of numbers that are equal but for it
OWN_NAME = re.compile("[a-z_]+")  # a heading without names that users gave


def as_text(found: Diagnosis, of: str) -> str:
    """Title, table, findings and caption, as a terminal shows them; ``of`` says what was diagnosed."""
    names, cells, words = zip(*_columns(found.table), strict=True)
    head = [textwrap.fill(name, width=14, break_long_words=False) for name in names]
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
    return f"{value:.0f}" if 999.5 <= abs(value) < LARGE else f"{value:z.3g}"


def _digits(numbers: Sequence[float]) -> int | None:
    """How many decimals a column is shown with, at least one digit of its smallest number among them.

    None where that would be too many, and each number has digits of its own.
    """
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    if not sizes:
        return 0
    whole = all(size.is_integer() for size in sizes)
    of_largest = 3 if max(sizes) == 1 else decimals(sizes)  # a share of 1 stands among shares below it
    needed = 0 if whole else max(of_largest, math.ceil(-math.log10(min(sizes))))
    few = needed <= min(of_largest + 2, MOST_DECIMALS)
    return needed if few and max(sizes) < (LARGEST_COUNT if whole else LARGE) else None


def _columns(table: pd.DataFrame) -> Iterator[tuple[str, list[str], bool]]:
    """Head, cells, and whether they are words, of every column; standard errors beside what they are of."""
    spreads = {f"{SPREAD}{name}" for name in table}
    for name, column in table.items():
        if name in spreads:
            continue
        head = str(name).replace("_", " ") if OWN_NAME.fullmatch(str(name)) else str(name)
        numbers = [float(value) for value in column] if column.dtype.kind == "f" else None
        digits = _digits(numbers) if numbers else None
        spread = table.get(f"{SPREAD}{name}")
        if spread is None:
            words = any(isinstance(value, str) for value in column)
            yield head, [_cell(value, digits) for value in column], words
        else:
            pairs = list(zip(column, spread, strict=True))
            digits = _of_errors(pairs, digits)
            yield f"{head} ± s.e.", [_with_error(*pair, digits) for pair in pairs], False


def _of_errors(pairs: Sequence[tuple[float, float]], digits: int | None) -> int | None:
    """As many decimals as show two digits of the largest error, but two more than the values have at most."""
    errors = [error for value, error in pairs if _is_error(value, error)]
    if digits is None or not errors:
        return digits
    return max(digits, min(1 - math.floor(math.log10(max(errors))), digits + 2))


def _is_error(value: float, error: float) -> bool:
    """Whether a standard error is more than the rounding of equal numbers."""
    return math.isfinite(error) and error > ROUNDING * abs(value)


def _with_error(value: float, error: float, digits: int | None) -> str:
    if math.isnan(error):
        return _cell(value, digits)
    error = error if _is_error(value, error) else 0.0
    lost = digits is not None and error and not round(error, digits)
    told = f"<{_cell(10.0**-digits, digits)}" if digits is not None and lost else _cell(error, digits)
    return f"{_cell(value, digits)} ± {told}"


def _cell(value: Any, digits: int | None) -> str:
    return shown(value) if digits is None or math.isnan(value) else f"{value:z.{digits}f}"
