"""A report as one HTML page that needs nothing else: no network, no script, figures inside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib import resources

from dgharness import __version__
from dgharness.figures import as_svg
from dgharness.report.captions import title
from dgharness.report.panels import Picture
from dgharness.report.render import shown
from dgharness.report.table import NONE, Block, Cell, Column, Table
from dgharness.selection.rule import Rule, RunRecord

QUIET = ("baseline", "n/a", NONE.problem)  # what stands in place of a number where nothing is wrong


@dataclass(frozen=True)
class Subject:
    """What a page is about."""

    names: Sequence[str]  # experiments, and directories that runs were read from
    rules: Sequence[Rule]
    records: Sequence[RunRecord]


def page(
    subject: Subject,
    tables: Sequence[Table],
    pictures: Sequence[Picture] = (),
    costs: Sequence[Table] = (),
) -> str:
    """The whole page: who was compared and how, then the tables, figures and costs of each comparison."""
    blocks = list(dict.fromkeys(table.block for table in tables))
    heading = " · ".join(subject.names)
    style = (resources.files("dgharness.report") / "report.css").read_text(encoding="utf-8")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(heading)}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(heading)}</h1>",
        *_facts(subject),
        *(_contents(blocks) if len(blocks) > 1 else ()),
    ]
    for number, block in enumerate(blocks):
        lines += _section(
            number,
            block,
            [table for table in tables if table.block == block],
            [picture for picture in pictures if picture.block == block],
            [table for table in costs if table.block == block],
        )
    return "\n".join([*lines, f"<footer>dgharness {__version__}</footer>", "</body>", "</html>", ""])


def _facts(subject: Subject) -> Iterator[str]:
    """The rules, the runs, and when the last of them ended."""
    counts = Counter(record.status for record in subject.records)
    newest = max((record.ended for record in subject.records if record.ended), default=None)
    facts = [
        (f"{'rule' if len(subject.rules) == 1 else 'rules'}", "; ".join(map(title, subject.rules))),
        ("runs", ", ".join(f"{number} {status}" for status, number in counts.most_common())),
        ("newest run", _date(newest) if newest else ""),
        ("made by", f"dgharness {__version__}"),
    ]
    yield "<dl>"
    yield from (f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    yield "</dl>"


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%d %B %Y, %H:%M} UTC"


def _contents(blocks: Sequence[Block]) -> Iterator[str]:
    yield "<nav><ul>"
    yield from (
        f'<li><a href="#b{number}">{escape(str(block))}</a></li>' for number, block in enumerate(blocks)
    )
    yield "</ul></nav>"


def _section(
    number: int,
    block: Block,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    costs: Sequence[Table],
) -> Iterator[str]:
    name, _, setting = str(block).partition(", protocol ")
    yield f'<section id="b{number}">'
    yield f'<h2>{escape(name)}</h2>\n<p class="of">protocol {escape(setting)}</p>'
    for table in tables:
        yield from _table(table)
    for picture in pictures:
        yield _figure(picture)
    for table in costs:
        yield from _table(table)
    yield "</section>"


def _table(table: Table) -> Iterator[str]:
    yield f"<h3>{escape(table.title)}</h3>"
    yield '<div class="wide"><table>'
    heads = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in table.columns)
    yield f'<thead><tr><th scope="col">algorithm</th>{heads}</tr></thead>'
    yield "<tbody>"
    for row in table.rows:
        cells = "".join(_cell(cell, column) for cell, column in zip(row.cells, table.columns, strict=True))
        yield f'<tr><th scope="row">{escape(row.label)}</th>{cells}</tr>'
    yield "</tbody></table></div>"
    yield '<div class="caption">' + "".join(f"<p>{escape(part)}</p>" for part in table.caption) + "</div>"
    if table.notes:
        yield '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in table.notes) + "</ul>"


def _cell(cell: Cell, column: Column) -> str:
    """A number with what it is uncertain by set back, or the problem in its place."""
    text = escape(shown(cell, column))
    if cell.problem:
        kind = "quiet" if cell.problem in QUIET else "problem"
        hint = f' title="{escape(cell.detail)}"' if cell.detail else ""
        return f'<td class="{kind}"{hint}>{text}</td>'
    number, blank, spread = text.partition(" ")
    starred = cell.comparison is not None and cell.comparison.significant
    number = f'<span class="significant">{number}</span>' if starred else number
    return f'<td>{number}{blank}<span class="spread">{spread}</span></td>'


def _figure(picture: Picture) -> str:
    caption = f"<b>{escape(picture.name.capitalize())}.</b> {escape(picture.caption)}"
    if picture.figure is None:
        return f'<p class="caption">{caption}</p>'
    # Without the names of its parts, which would stand on the page once for each figure.
    drawing = re.sub(r' id="[a-z]+[a-z0-9.]*_\d+"', "", as_svg(picture.figure))
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.name)}" ', 1)
    return f'<figure>\n<div class="plate">\n{drawing}</div>\n<figcaption>{caption}</figcaption>\n</figure>'
