"""Tables as users have them: features, photographs and texts, each with columns of their own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from layouts import Layout

ROWS = 120


def features(rows: int = ROWS) -> pd.DataFrame:
    """Three sites, two classes, a split, an attribute, a time and three features."""
    row = np.arange(rows)
    noise = np.random.default_rng(0)
    y = row % 2
    return pd.DataFrame(
        {
            "y": np.where(y == 0, "healthy", "ill"),
            "domain": [f"site {number}" for number in (2, 10, 1) * (rows // 3)],
            "split": np.array(["train", "train", "val", "test"])[row // 3 % 4],
            "sex": np.array(["female", "male"])[row // 2 % 2],
            "time": row / 4,
            "x1": y + noise.normal(size=rows).round(3),
            "x2": 1000 + 10 * noise.normal(size=rows).round(3),
            "x3": row % 7,
        }
    )


def write_csv(root: Path) -> None:
    features().to_csv(root / "patients.csv", index=False)


def write_parquet(root: Path) -> None:
    """Photographs under a column of another name."""
    table = features(60).drop(columns=["x1", "x2", "x3"])
    table["file"] = [f"photos/{number:02}.png" for number in range(len(table))]
    (root / "photos").mkdir()
    noise = np.random.default_rng(0)
    for name in table["file"]:
        Image.fromarray(noise.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(root / name)
    table.to_parquet(root / "photos.parquet", index=False)


LAYOUTS = {
    "csv": Layout(write_csv, sets=("model.width=8",), argument="{root}/patients.csv"),
    "parquet": Layout(
        write_parquet,
        sets=("data.path=file", "data.size=8", "model.name=linear", "train.batch_size=4"),
        argument="{root}/photos.parquet",
    ),
}
