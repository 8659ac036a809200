"""Every dataset in its official layout: it loads, splits, trains and is scored by its own evaluation.

docs/datasets.md names these tests as its evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import Layout, layouts

from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import PROTOCOLS, default_targets
from dgharness.training.prepare import load_dataset, prepare
from dgharness.training.progress import Progress
from dgharness.training.run import train

LAYOUTS = layouts()
OWN_LIMIT = 2_000_000  # bytes


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Layout]]:
    """Writes the layout of a dataset once; where an extra is missing, the test is skipped."""
    written: dict[str, Path] = {}

    def write(name: str) -> tuple[Path, Layout]:
        layout = LAYOUTS[name]
        for module in layout.needs:
            pytest.importorskip(module)
        if name not in written:
            written[name] = tmp_path_factory.mktemp("layout")
            layout.write(written[name])
        return written[name], layout

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all: to make a store takes longer than a run."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def config_of(name: str, root: Path, layout: Layout, output: Path, *sets: str) -> Any:
    argument = f":{layout.argument.format(root=root)}" if layout.argument else ""
    return compose(
        sets=[
            *layout.sets,
            f"data.name={name}{argument}",
            f"execution.data_root={root}",
            f"execution.output={output / 'runs'}",
            "execution.device=cpu",
            "train.steps=5",
            "train.eval_every=5",
            *sets,
        ]
    )


def loaded(name: str, root: Path, layout: Layout, output: Path) -> Dataset:
    config = config_of(name, root, layout, output)
    return load_dataset(config.data, str(root), 0)


@pytest.fixture(autouse=True)
def cache_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_loads(name: str, laid_out: Any, tmp_path: Path):
    root, layout = laid_out(name)
    states = {state.st_ino: state for file in root.rglob("*") if file.is_file() and (state := file.stat())}
    assert sum(min(s.st_size, 512 * s.st_blocks) for s in states.values()) < OWN_LIMIT
    dataset = loaded(name, root, layout, tmp_path)
    rows = len(dataset.manifest)
    assert rows == len(dataset.targets_M) == len(dataset.domain_M) > 0
    first = dataset.prepare(dataset.reader(torch.arange(min(rows, 2))))
    if isinstance(first, torch.Tensor):
        assert first.shape[1:] == dataset.input_shape and first.isfinite().all()
    assert loaded(name, root, layout, tmp_path).digest == dataset.digest


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_splits(name: str, laid_out: Any, tmp_path: Path):
    root, layout = laid_out(name)
    dataset = loaded(name, root, layout, tmp_path)
    protocols = {dataset.defaults.protocol, *(["leave-one-domain-out"] if len(dataset.domains) > 1 else [])}
    for protocol in protocols:
        try:
            splits = PROTOCOLS[protocol](dataset, default_targets(protocol, dataset), 0, 0.2)
        except Exception as error:
            if protocol != dataset.defaults.protocol and "too few" in str(error):
                continue  # a tiny domain
            raise
        rows = np.concatenate([r for of in splits.rows.values() for r in of.values()])
        assert len(np.unique(rows)) == len(rows) <= len(dataset.manifest)
        assert {"train", "val", "test"} <= set(splits.rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_trains_and_is_scored_by_its_official_metric(name: str, laid_out: Any, store: str, tmp_path: Path):
    root, layout = laid_out(name)
    config = config_of(name, root, layout, tmp_path, f"execution.tracking_uri={store}")
    prepared = prepare(config)
    result = train(config, progress=Progress(say=lambda text: None))
    assert result.status == "FINISHED"
    metrics = result.chosen["last"].metrics
    assert metrics["test/count"] > 0
    if prepared.dataset.official is not None:
        assert prepared.dataset.official_metric
        official = metrics[f"test/official/{prepared.dataset.official_metric}"]
        assert isinstance(official, float)
