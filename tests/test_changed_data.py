"""Data that is changed between two runs of one process is read again, and the runs tell of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import run_small
from test_report import record

from dgharness.config import DataConfig, compose
from dgharness.errors import UsageError
from dgharness.report.cells import build_tables
from dgharness.report.load import apart_by_data, load_experiment
from dgharness.report.render import render
from dgharness.selection.last import last
from dgharness.sweep.plan import plan
from dgharness.training.prepare import load_dataset, prepare
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
    own, file = tmp_path / "own.csv", tmp_path / "t.csv"
    write(own, 0)
    run = run_small(mlflow_store, tmp_path / "runs", data={"name": f"csv:{own}", "split": ""})
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


def digests_shown(runs: list) -> list[str]:
    return [run.tags.get("dg.settings", "").rpartition("data.digest ")[2] for run in apart_by_data(runs)]


def test_a_file_is_the_same_for_every_trial_seed_or_another():
    runs = [
        replace(record("erm", trial=seed, tags={"dg.data_digest": digest}), dataset="csv:t")
        for seed, digest in enumerate("ab")
    ]
    assert digests_shown(runs) == ["a", "b"]


def test_data_that_two_trial_seeds_share_is_not_generated_by_them():
    runs = [record("erm", trial=seed, tags={"dg.data_digest": digest}) for seed, digest in enumerate("aab")]
    assert digests_shown(runs) == ["a", "a", "b"]
    folds = [replace(run, protocol="official") for run in runs]
    assert digests_shown(folds) == ["", "", ""]


def test_a_path_with_a_colon_is_watched_as_well(tmp_path):
    file = tmp_path / "ward: 3" / "t.csv"
    file.parent.mkdir()
    digests = set()
    for seed in (0, 1):
        write(file, seed)
        digests.add(load_dataset(DataConfig(name=f"csv:{file}"), "", 0).digest)
    assert len(digests) == 2


def test_a_sweep_that_is_planned_anew_sees_a_folder_that_lost_an_image(tmp_path):
    for number in range(24):
        file = tmp_path / "photos" / "ab"[number % 2] / "uv"[number // 2 % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    data = [f"data.name=folder:{tmp_path / 'photos'}", "data.size=8", f"data.cache_dir={tmp_path / 'cache'}"]
    hashes = []
    for _ in range(2):
        (job,) = plan(["erm"], targets=["a"], trials=1, hparams_seeds=1, sets=[*data, "model.name=mlp"])
        hashes.append(job.config_hash)
        file.unlink(missing_ok=True)
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("rule", "task", "lacking"),
    [("official-validation", "classification", "official metric"), ("worst-class", "regression", "classes")],
)
def test_a_rule_that_cannot_choose_is_refused_before_the_run(tmp_path, rule, task, lacking):
    rows = [f"{number % 2},{'ab'[number // 20]},{number}\n" for number in range(40)]
    (tmp_path / "t.csv").write_text("y,domain,x\n" + "".join(rows))
    sets = [f"data.name=csv:{tmp_path / 't.csv'}", "protocol.targets=a", f"data.task={task}"]
    with pytest.raises(UsageError, match=f"the rule {rule} cannot choose here: csv:t has no {lacking}"):
        prepare(compose(sets=[*sets, f"selection.rules={rule}"]))
