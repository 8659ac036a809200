"""Stored predictions: what is written is read again, and a file of another kind is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import run_small

from dgharness.errors import UsageError
from dgharness.predictions import Predictions, read_predictions, write_predictions

N, GROUPS = 7, ("y=0,color=red", "y=1,color=é/ü", "nobody")


def predictions(**changes: Any) -> Predictions:
    draw = torch.Generator().manual_seed(0)
    found = Predictions(
        task="classification",
        row_N=torch.randperm(100, generator=draw)[:N],
        split_N=np.array(["val"] * 3 + ["test"] * 4),
        outputs_NC=torch.randn(N, 12, generator=draw),
        targets=torch.randint(12, (N,), generator=draw),
        domain_N=torch.randint(3, (N,), generator=draw),
        domains=("+90%", "art", "1"),
        group=torch.tensor([0, 1, -1, 0, 1, 1, 0]),
        groups=GROUPS,
        classes=tuple("abcdefghijkl"),
        train_count_G=torch.tensor([5, 6, 0]),
        min_group_size=3,
    )
    return dataclasses.replace(found, **changes)


def assert_same(one: Predictions, other: Predictions) -> None:
    for field in dataclasses.fields(Predictions):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
        elif isinstance(left, np.ndarray):
            assert left.tolist() == right.tolist()
        else:
            assert left == right


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group": torch.rand(N, 3) < 0.5, "train_count_G": None},
        {"task": "regression", "targets": torch.tensor([1.5, torch.nan, *range(5)]), "classes": ()},
        {"task": "multilabel", "targets": torch.tensor([[0.0, 1.0, torch.nan]] * N), "classes": ()},
        {
            "task": "tokens",
            "classes": (),
            "right_N": torch.rand(N).double(),
            "loss_N": torch.rand(N).double(),
        },
        {"outputs_NC": torch.full((N, 12), torch.nan)},
    ],
    ids=["classes", "overlapping groups", "numbers", "labels", "tokens", "NaN"],
)
def test_predictions_are_read_as_they_were_written(tmp_path, changes):
    written = predictions(**changes)
    write_predictions(tmp_path / "predictions-1.parquet", written)
    assert_same(read_predictions(tmp_path / "predictions-1.parquet"), written)


def test_the_same_predictions_make_the_same_file(tmp_path):
    for name in "ab":
        write_predictions(tmp_path / name, predictions())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_table_can_be_read_without_this_package(tmp_path):
    write_predictions(tmp_path / "p.parquet", predictions())
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert [*table.columns[:5], table.columns[-1]] == ["row", "split", "domain", "y", "logit_0", "group"]
    assert set(table["domain"]) <= {"+90%", "art", "1"} and table["logit_11"].dtype == np.float32


def test_some_splits_are_chosen_with_all_that_belongs_to_their_rows():
    found = predictions().of("test")
    assert set(found.split_N) == {"test"} and len(found) == 4
    assert found.row_N.tolist() == predictions().row_N[3:].tolist() and found.groups == GROUPS
    assert len(predictions().of("test", "val")) == N and len(predictions().of("id_val")) == 0


def test_a_file_that_is_no_table_or_says_nothing_of_its_columns_is_refused(tmp_path):
    (tmp_path / "text").write_text("no parquet")
    pd.DataFrame({"row": [1], "split": ["val"]}).to_parquet(tmp_path / "bare")
    for name, said in (("text", "cannot be read"), ("bare", "does not say"), ("absent", "cannot be read")):
        with pytest.raises(UsageError, match=said):
            read_predictions(tmp_path / name)


def test_a_run_leaves_predictions_of_every_split_that_was_scored(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path)
    found = read_predictions(result.path / f"predictions-{result.chosen['last'].step}.parquet")
    assert set(found.split_N) == {"val", "test", "test_holdout"}
    test, metrics = found.of("test"), result.chosen["last"].metrics
    right_N = test.outputs_NC.argmax(1) == test.targets
    assert right_N.double().mean().item() == pytest.approx(metrics["test/acc_avg"])
    assert found.train_count_G is not None and found.train_count_G.sum() > 0
    assert len(found.classes) == found.outputs_NC.shape[1] and len(found.groups) == len(found.train_count_G)


@pytest.mark.parametrize("limit", [64, 0])
def test_every_metric_of_a_kept_checkpoint_stands_beside_its_predictions(mlflow_store, tmp_path, limit):
    result = run_small(mlflow_store, tmp_path, selection={"predictions_mb": limit, "rules": ["last"]})
    step, metrics = result.chosen["last"].step, result.chosen["last"].metrics
    assert (result.path / f"predictions-{step}.parquet").exists() == (limit > 0)
    table = pd.read_csv(result.path / f"metrics-{step}.csv", keep_default_na=False, na_values=[""])
    assert set(table["split"]) == ({"val", "test"} if limit else {"test"})
    for split, metric, value, low, high in table.loc[
        table["slice"] == "worst", ["split", "metric", "value", "low", "high"]
    ].itertuples(index=False):
        assert value == pytest.approx(metrics[f"{split}/{metric}"])
        assert low <= value <= high or metric in ("worst_class_precision", "worst_class_f1")
