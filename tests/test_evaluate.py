"""``dgharness evaluate``: what was measured in training is measured again, and what was not, untrained."""

import io
import json
import math
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_runs import stored
from test_transfer import SIZE, photographs

from dgharness import cli
from dgharness.config import compose, merge
from dgharness.metrics.temperature import fit_temperature
from dgharness.names import slugs
from dgharness.predictions import read_predictions
from dgharness.training import run as training
from dgharness.training.progress import Progress
from dgharness.training.transfer import score_on

KEYS = {"acc": "acc_avg", "loss": "nll", "mse": "mse_avg", "mae": "mae_avg"}  # as a run logs them
SHORT = {"train": {"steps": 10, "eval_every": 4, "batch_size": 8}, "optimizer": {"lr": 1e-2}}
NUMBERS = {"data": {"name": "synthetic:unit-test-1", "n": 40}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, _migrated_database):
    """A directory with runs in it, and the store that they are tracked in."""
    root = tmp_path_factory.mktemp("evaluate")
    shutil.copy(_migrated_database, root / "mlflow.db")
    return SimpleNamespace(root=root, store=f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture(scope="module")
def train(place):
    """``train(**sections)``: a run of few steps, the same one for the same sections."""
    known = {}

    def run(algorithm="erm", **sections):
        key = json.dumps([algorithm, sections], sort_keys=True)
        if key not in known:
            base = {"execution": {"tracking_uri": place.store, "output": str(place.root / "runs")}, **SHORT}
            flags = merge(merge(base, {"algorithm": algorithm}), sections)
            known[key] = training.train(compose(flags=flags), progress=Progress(say=lambda text: None))
        return known[key]

    return run


@pytest.fixture
def evaluate(place, monkeypatch, capsys):
    """Run the command where the runs are; gives exit code, stdout and stderr."""
    monkeypatch.chdir(place.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.store)
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dgharness", "evaluate", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return SimpleNamespace(code=left.value.code or 0, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def table(evaluate):
    """What the command prints as CSV."""

    def run(*words):
        said = evaluate(*words, "--format", "csv", "--no-track")
        assert said.code == 0, said.err
        return pd.read_csv(io.StringIO(said.out), keep_default_na=False, na_values={"value": [""]})

    return run


def by_key(table, split="test", kind="own"):
    """The rows of one split and kind under the keys that a run logs."""
    rows = table[(table["split"] == split) & (table["predictions"] == kind)]
    names = {kind: slugs(rows.loc[rows["slice"] == kind, "name"]) for kind in ("domain", "group")}
    found = {}
    for row in rows.itertuples():
        if row.slice in names:
            prefix = "group_" if row.slice == "group" else ""
            found[f"{split}/{prefix}{row.metric}/{names[row.slice][row.name]}"] = row.value
            found[f"{split}/{prefix}count/{names[row.slice][row.name]}"] = row.count
        elif row.slice != "class":
            found[f"{split}/{KEYS.get(row.metric, row.metric)}"] = row.value
            if row.slice == "all":
                found[f"{split}/count"] = row.count
            if row.slice == "worst":
                found[f"{split}/{row.metric.removesuffix('_acc')}_count"] = row.count
    return found


def logged(result, rule, split):
    """What the run logged of a split at the checkpoint that a rule chose."""
    metrics = result.chosen[rule].metrics
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def assert_equal(found, expected):
    """The same numbers to the last bit, and none of them left out."""
    assert expected
    for key, value in expected.items():
        assert found[key] == value or (math.isnan(found[key]) and math.isnan(value)), key


# --- from stored predictions -----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test", "test_holdout"])
@pytest.mark.parametrize("rule", ["training-domain-validation", "last"])
def test_what_was_logged_in_training_is_found_again_bit_for_bit(train, table, rule, split):
    result = train("vrex")
    found = table(result.run_id, "--checkpoint", rule, "--split", split)
    assert_equal(by_key(found, split), logged(result, rule, split))


@pytest.mark.parametrize("algorithm", ["drm"])  # validation is adapted as well
def test_what_adapts_is_found_again_bit_for_bit(train, table, algorithm):
    result = train(algorithm)
    found = table(result.run_id, "--split", "val,test", "--checkpoint", "last")
    for split in ("val", "test"):
        expected = logged(result, "last", split)
        of_heads = ("test/head_acc/", "test/adaptivity_gap/")
        kept = {key: value for key, value in expected.items() if not key.startswith(of_heads)}
        assert_equal(by_key(found, split), kept)


def test_numbers_are_found_again_bit_for_bit(train, table):
    result = train(**NUMBERS)
    assert_equal(
        by_key(table(result.run_id, "--checkpoint", "last")),
        {k: v for k, v in logged(result, "last", "test").items() if "official" not in k},
    )
