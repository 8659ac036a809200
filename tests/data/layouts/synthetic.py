"""Generators with a dial: they need no files."""

from __future__ import annotations

from pathlib import Path

from layouts import Layout

SMALL = ("model.name=mlp", "model.width=8", "train.batch_size=8")


def nothing(root: Path) -> None:
    """Needs no files."""


LAYOUTS = {
    "synthetic:controlled-shift": Layout(nothing, (*SMALL, "data.n=40", "data.size=16")),
    "synthetic:multi-color-mnist": Layout(nothing, SMALL),
    "synthetic:dominoes": Layout(nothing, SMALL),
    "synthetic:spurious-blobs": Layout(nothing, ("data.n=100", "train.batch_size=8")),
    "synthetic:drifting": Layout(nothing, (*SMALL, "data.n=50")),
}
