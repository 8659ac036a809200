"""A diagnosis as text, as CSV and as JSON; the same numbers in each."""

from __future__ import annotations

import json
import math
import textwrap
from typing import Any

from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.printing import for_json, text_table, wrapped


def as_text(found: Diagnosis, of: str) -> str:
    """Title, table, findings and caption, as a terminal shows them; ``of`` says what was diagnosed."""
    table = found.table
    head = [textwrap.fill(str(name), width=16, break_long_words=False) for name in table]
    rows = ([shown(value) for value in row] for row in table.itertuples(index=False))
    words = [number for number, kind in enumerate(table.dtypes) if kind.kind not in "if"]
    body = text_table(head, rows, left=words)
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

    >>> shown(0.84912), shown(3), shown(float("nan")), shown("erm"), shown(None)
    ('0.849', '3', 'n/a', 'erm', 'n/a')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
