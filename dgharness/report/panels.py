"""A figure with its caption; small multiples, axes side by side with one legend; names as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dgharness.figures import Axes, Figure, drawn
from dgharness.report.table import Block


@dataclass(frozen=True)
class Picture:
    """A figure, with the sentences that a reader needs beside it."""

    name: str
    caption: str
    figure: Figure | None  # None: why there is none, the caption says
    block: Block


def panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    """Axes in rows of three or four; those left over are not seen."""
    columns = 4 if number % 4 == 0 else min(number, 3)
    rows = -(-number // columns)
    figure, axes = drawn(rows, columns, width=9.0 / max(columns, 2), height=height)
    for ax in axes[number:]:
        ax.set_visible(False)
    return figure, axes


def on_the_left(axes: Sequence[Axes], text: str) -> None:
    for ax in axes:
        if leftmost(ax):
            ax.set_ylabel(text)


def leftmost(ax: Axes) -> bool:
    """Whether nothing stands to the left of it in its row."""
    place = ax.get_subplotspec()
    return place is not None and place.is_first_col()


def legend(figure: Figure, ax: Axes, looks: Mapping[str, tuple[str, str]], lines: bool = True) -> None:
    """One for all panels, below them."""
    entries = [
        ax.plot([], [], color=colour, marker="" if lines else marker, linestyle="-" if lines else "")[0]
        for colour, marker in looks.values()
    ]
    figure.legend(
        entries,
        [plain(name) for name in looks],
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() // 1.5)),
        frameon=False,
        fontsize=8,
    )


def plain(name: str) -> str:
    """A name in a figure as it is, be there dollars in it."""
    return name.replace("$", r"\$")
