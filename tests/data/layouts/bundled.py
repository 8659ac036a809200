"""What is bundled or generated needs no files; MNIST's are headers and holes; and a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from layouts import Layout

SMALL = ("model.name=mlp", "model.width=8", "train.batch_size=8")
MNIST = {  # file -> (dimensions of its header)
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
SYNTHETIC = (
    "unit-test-1 unit-test-1s unit-test-2 unit-test-2s unit-test-3 unit-test-3s linear-sem slabs "
    "feature-contamination zin"
)


def nothing(root: Path) -> None:
    """Needs no files."""


def mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, shape in MNIST.items():
        magic = 0x0800 + len(shape)
        with open(raw / name, "wb") as file:
            file.write(np.array([magic, *shape], dtype=">i4").tobytes())
            file.truncate(4 * (1 + len(shape)) + int(np.prod(shape)))


def photographs(root: Path) -> None:
    """Two domains of two classes of five images each."""
    stream = np.random.default_rng(0)
    for domain in ("art", "sketch"):
        for label in ("cat", "dog"):
            folder = root / "photographs" / domain / label
            folder.mkdir(parents=True)
            for number in range(5):
                pixels = stream.integers(0, 256, (12, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


LAYOUTS = {
    **dict.fromkeys(("colored-digits", "rotated-digits"), Layout(nothing, SMALL)),
    **dict.fromkeys(("colored-mnist", "rotated-mnist", "irm-colored-mnist"), Layout(mnist, SMALL)),
    **{f"synthetic:{name}": Layout(nothing, ("train.batch_size=8",)) for name in SYNTHETIC.split()},
    "folder": Layout(photographs, (*SMALL, "data.size=16"), argument="{root}/photographs"),
}
