"""Figures in one manner, drawn without a display: for reports, diagnoses and the tracking store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # names for annotations elsewhere; matplotlib takes a second to import
    Axes = Figure = object

# Okabe and Ito's colours, which those who confuse red and green can tell apart; black is for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A800")
MARKERS = "osD^vP*X"
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "svg.hashsalt": "dgharness",  # the same figure is the same file
}


def drawn(
    rows: int = 1, columns: int = 1, *, width: float = 6.0, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many axes, row by row, each ``width`` x ``height`` inches."""
    import matplotlib
    import matplotlib.figure

    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(columns * width, rows * height))
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def look(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for every name, in their order; they repeat after 64.

    >>> look(["erm", "irmv1"])["irmv1"]
    ('#D55E00', 's')
    """
    return {
        name: (COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)])
        for n, name in enumerate(names)
    }


def heat_map(
    axes: Axes, value_RC: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, top: float | None = None
) -> None:
    """A table [R, C] as colours from 0 to ``top``, else to its largest number; NaN stays empty.

    The numbers stand in it unless they are many.
    """
    top = float(value_RC.max(where=np.isfinite(value_RC), initial=0.0)) if top is None else top
    axes.imshow(value_RC, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    if value_RC.size > 150:
        return
    for (row, column), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            colour = "white" if value > 0.6 * top else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=colour)


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element that may stand in an HTML page."""
    text = _saved(figure, format="svg", metadata={"Date": None}).decode()
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    return _saved(figure, format="png")


def _saved(figure: Figure, **options: Any) -> bytes:
    import matplotlib

    for axes in figure.axes:  # what matplotlib styles when it is made, which was outside of this file
        if title := axes.get_title():
            axes.set_title("")
            axes.set_title(title, loc="left", fontsize=STYLE["axes.titlesize"])
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, **options)
    return stream.getvalue()
