"""Data that is changed between two runs of one process is read again, and the runs tell of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import run_small
from test_report import record

from dgharness.config import DataConfig
from dgharness.report.cells import build_tables
from dgharness.report.load import apart_by_data, load_experiment
from dgharness.report.render import render
from dgharness.selection.last import last
from dgharness.training.prepare import load_dataset
from dgharness.training.run import Result
from dgharness.training.transfer import score_on


def write(file: Path, seed: int) -> None:
    """A table of as many bytes whatever the seed."""
    x_M = np.random.default_rng(seed).integers(100, 999, 60)
    rows = [f"{'uv'[row % 2]},{'abc'[row % 3]},{x},test\n" for row, x in enumerate(x_M)]
    file.write_text("y,domain,x,split\n" + "".join(rows))


def metrics(result: Result) -> list[dict[str, float]]:
    return [dict(evaluation.metrics) for evaluation in result.chosen.values()]


def test_a_table_that_was_edited_is_read_again(mlflow_store, tmp_path):
    file = tmp_path / "t.csv"
    runs = []
    for seed in (0, 1):
        write(file, seed)
        runs.append(run_small(mlflow_store, tmp_path / "runs", data={"name": f"csv:{file}", "split": ""}))
    assert metrics(runs[0]) != metrics(runs[1])


def test_a_test_set_that_was_edited_is_read_again(mlflow_store, tmp_path):
    file = tmp_path / "t.csv"
    write(file, 0)
    run = run_small(mlflow_store, tmp_path / "runs", data={"name": f"csv:{file}", "split": ""})
    scores = []
    for seed in (0, 1):
        write(file, seed)
        scores.append(score_on(run.path, f"csv:{file}"))
    assert scores[0] != scores[1]


def test_the_same_relative_path_elsewhere_is_another_table(tmp_path, monkeypatch):
    digests = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write(folder / "t.csv", seed)
        os.utime(folder / "t.csv", ns=(1, 1))
        monkeypatch.chdir(folder)
        digests.add(load_dataset(DataConfig(name="csv:t.csv"), "", 0).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_an_image_that_was_replaced_by_one_of_its_size_is_decoded_again(mlflow_store, tmp_path, kind):
    noise = np.random.default_rng(0)
    paths = [f"{domain}/{label}/{number}.bmp" for domain in "ab" for label in "uv" for number in range(6)]
    (tmp_path / "photos").mkdir()
    rows = [f"{path},{path[0]},{path[2]}\n" for path in paths]
    (tmp_path / "photos" / "t.csv").write_text("path,domain,y\n" + "".join(rows))
    argument = tmp_path / "photos" / ("t.csv" if kind == "csv" else "")
    data = {"name": f"{kind}:{argument}", "size": 8, "augment": False, "cache_dir": str(tmp_path / "cache")}
    results = []
    for _ in range(2):
        for path in paths:
            (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / path)
        model = {"name": "mlp"}
        results.append(run_small(mlflow_store, tmp_path / "runs", data=data, model=model))
    assert metrics(results[0]) != metrics(results[1])


def test_runs_on_other_data_of_the_same_name_never_share_a_table(mlflow_store, tmp_path):
    tables = []
    for seed, algorithm in enumerate(("erm", "vrex")):
        file = tmp_path / str(seed) / "t.csv"
        file.parent.mkdir()
        write(file, seed)
        data = {"name": f"csv:{file}", "split": ""}
        run_small(mlflow_store, tmp_path / "runs", algorithm, data=data)
        found = load_experiment("csv:t/leave-one-domain-out", mlflow_store)
        tables.append(build_tables(found.records, [last], expected=found.expected))
    assert [len(before_and_after) for before_and_after in tables] == [1, 2]
    for table, algorithm in zip(tables[1], ("erm", "vrex"), strict=True):
        assert [row.label for row in table.rows] == [algorithm]
        assert "data.digest " in render([table], "text")


def test_data_that_is_generated_for_every_trial_seed_is_one_table():
    tags = [{"dg.settings": "train.steps 5", "dg.data_digest": digest} for digest in ("a", "b")]
    runs = [record("erm", trial=seed, tags=of_seed) for seed, of_seed in enumerate(tags)]
    assert apart_by_data(runs) == runs
    mixed = apart_by_data([*runs, record("vrex", trial=0, tags=tags[1])])
    assert [run.tags["dg.settings"].rpartition("; ")[2] for run in mixed] == [
        "data.digest a",
        "data.digest b",
        "data.digest b",
    ]
