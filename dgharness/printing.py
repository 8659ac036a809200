"""What commands print: tables as a terminal shows them, paragraphs, and values that JSON can hold."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def text_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[int] = (0,),
    widest: int | None = None,
) -> str:
    """A table without a newline at its end; the columns ``left`` are flush left, the others flush right.

    A cell of more than ``widest`` characters is wrapped, but for those of the first column.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        justify: Any = "left" if number in left else "right"
        drawn.add_column(Text(name), justify=justify, max_width=widest if number else None)
    for row in rows:
        drawn.add_row(*map(Text, row))
    stream = io.StringIO()
    Console(file=stream, width=10_000, color_system=None, force_terminal=False).print(drawn)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def wrapped(paragraph: str, indent: str = "") -> str:
    """A paragraph in lines of 100 characters, those after the first indented."""
    return textwrap.fill(
        paragraph, width=100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def decimals(numbers: Iterable[float]) -> int:
    """How many decimals give the largest of some numbers three digits; whole numbers have none.

    >>> [decimals(numbers) for numbers in ([10.0, 1.15], [0.297, 0.007], [1914.7], [99.0, 8.0])]
    [1, 3, 0, 0]
    """
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    whole = all(float(size).is_integer() for size in sizes)
    return 0 if whole else max(0, 2 - math.floor(math.log10(max(sizes))))


def for_json(value: Any) -> Any:
    """The same with numbers of Python's own, and null for NaN and the infinities, which JSON does not have.

    >>> for_json({"ece": float("nan"), "counts": (3, 4)})
    {'ece': None, 'counts': [3, 4]}
    """
    if isinstance(value, Mapping):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
