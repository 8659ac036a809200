"""One table in five formats: text, Markdown, LaTeX, CSV, JSON; the same numbers in each."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from dgharness.errors import UsageError, did_you_mean
from dgharness.printing import decimals, text_table, wrapped
from dgharness.report.statistics import smallest_p
from dgharness.report.table import Cell, Column, Table

_WIDTH = 120  # characters of a line of text
Format = Literal["text", "markdown", "latex", "csv", "json"]


def render(tables: Table | Sequence[Table], format: str = "text") -> str:
    """One table, or several after one another (in JSON: a list), ending with a newline."""
    many = [tables] if isinstance(tables, Table) else list(tables)
    if format == "json":
        found: Any = [_json(table) for table in many]
        return json.dumps(found[0] if isinstance(tables, Table) else found, indent=2, allow_nan=False) + "\n"
    if format == "csv":
        return _csv(many)
    printers: dict[str, Callable[[Table], str]] = {"text": _text, "markdown": _markdown, "latex": _latex}
    if format not in printers:
        raise UsageError(f"no report format {format!r}; {did_you_mean(format, get_args(Format))}")
    return "\n".join(printers[format](table) for table in many)


def shown(cell: Cell, column: Column) -> str:
    """A cell as text formats print it.

    >>> shown(Cell({0: 0.5, 1: 0.75}), Column("photo"))
    '62.5 ± 12.5'
    >>> shown(Cell({0: 0.5}), Column("photo"))
    '50.0 ± n/a'
    >>> shown(Cell(problem="MISSING 1 of 3: h0 t2"), Column("photo"))
    'MISSING 1 of 3: h0 t2'
    """
    if cell.stated:
        return _spread(cell.stated.value, cell.stated.spread, column)
    if cell.problem or cell.mean is None:
        return cell.problem or "n/a"
    result = cell.comparison
    star = " *" if result and result.significant else ""
    if not column.is_difference or result is None:
        return _spread(cell.mean, cell.se, column) + ("" if cell.se is not None else " ± n/a") + star
    if result.identical:
        return "identical"
    ends = [end for end in (result.low, result.high) if end is not None]
    difference, *shown_ends = _numbers([result.difference, *ends], column)
    interval = f" [{', '.join(shown_ends)}]" if ends else ""
    return f"{difference}{interval} p={result.p_holm:.2g}{star}"


def _spread(value: float, spread: float | None, column: Column) -> str:
    """A number ± what it is uncertain by, where that is known."""
    if spread is None:
        return _numbers([value], column)[0]
    shown_value, shown_spread = _numbers([value, spread], column)
    return f"{shown_value} ± {shown_spread.removeprefix('+')}"


def _numbers(values: Sequence[float], column: Column) -> list[str]:
    """Numbers that stand together, with the same decimals: so many that the largest has three digits.

    >>> _numbers([0.29654, 0.00678], Column("ece", "number")), _numbers([8.0, 0.0], Column("runs", "number"))
    (['0.297', '0.007'], ['8', '0'])
    """
    sign = "+" if column.is_difference else ""
    if column.unit in ("percent", "points"):
        return [f"{100 * value:{sign}z.1f}" for value in values]
    digits = decimals(values)
    form = f"z.{digits}f" if digits < 7 else ".2e"
    return [f"{value:{sign}{form}}" for value in values]


def _grid(table: Table) -> list[list[str]]:
    return [
        [row.label, *(shown(cell, column) for cell, column in zip(row.cells, table.columns, strict=True))]
        for row in table.rows
    ]


def _text(table: Table) -> str:
    """Columns that no terminal has room for stand below the others, with the rows named again."""
    notes = [f"! {note}" for note in table.notes]
    body = "\n\n".join(_drawn(table, block) for block in _blocks(table))
    return "\n".join([table.title, body, "", *map(wrapped, [*table.caption, *notes])]) + "\n"


def _blocks(table: Table) -> list[list[int]]:
    """The numbers of the columns that stand side by side, as many as there is room for."""
    blocks: list[list[int]] = [[]]
    for column in range(len(table.columns)):
        together = [*blocks[-1], column]
        if blocks[-1] and max(map(len, _drawn(table, together).splitlines())) > _WIDTH:
            blocks.append([column])
        else:
            blocks[-1] = together
    return blocks


def _drawn(table: Table, columns: Sequence[int]) -> str:
    """The rows of a table with some of its columns."""
    names = [table.columns[column].name for column in columns]
    head = [textwrap.fill(name, width=16, break_long_words=False) for name in names]
    rows = ([label, *(cells[column] for column in columns)] for label, *cells in _grid(table))
    return text_table(["algorithm", *head], rows, widest=36)


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = ["algorithm", *(column.name for column in table.columns)]
    rule = line(["---", *("---:" for _ in table.columns)])
    rows = [line([cell.replace(" *", " \\*") for cell in row]) for row in _grid(table)]
    notes = [f"- {note}" for note in table.notes]
    caption = " ".join(table.caption).replace("*", "\\*")
    parts = [f"### {table.title}", "\n".join([line(head), rule, *rows]), caption, "\n".join(notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


_TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "≤": r"$\le$",
        "…": r"\dots{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "*": r"$^{*}$",
        "[": "{[}",  # after \\ a bare bracket would be read as an option
        "]": "{]}",
    }
)


_MINUS = re.compile(r"(?<![\w-])-(?=\d)")


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(_MINUS.sub("$-$", cell.translate(_TEX)) for cell in cells) + r" \\"

    notes = [r"\par\footnotesize " + note.translate(_TEX) for note in table.notes]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{' '.join(table.caption).translate(_TEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            line(["algorithm", *(column.name for column in table.columns)]),
            r"\midrule",
            *map(line, _grid(table)),
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


_FIELDS = (
    *("table", "dataset", "toy", "protocol", "model", "weights", "tuning", "preset", "rule"),
    *("algorithm", "column", "unit", "mean", "standard_error", "trials", "difference"),
    *("low", "high", "p", "p_holm", "significant", "trials_needed", "problem", "detail"),
    *("smallest_p", "stated", "stated_spread", "source"),
)


def _csv(tables: Sequence[Table]) -> str:
    """One line per cell, so that every number carries what it came from; accuracies as fractions."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for cell, column in zip(row.cells, table.columns, strict=True):
                writer.writerow(
                    asdict(table.block)
                    | {
                        "table": table.title,
                        "rule": column.rule,
                        "algorithm": row.label,
                        "column": column.name,
                    }
                    | _facts(cell)
                    | {"unit": _stated(column.unit)}
                )
    return stream.getvalue()


def _stated(unit: str) -> str:
    """The unit of the numbers in CSV and JSON, where shares stay fractions."""
    return "number" if unit in ("number", "change") else "fraction"


def _facts(cell: Cell) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "mean": cell.mean,
        "standard_error": cell.se,
        "trials": cell.n,
        "problem": cell.problem,
        "detail": cell.detail,
    }
    if cell.stated:
        facts |= {
            "stated": cell.stated.value,
            "stated_spread": cell.stated.spread,
            "source": cell.stated.source,
        }
    if result := cell.comparison:
        facts |= {
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
            "p": result.p,
            "p_holm": result.p_holm,
            "significant": result.significant,
            "trials_needed": result.trials_needed,
            "smallest_p": smallest_p(result.trials),
        }
    return facts


def _json(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        **asdict(table.block),
        "caption": " ".join(table.caption),
        "notes": list(table.notes),
        "columns": [asdict(column) for column in table.columns],
        "rows": [
            {
                "algorithm": row.label,
                "cells": [
                    _facts(cell) | {"by_trial": {str(t): v for t, v in cell.trials.items()}}
                    for cell in row.cells
                ],
            }
            for row in table.rows
        ],
    }
