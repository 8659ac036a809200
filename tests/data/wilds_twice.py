"""A dataset of WILDS in its tiny official layout, loaded by our loader and by the package's own class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import wilds_images
from layouts.wilds_images import LAYOUTS, SIDE
from torchvision import transforms

from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.wilds.compat import constructing, import_wilds
from dgharness.training.prepare import load_dataset

NAMES = tuple(name.removeprefix("wilds:") for name in LAYOUTS)
IMAGES = tuple(name for name in NAMES if name not in ("poverty", "sqf"))
GROUP_BY = {  # in training, as the benchmark has it
    "camelyon17": ["hospital"],
    "iwildcam": ["location"],
    "fmow": ["year"],
    "rxrx1": ["experiment"],
    "domainnet": ["category"],
    "celebA": ["male", "y"],
    "waterbirds": ["background", "y"],
    "bdd100k": ["timeofday"],
    "poverty": ["country"],
    "sqf": ["y"],
}


def as_is(x: Any) -> Any:
    return x


squash_and_crop = transforms.Compose(
    [transforms.Resize((SIDE * 256 // 224, SIDE * 256 // 224)), transforms.CenterCrop(SIDE)]
)
FIT: dict[str, Callable[[Any], Any]] = {  # as the benchmark brings images to a size
    **dict.fromkeys(NAMES, as_is),
    "waterbirds": squash_and_crop,
    "domainnet": squash_and_crop,
    "celebA": transforms.CenterCrop(SIDE),
    "bdd100k": transforms.CenterCrop(SIDE),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wilds")
    for layout in LAYOUTS.values():
        layout.write(root)
    wilds_images.camelyon17_unlabeled(root)
    return root


@pytest.fixture(autouse=True)
def cache_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def ours(name: str, root: Path, *sets: str) -> Dataset:
    size = [f"data.size={SIDE}"] if name in IMAGES else []
    config = compose(sets=[f"data.name=wilds:{name}", *size, *(f"data.{each}" for each in sets)])
    return load_dataset(config.data, str(root), 0)


def theirs(name: str, root: Path, scheme: str = "", **kwargs: Any) -> Any:
    if name == "domainnet":
        kwargs = {"source_domain": "real", "target_domain": "sketch", **kwargs}
    scheme = scheme or ("all_race" if name == "sqf" else "official")
    with constructing():
        return import_wilds().get_dataset(name, root_dir=str(root), split_scheme=scheme, **kwargs)


def grouper(source: Any, fields: list[str]) -> Any:
    import_wilds()
    from wilds.common.grouper import CombinatorialGrouper

    return CombinatorialGrouper(source, fields)


def row_of(dataset: Dataset) -> np.ndarray:
    """Which row of the package's dataset each of ours is."""
    if "row" not in dataset.manifest:
        return np.arange(len(dataset.manifest))
    return dataset.manifest["row"].to_numpy(copy=True)
