"""Tiny datasets in the official layouts: each module holds ``LAYOUTS``, registered name -> ``Layout``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """How to write a dataset's files under a data root (below 2 MB), and how to train on them in seconds."""

    write: Callable[[Path], None]
    sets: tuple[str, ...] = ()  # as --set takes them
    argument: str = ""  # what follows the name after a colon; {root} is the data root
    needs: tuple[str, ...] = ()  # modules of an extra
    proof: str = ""  # the test that holds its official metric to the original: "test_wilds.py::test_..."


def layouts() -> dict[str, Layout]:
    """All of them."""
    found: dict[str, Layout] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= importlib.import_module(f"{__name__}.{module.name}").LAYOUTS
    return found
