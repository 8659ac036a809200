"""A registered model: anyone with MLflow and torch can load it, and it predicts as the run did."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_runs import run_small

from dgharness.errors import UsageError
from dgharness.rundir import RunDir
from dgharness.training import checkpoint
from dgharness.training.build import build
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress
from dgharness.training.register import register
from dgharness.training.run import read_config

LOADED = """
import sys
sys.modules["dgharness"] = None  # importing it would fail
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits/1")
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
print(model.metadata.signature.inputs, model.input_example.shape)
"""


def test_a_registered_model_predicts_like_the_run_without_this_package(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path / "runs", "irmv1")
    assert register(result.path, "digits") == "1"

    prepared = prepare(read_config(RunDir.open(result.path.parent, result.path.name)))
    run = build(prepared, Progress(say=lambda text: None))
    run.rundir = RunDir.open(result.path.parent, result.path.name)
    predictor = run.learner.predictor(run.source, checkpoint.load_weights(run, "training-domain-validation"))
    rows = next(iter(run.splits.rows["test"].values()))[:7]  # another size than the example's
    raw = run.evaluator.reader(torch.from_numpy(rows))
    expected = run.evaluator.outputs(predictor, rows).softmax(-1)

    inputs, outputs = tmp_path / "inputs.npy", tmp_path / "outputs.npy"
    np.save(inputs, raw.numpy())
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, mlflow_store, str(inputs), str(outputs)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "uint8" in ran.stdout and "(-1, 2, 8, 8)" in ran.stdout and "(2, 2, 8, 8)" in ran.stdout
    np.testing.assert_allclose(np.load(outputs), expected.numpy(), atol=1e-6)

    from mlflow import MlflowClient

    opened = MlflowClient(tracking_uri=mlflow_store)
    version = opened.get_model_version("digits", "1")
    assert version.tags["dg.algorithm"] == "irmv1" and version.tags["dg.rule"] == "training-domain-validation"
    run_of_it = opened.get_run(version.run_id)
    assert run_of_it.data.tags["dg.run_id"] == result.run_id and run_of_it.info.status == "FINISHED"


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b"])
def test_a_name_that_mlflow_would_refuse_is_refused_first(tmp_path, name):
    with pytest.raises(UsageError, match="the name of a model may not be empty"):
        register(tmp_path / "no-such-run", name)


def test_a_run_that_is_not_finished_is_not_registered(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path / "runs")
    rundir = RunDir.open(result.path.parent, result.path.name)
    rundir.update(status="KILLED")
    with pytest.raises(UsageError, match="is KILLED; only a finished run that"):
        register(result.path, "digits")


def test_a_run_that_kept_its_results_alone_is_not_registered(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path / "runs", execution={"keep": "results"})
    with pytest.raises(UsageError, match=r"keeps no weights; train it again with --set execution\.keep"):
        register(result.path, "digits")


def test_a_checkpoint_that_was_not_kept_is_named(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path / "runs")
    with pytest.raises(UsageError, match="keeps no checkpoint 'worst-class'"):
        register(result.path, "digits", rule="worst-class")
