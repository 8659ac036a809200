"""A comparison as data: what every output format prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dgharness.report.paired import Comparison
from dgharness.report.statistics import Ddof, mean_se
from dgharness.selection.rule import RunRecord

Unit = Literal["percent", "points", "number", "change"]
Kind = Literal["result", "average", "difference", "extra", "gap", "published"]
OWN_SPLIT = ("official", "subpopulation")  # protocols whose targets are those of the dataset's own split


@dataclass(frozen=True)
class Block:
    """What runs must share to stand in one table."""

    dataset: str
    protocol: str
    weights: str
    preset: str = field(compare=False)  # the settings it made are compared, not its name
    model: str
    tuning: str
    toy: bool
    settings: str = ""  # of data, protocol, model, optimizer and loop, as far as comparisons share them

    def __str__(self) -> str:
        parts = [
            f"{self.dataset} (a toy)" if self.toy else self.dataset,
            f"protocol {self.protocol}",
            f"model {self.model}" if self.model else "",
            f"weights {self.weights}",
            f"tuning {self.tuning}" if self.tuning else "",
            f"preset {self.preset or 'none'}",
        ]
        return ", ".join(part for part in parts if part)


def block_of(record: RunRecord) -> Block:
    """The block that a run belongs to."""
    tags = record.tags
    return Block(
        dataset=record.dataset,
        protocol=record.protocol,
        weights=record.weights,
        preset=record.preset,
        model=tags.get("dg.model", ""),
        tuning=tags.get("dg.tuning", ""),
        toy=tags.get("dg.toy") == "true",
        settings=tags.get("dg.settings", ""),
    )


def told_apart(blocks: Sequence[Block]) -> dict[Block, str]:
    """For each block the settings by which it differs from others on the same dataset and protocol.

    >>> one, two = (Block("d", "p", "scratch", "", "mlp", "", False, f"train.steps {n}; a 1") for n in (5, 9))
    >>> told_apart([one, two])[two]
    'train.steps 9'
    """
    apart = {}
    for block in blocks:
        rivals = [b for b in blocks if (b.dataset, b.protocol) == (block.dataset, block.protocol)]
        shared = set.intersection(*(set(rival.settings.split("; ")) for rival in rivals))
        apart[block] = "; ".join(item for item in block.settings.split("; ") if item not in shared)
    return apart


def label_of(record: RunRecord) -> str:
    """The row of a run: its algorithm, with the averaging and test-time method if it has any."""
    added = [part for part in (record.averaging, record.tta) if part not in ("", "none")]
    return " + ".join([record.algorithm, *added])


def algorithm_of(label: str) -> str:
    """The algorithm of a row."""
    return label.partition(" + ")[0]


@dataclass(frozen=True)
class Stated:
    """A number without trials of its own: what others published, or a rank."""

    value: float
    spread: float | None = None  # what it is, the table's caption says
    source: str = ""


@dataclass(frozen=True)
class Cell:
    """One number per trial, or the problem that keeps the cell empty, or a number without trials."""

    trials: Mapping[int, float] = field(default_factory=dict)  # trial seed -> value, accuracies as fractions
    problem: str = ""  # short, shown in place of the number
    detail: str = ""  # the problem in full
    comparison: Comparison | None = None  # to the baseline
    stated: Stated | None = None  # in place of trials
    ddof: Ddof = 1  # of the standard error

    @property
    def n(self) -> int:
        return len(self.trials)

    @property
    def mean(self) -> float | None:
        return mean_se(list(self.trials.values()))[0] if self.trials else None

    @property
    def se(self) -> float | None:
        """Standard error over trials; None with fewer than two."""
        return mean_se(list(self.trials.values()), self.ddof)[1] if self.trials else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over trials (ddof=1 always); None with fewer than two."""
        se = mean_se(list(self.trials.values()))[1] if self.trials else None
        return None if se is None else se * math.sqrt(self.n)


NONE = Cell(problem="–")  # nobody measured that


@dataclass(frozen=True)
class Column:
    """What its cells hold: ``percent`` and ``points`` are fractions shown times 100.

    ``points`` and ``change`` are differences, of fractions and of numbers, and shown with a sign.
    """

    name: str
    unit: Unit = "percent"
    rule: str = ""
    kind: Kind = "result"
    of: tuple[str, ...] = ()  # held-out domains, or a metric; of a result, its name if nothing else

    @property
    def measures(self) -> tuple[str, ...]:
        return self.of or (self.name,)

    @property
    def is_difference(self) -> bool:
        return self.unit in ("points", "change")


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows are algorithms; the caption says everything that a reader needs to cite a number."""

    title: str
    block: Block
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: tuple[str, ...]  # paragraphs
    notes: tuple[str, ...] = ()
