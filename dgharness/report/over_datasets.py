"""Several datasets side by side: a column for each, their mean, average ranks, a critical-difference plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dgharness.figures import drawn
from dgharness.report.captions import title
from dgharness.report.panels import Picture
from dgharness.report.ranks import Ranks, draw, ranks, scores
from dgharness.report.table import NONE, Block, Cell, Column, Row, Stated, Table
from dgharness.selection.rule import Rule

Place = tuple[Table, int]  # a table, and one of its columns


def over_datasets(tables: Sequence[Table], rules: Sequence[Rule]) -> tuple[list[Table], list[Picture]]:
    """For each rule a table of its results on all datasets; nothing where there is one dataset.

    A dataset's result is the average over its held-out domains, or its only result; further accuracies, such
    as that of the worst group, have a table each. The mean over datasets counts each the same, and needs
    accuracies of every dataset, each of which stands there once.
    """
    made, pictures = [], []
    for rule in rules:
        found = ranks(scores(tables, rule.name))
        results = [(table, place) for table in tables if (place := _result(table, rule)) is not None]
        if _datasets(results) > 1:
            made.append(_table(results, rule, found))
            if found is not None and found.critical_difference is not None:
                pictures.append(_picture(found, rule, made[-1].block))
        for name, columns in _further(tables, rule).items():
            if _datasets(columns) > 1:
                made.append(_table(columns, rule, metric=name))
    return made, pictures


def _datasets(columns: Sequence[Place]) -> int:
    return len({table.block.dataset for table, _ in columns})


def _further(tables: Sequence[Table], rule: Rule) -> dict[str, list[Place]]:
    """The columns of every further accuracy under a rule."""
    found: dict[str, list[Place]] = {}
    for table in tables:
        for place, column in enumerate(table.columns):
            if (column.kind, column.unit, column.rule) == ("extra", "percent", rule.name):
                found.setdefault(column.measures[0], []).append((table, place))
    return found


def _result(table: Table, rule: Rule) -> int | None:
    """The number of the column that sums a dataset up under a rule."""
    of_rule = [place for place, column in enumerate(table.columns) if column.rule == rule.name]
    for kind in ("average", "result"):
        found = [place for place in of_rule if table.columns[place].kind == kind]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _table(results: Sequence[Place], rule: Rule, found: Ranks | None = None, *, metric: str = "") -> Table:
    names = _names([table.block for table, _ in results])
    columns = [
        Column(name, table.columns[place].unit, rule.name, "extra")
        for name, (table, place) in zip(names, results, strict=True)
    ]
    cells: list[Mapping[str, Cell]] = [
        {row.label: replace(row.cells[place], comparison=None) for row in table.rows}
        for table, place in results
    ]
    labels = list(dict.fromkeys(label for column in cells for label in column))
    if len({table.block.dataset for table, _ in results}) == len(results) and all(
        column.unit == "percent" for column in columns
    ):
        columns.append(Column("mean of the datasets", "percent", rule.name, "extra"))
        cells.append({label: _mean([column.get(label, NONE) for column in cells]) for label in labels})
    if found is not None:
        columns.append(Column("average rank", "number", rule.name, "extra"))
        cells.append({label: Cell(stated=Stated(rank)) for label, rank in found.mean.items()})
    ddof = next((cell.ddof for column in cells for cell in column.values() if cell.n), 1)
    what = metric or "the result"
    said = [
        f"Of each dataset {what}, averaged over its held-out domains where it has several: mean ± standard "
        f"error over trials (ddof = {ddof}). The mean of the datasets counts each the same.",
        str(found) if found is not None else "",
        f"{title(rule)}: {rule.caption}",
    ]
    return Table(
        title=f"{f'{metric}, ' if metric else ''}datasets side by side, {title(rule)}",
        block=_of_several([table.block for table, _ in results]),
        columns=tuple(columns),
        rows=tuple(Row(label, tuple(column.get(label, NONE) for column in cells)) for label in labels),
        caption=tuple(filter(None, said)),
    )


def _mean(cells: Sequence[Cell]) -> Cell:
    means = [cell.mean for cell in cells if cell.mean is not None]
    return Cell(stated=Stated(sum(means) / len(means))) if len(means) == len(cells) else NONE


def _names(blocks: Sequence[Block]) -> list[str]:
    """The datasets; one that is there more than once with what tells its tables apart."""
    names = []
    for number, block in enumerate(blocks, 1):
        alike = [other for other in blocks if other.dataset == block.dataset]
        apart = [
            getattr(block, name)
            for name in ("protocol", "model", "weights", "tuning", "preset")
            if len({getattr(other, name) for other in alike}) > 1
        ]
        told = ", ".join(part or "none" for part in apart) or f"table {number}"
        names.append(block.dataset if len(alike) == 1 else f"{block.dataset} ({told})")
    return names


def _picture(found: Ranks, rule: Rule, block: Block) -> Picture:
    figure, (axes,) = drawn(1, 1, width=8.0, height=1.2 + 0.3 * len(found.mean))
    draw(found, axes)
    return Picture(
        "critical difference",
        f"Average ranks by {title(rule)}; a bar joins algorithms whose ranks differ by less than the "
        "critical difference of Nemenyi's test.",
        figure,
        block,
    )


def _of_several(blocks: Sequence[Block]) -> Block:
    """What the tables have in common; what differs is left out or said one after the other."""

    def shared(name: str) -> str:
        return ", ".join(dict.fromkeys(str(getattr(block, name)) for block in blocks))

    return Block(
        dataset=shared("dataset"),
        protocol=shared("protocol"),
        weights=shared("weights"),
        preset=shared("preset"),
        model=shared("model"),
        tuning=shared("tuning"),
        toy=any(block.toy for block in blocks),
    )
