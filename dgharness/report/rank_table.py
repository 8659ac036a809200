"""Average ranks over several datasets, as a table among the others and a critical-difference plot."""

from __future__ import annotations

from collections.abc import Sequence

from dgharness.figures import drawn
from dgharness.report.captions import title
from dgharness.report.panels import Picture
from dgharness.report.ranks import Ranks, draw, ranks, scores
from dgharness.report.table import Block, Cell, Column, Row, Stated, Table
from dgharness.selection.rule import Rule


def rank_tables(tables: Sequence[Table], rules: Sequence[Rule]) -> tuple[list[Table], list[Picture]]:
    """For each rule the ranks over the datasets of some tables; nothing where there is one dataset."""
    made, pictures = [], []
    for rule in rules:
        found = ranks(scores(tables, rule.name))
        if found is None or len(found.datasets) < 2:
            continue
        block = _of_several(tables, found)
        made.append(_table(found, rule, block))
        if found.critical_difference is not None:
            pictures.append(_picture(found, rule, block))
    return made, pictures


def _table(found: Ranks, rule: Rule, block: Block) -> Table:
    return Table(
        title=f"average ranks, {title(rule)}",
        block=block,
        columns=(Column("average rank", "number", rule.name, "extra"),),
        rows=tuple(Row(label, (Cell(stated=Stated(rank)),)) for label, rank in found.mean.items()),
        caption=(str(found), f"{title(rule)}: {rule.caption}"),
    )


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


def _of_several(tables: Sequence[Table], found: Ranks) -> Block:
    """What the ranked tables have in common; what differs is left out or said one after the other."""
    blocks = [table.block for table in tables if table.block.dataset in found.datasets]

    def shared(name: str) -> str:
        return ", ".join(dict.fromkeys(str(getattr(block, name)) for block in blocks))

    return Block(
        dataset=", ".join(found.datasets),
        protocol=shared("protocol"),
        weights=shared("weights"),
        preset=shared("preset"),
        model=shared("model"),
        tuning=shared("tuning"),
        toy=any(block.toy for block in blocks),
    )
