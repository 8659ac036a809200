"""A diagnosis as text, as CSV and as JSON; the same numbers in each."""

from __future__ import annotations

import io
import json
import math
import textwrap
from typing import Any

from dgharness.diagnostics.diagnosis import Diagnosis


def as_text(found: Diagnosis, of: str) -> str:
    """Title, table, findings and caption, as a terminal shows them; ``of`` says what was diagnosed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, column in found.table.items():
        is_number = column.dtype.kind in "if"
        header = textwrap.fill(str(name), width=16, break_long_words=False)
        drawn.add_column(Text(header), justify="right" if is_number else "left")
    for row in found.table.itertuples(index=False):
        drawn.add_row(*(Text(shown(value)) for value in row))
    stream = io.StringIO()
    Console(file=stream, width=10_000, color_system=None, force_terminal=False).print(drawn)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    body = "\n".join(line for line in lines if line)
    findings = [_wrapped(f"- {finding}", "  ") for finding in found.findings]
    return "\n".join([f"{found.title}: {of}", body, "", *findings, _wrapped(found.caption)]) + "\n"


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
        "metrics": {name: _plain(value) for name, value in found.metrics.items()},
        "table": [
            {name: _plain(value) for name, value in row.items()} for row in found.table.to_dict("records")
        ],
        "caption": found.caption,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def shown(value: Any) -> str:
    """A cell as a person reads it.

    >>> shown(0.84912), shown(3), shown(float("nan")), shown("erm"), shown(None)
    ('0.849', '3', 'n/a', 'erm', 'n/a')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # a number of numpy's
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wrapped(paragraph: str, indent: str = "") -> str:
    return textwrap.fill(
        paragraph, width=100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
