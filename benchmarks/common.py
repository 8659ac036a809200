"""What the benchmarks share: the data, the machine's description, the table."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgharness.config import RunConfig, compose
from dgharness.data.mnist import FILES


@contextmanager
def data_root() -> Iterator[tuple[str, str]]:
    """Where MNIST lies and what to call it: DGHARNESS_DATA, or random digits in files of the same shape."""
    if given := os.environ.get("DGHARNESS_DATA"):
        yield given, "MNIST"
        return
    with tempfile.TemporaryDirectory() as root:
        raw, random = Path(root, "MNIST", "raw"), np.random.default_rng(0)
        raw.mkdir(parents=True)
        for file, shape in FILES.items():
            header = np.zeros(4 * (1 + len(shape)), dtype=np.uint8)
            content = random.integers(0, 256 if len(shape) == 3 else 10, size=shape, dtype=np.uint8)
            (raw / file).write_bytes(header.tobytes() + content.tobytes())
        yield root, "random digits of MNIST's shape"


def config(root: str, threads: int, **settings: Any) -> RunConfig:
    """IRMv1 on colored-mnist with the defaults, but for ``settings``: ``train__steps=100``."""
    sets = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    execution = {"device": "cpu", "threads": threads, "data_root": root}
    flags = {"algorithm": "irmv1", "data": {"name": "colored-mnist"}, "execution": execution}
    return compose(sets=sets, flags=flags)


def machine(data: str = "") -> str:
    """One line that a result needs beside it."""
    parts = [
        f"{os.cpu_count()} CPUs ({platform.machine()})",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"threads {torch.get_num_threads()}",
    ]
    return ", ".join([*parts, data] if data else parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the columns aligned."""
    lines = [list(header), ["-" * len(name) for name in header], *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width, "-" if number == 1 else " ") for cell, width in zip(line, widths, strict=True)
        )
        + " |"
        for number, line in enumerate(lines)
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    lower, middle, upper = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return lower, middle, upper
