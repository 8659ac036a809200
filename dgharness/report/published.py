"""Published numbers beside measured ones: shipped as data, with their source, protocol and rule.

A number is shown where the dataset, the protocol, the rule and the row are the same by name; capitals do not
count in that of a row, since imported ones are called as they were elsewhere. Whatever else differs is said
in the caption, because no number of another's code is comparable without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import yaml

from dgharness.preset import preset_tree
from dgharness.report.table import NONE, Block, Cell, Column, Row, Stated, Table, block_of
from dgharness.selection.rule import RunRecord


@dataclass(frozen=True, eq=False)  # one for each file
class Source:
    """Where numbers were published, and all that they must not be read without."""

    name: str
    about: str
    source: str
    url: str
    protocol: str
    trials: int | str
    draws: int | str
    spread: str
    caveats: Sequence[str]
    datasets: Mapping[str, Mapping[str, Any]]  # domains that an average is over; preset or settings; caveats
    commit: str = ""


@dataclass(frozen=True)
class Number:
    """One published number; a share between 0 and 1 where it is one of percent."""

    source: Source
    dataset: str
    rule: str
    column: str  # a held-out domain, "average", or a metric
    label: str  # the row: an algorithm, with its test-time method
    value: float
    spread: float | None


@cache
def published() -> tuple[Number, ...]:
    """Every number that comes with the package."""
    folder = resources.files("dgharness.report") / "reference"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda f: f.name)
    return tuple(
        number
        for file in files
        for number in _numbers(file.name.removesuffix(".yaml"), yaml.safe_load(file.read_text("utf-8")))
    )


def _numbers(name: str, tree: dict[str, Any]) -> Iterator[Number]:
    tables = tree.pop("tables")
    source = Source(name=name, **tree)
    for table in tables:
        scale = 1.0 if table.get("unit") == "number" else 0.01
        for row in table["rows"]:
            values = row["values"].split()
            for label, text in zip(table["algorithms"], values, strict=True):
                value, _, spread = text.partition("±")
                if value != "-":
                    yield Number(
                        source,
                        row["dataset"],
                        table["rule"],
                        row["column"],
                        label,
                        scale * float(value),
                        scale * float(spread) if spread else None,
                    )


def beside(table: Table, records: Sequence[RunRecord], *, others: bool = False) -> Table:
    """The table with a column of published numbers after each column that has any, and where they are from.

    ``records`` are the runs of the report. ``others`` adds a row for each method that was published and not
    run. Where nothing was published, a note says so.
    """
    block = table.block
    known = [n for n in published() if (n.dataset, n.source.protocol) == (block.dataset, block.protocol)]
    if others:
        table = replace(table, rows=(*table.rows, *_not_run(table, known)))
    columns: list[Column] = []
    cells: list[list[Cell]] = [[] for _ in table.rows]
    used: dict[Source, list[Number]] = {}
    for place, column in enumerate(table.columns):
        found = {_called(n.label): n for n in known if _belongs(n, column)}
        columns.append(column)
        if any(_called(row.label) in found for row in table.rows):
            columns.append(Column(f"published: {column.name}", column.unit, column.rule, "published"))
        for row, line in zip(table.rows, cells, strict=True):
            line.append(row.cells[place])
            if columns[-1].kind == "published":
                number = found.get(_called(row.label))
                line.append(_stated(number) if number else NONE)
                if number:
                    used.setdefault(number.source, []).append(number)
    if not used:
        return replace(table, notes=(*table.notes, _nothing(table, known)))
    said = tuple(_citation(source, numbers, block, records) for source, numbers in used.items())
    rows = tuple(Row(row.label, tuple(line)) for row, line in zip(table.rows, cells, strict=True))
    return replace(table, columns=tuple(columns), rows=rows, caption=(*table.caption, *said))


def _not_run(table: Table, known: Sequence[Number]) -> list[Row]:
    """Empty rows of the methods that some column of the table has a published number of."""
    labels = [n.label for n in known if any(_belongs(n, column) for column in table.columns)]
    run = {_called(row.label) for row in table.rows}
    nothing = (NONE,) * len(table.columns)
    return [Row(label, nothing) for label in dict.fromkeys(labels) if _called(label) not in run]


def _called(label: str) -> str:
    return label.lower()


def _belongs(number: Number, column: Column) -> bool:
    """Whether a column measures what the number does; an average only where it is over the same domains."""
    if column.rule != number.rule or column.kind not in ("result", "average", "extra"):
        return False
    if column.kind == "average":
        domains = number.source.datasets[number.dataset].get("domains", ())
        return number.column == "average" and set(column.measures) == set(domains)
    return column.measures == (number.column,)


def _stated(number: Number) -> Cell:
    return Cell(stated=Stated(number.value, number.spread, number.source.name))


def _nothing(table: Table, known: Sequence[Number]) -> str:
    """That nothing was published, and what was on the same dataset."""
    block, rules = table.block, ", ".join(dict.fromkeys(column.rule for column in table.columns))
    said = f"No published number is known for {block.dataset} under {block.protocol} by {rules}"
    elsewhere = list(dict.fromkeys(f"{number.column} by {number.rule}" for number in known))
    return f"{said} in the rows and columns of this table" + (
        f"; there are some for {', '.join(elsewhere)}." if elsewhere else "."
    )


def _citation(source: Source, numbers: Sequence[Number], block: Block, records: Sequence[RunRecord]) -> str:
    """Where numbers are from, how they came about, and what was done otherwise here."""
    dataset = source.datasets[block.dataset]
    rows = ", ".join(dict.fromkeys(number.label for number in numbers))
    place = ", ".join(part for part in (source.url, source.commit and f"commit {source.commit}") if part)
    caveats = [*source.caveats, *dataset.get("caveats", ())]
    other = differences(dataset, block, records)
    return (
        f"Published ({rows}): {source.about}; {source.source} ({place}). Trials: {source.trials}. Draws: "
        f"{source.draws}. ±: {source.spread}. "
        + (f"Here otherwise: {'; '.join(other)}. " if other else "No setting of its preset is changed here. ")
        + (f"To be borne in mind: {'; '.join(caveats)}." if caveats else "")
    ).strip()


def differences(dataset: Mapping[str, Any], block: Block, records: Sequence[RunRecord]) -> list[str]:
    """How the runs of a block differ from what was published of a dataset, setting by setting."""
    own = [record.tags for record in records if block_of(record) == block]
    preset = dataset.get("preset", "")
    if preset and block.preset == preset:
        deviations = (
            tags.get("dg.deviations", "") for tags in own if tags.get("dg.hparams_seed", "0") == "0"
        )
        return list(dict.fromkeys(part for text in deviations for part in text.split("; ") if part))
    found = [f"preset {block.preset or 'none'} (published: as {preset} has it)"] if preset else []
    here = dict(item.partition(" ")[::2] for item in block.settings.split("; "))
    here |= {"model.name": block.model, "model.weights": block.weights}
    for key, value in _flat(preset_tree(preset) if preset else dataset["settings"]):
        if key in here and here[key] != value:
            found.append(f"{key} {here[key]} (published: {value})")
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
