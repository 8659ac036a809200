"""Thousands of domains, as reviewers or scaffolds are: runs, sweeps and reports are no longer for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_runs import stored

DOMAINS = 3000


@pytest.fixture
def table(tmp_path):
    stream = np.random.default_rng(0)
    rows = 3 * DOMAINS
    y = stream.integers(0, 2, rows)
    domain = np.repeat([f"reviewer {number:05}" for number in range(DOMAINS)], 3)
    split = np.repeat(np.resize(["train", "test", "val"], DOMAINS), 3)
    values = {"y": y, "domain": domain, "split": split, "x0": y + stream.normal(size=rows), "x1": y * 0.5}
    path = tmp_path / "many.csv"
    pd.DataFrame(values).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_a_sweep_over_an_own_split_of_thousands_of_domains_is_reported(table, tmp_path, mlflow_store):
    def dgharness(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", "from dgharness.cli import main; main()", *words],
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_store, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    settings = "protocol.name=official train.steps=4 train.eval_every=2 train.rows=2 model.name=linear"
    sets = [word for setting in settings.split() for word in ("--set", setting)]
    dgharness("sweep", "-a", "erm,vrex", "-d", f"csv:{table}", "--trials", "2", *sets)
    found = dgharness("report", "csv:many/official", "--rule", "last", "--format", "json")
    assert "1000 domains" in found and "reviewer" not in found
    (path, *_) = [run for run in (tmp_path / "runs").iterdir() if (run / "run.json").is_file()]
    assert json.loads(stored(mlflow_store, path)["tags"]["dg.targets"]) == ["1000 domains"]
