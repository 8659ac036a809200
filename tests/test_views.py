"""The views that an experiment offers in MLflow: there once, and naming what the runs have logged."""

from __future__ import annotations

import base64
import json
import re
import zlib

import pytest
from mlflow import MlflowClient
from small_runs import run_small

from dgharness.metrics.measure import ACCURACY, SQUARED_ERROR
from dgharness.tracking.views import TAG, offer_views, saved, views

RULE = "training-domain-validation"


def opened(value: str) -> tuple[str, dict]:
    """A saved view's name and state, as MLflow's page reads them."""
    view = json.loads(value)
    header, packed = view["state"].split(";")
    assert header == "deflate"
    return view["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


def test_a_view_is_stored_as_the_page_stores_its_own():
    assert opened(saved("mine", {"searchFilter": "", "groupBy": None})) == (
        "mine",
        {"searchFilter": "", "groupBy": None},
    )


@pytest.mark.parametrize(
    ("measure", "result", "worst"),
    [
        (ACCURACY, "test_acc", "test_wga"),
        (SQUARED_ERROR, "test_mse", "test_mse_worst_group"),
    ],
)
def test_views_go_by_the_measure_of_the_task(measure, result, worst):
    state = views(RULE, measure)[f"Worst group against all, by {RULE}"]
    (scatter,) = [chart for chart in state["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert scatter["xaxis"]["key"] == f"chosen/{RULE}/{result}"
    assert scatter["yaxis"]["key"] == f"chosen/{RULE}/{worst}"
    assert state["orderByKey"] == f"metrics.`chosen/{RULE}/{worst}`"


def test_a_finished_run_offers_views_of_what_it_has_logged(mlflow_store, tmp_path):
    run_small(mlflow_store, tmp_path, "irmv1")
    client = MlflowClient(mlflow_store)
    experiment = client.get_experiment_by_name("colored-digits/leave-one-domain-out")
    stored = dict(opened(value) for key, value in experiment.tags.items() if key.startswith(TAG))
    assert set(stored) == set(views(RULE, ACCURACY))

    (run,) = client.search_runs([experiment.experiment_id])
    curves = {key for key in run.data.metrics}
    for name, state in stored.items():
        charted = {chart.get("metricKey") for chart in state.get("compareRunCharts", [])} - {None}
        columns = {re.fullmatch(r"(\w+)\.`(.+)`", column) for column in state["selectedColumns"]}
        assert charted <= curves, name
        assert {found[2] for found in columns if found[1] == "metrics"} <= curves, name
        grouped = {key["groupByData"] for key in (state["groupBy"] or {}).get("groupByKeys", [])}
        assert grouped <= set(run.data.tags), name


def test_a_second_run_leaves_the_views_alone(mlflow_store, tmp_path):
    run_small(mlflow_store, tmp_path)
    client = MlflowClient(mlflow_store)
    experiment = client.get_experiment_by_name("colored-digits/leave-one-domain-out")
    before = client.get_experiment(experiment.experiment_id).tags
    offer_views(client, experiment.experiment_id, RULE, ACCURACY)
    assert client.get_experiment(experiment.experiment_id).tags == before
