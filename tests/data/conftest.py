from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.table import TableOptions, csv, parquet
from dgharness.data.tasks import classification
from dgharness.hparams import checked


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Where MNIST and PACS lie, as DGHARNESS_DATA says."""
    if "DGHARNESS_DATA" not in os.environ:
        pytest.skip("DGHARNESS_DATA does not name a folder with MNIST and PACS")
    return Path(os.environ["DGHARNESS_DATA"])


@pytest.fixture
def table() -> Callable[..., Dataset]:
    """Makes a dataset with domains of the given sizes; the input of a row is its own number."""

    def make(**sizes: int) -> Dataset:
        domain = np.repeat(list(sizes), list(sizes.values()))
        row = np.arange(len(domain))
        manifest = pd.DataFrame(
            {
                "y": pd.Categorical.from_codes(row % 3, pd.Index(["a", "b", "c"])),
                "domain": pd.Categorical(domain, list(sizes)),
                "time": row / 10,
                "colour": pd.Categorical.from_codes(row % 2, pd.Index(["red", "green"])),
            }
        )
        x_M = torch.arange(len(row), dtype=torch.float32)[:, None]
        return Dataset("table", manifest, InMemory(x_M), classification(3), (1,), prepare=lambda x: x + 0.5)

    return make


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two domains of two classes of three images each; every image has a colour of its own."""
    folder = tmp_path / "photos"
    for number in range(12):
        domain, label = ("art", "sketch")[number // 6], ("cat", "dog")[number // 3 % 2]
        path = folder / domain / label / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (20 * number, 255 - 20 * number, 7)).save(path)
    return folder


@pytest.fixture
def load_table(tmp_path: Path) -> Callable[..., Dataset]:
    """Loads a table by csv:PATH or parquet:PATH; what is given is written first, text as it stands."""

    def run(table: pd.DataFrame | str | bytes | None, name: str = "table.csv", **options: Any) -> Dataset:
        file = tmp_path / name
        if isinstance(table, bytes):
            file.write_bytes(table)
        elif isinstance(table, str):
            file.write_text(table)
        elif table is not None and file.suffix == ".csv":
            table.to_csv(file, index=False)
        elif table is not None:
            table.to_parquet(file, index=False)
        spec = {".csv": csv, ".parquet": parquet}[file.suffix]
        chosen = {"cache_dir": tmp_path / "cache", "size": 4, "tokenizer": "hashing", **options}
        return spec.load(str(file), None, 0, checked(TableOptions, chosen, "data"))

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> pd.DataFrame:
    """A table of three images of one colour each, which lie beside it."""
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0)), ("c", (0, 0, 255))):
        Image.new("RGB", (6, 5), colour).save(tmp_path / f"{name}.png")
    return pd.DataFrame(
        {"y": ["cat", "dog", "cat"], "domain": ["u", "u", "v"], "path": ["a.png", "b.png", "c.png"]}
    )
