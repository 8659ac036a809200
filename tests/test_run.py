"""A whole run: interrupted and resumed, diverging, averaging, adapting, scheduled."""

import json
import signal

import pytest
import torch
from small_runs import (
    QUIET,
    assert_a_resumed_run_is_an_uninterrupted_one,
    curve,
    differences,
    run_small,
    saved,
    signal_after,
    small_config,
    stored,
)
from toy_settings import toy

from dgharness import registry
from dgharness.errors import DivergenceError, Interrupted, UsageError
from dgharness.plugin import objective, penalty
from dgharness.tracking import Tracker
from dgharness.training.build import build
from dgharness.training.evaluation import all_rows
from dgharness.training.learner import Learner
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress
from dgharness.training.run import resume

ALGORITHMS = [entry.name for entry in registry.entries("algorithms") if entry.source == "built-in"]


@pytest.fixture(autouse=True)
def _own_plugins(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})


# --- resume ----------------------------------------------------------------------------------------


def settings(algorithm):
    """What puts every mechanism of an algorithm into the ten updates."""
    return {"hp": toy(algorithm)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_before_and_after_the_anneal_step(mlflow_store, tmp_path, algorithm):
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, algorithm, **settings(algorithm))


@pytest.mark.parametrize(
    "sections",
    [
        {"averaging": {"name": "sma", "start": 3}},
        {"tta": {"name": "t3a", "keep": 5}},
        {"optimizer": {"name": "sam"}, "model": {"dropout": 0.5}},
        {"train": {"precision": "bf16"}},
        {"model": {"dropout": 0.5}, "optimizer": {"schedule": "cosine", "warmup_steps": 4}},
        {"train": {"sampler": "pooled"}, "averaging": {"name": "sma", "start": 8}},
        {"selection": {"rules": ["last", "leave-one-domain-out-cv", "training-domain-validation"]}},
    ],
    ids=lambda sections: "-".join(f"{k}.{v}" for s in sections.values() for k, v in s.items())[:60],
)
def test_resumed_with_every_mechanism_that_has_a_state_of_its_own(mlflow_store, tmp_path, sections):
    sections = {"hp": {"eta": 0.5}, **sections}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "group-dro", **sections)


@pytest.mark.parametrize("stop", [4, 5, 10], ids=["evaluation", "restart", "end"])
def test_resumed_exactly_at_a_boundary(mlflow_store, tmp_path, stop):
    hp = {"anneal_steps": 5, "weight": 10.0}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "vrex", (stop,), hp=hp)


def test_a_signal_is_told_by_its_number_and_a_finished_run_is_not_resumed(mlflow_store, tmp_path):
    with signal_after(2, signal.SIGINT), pytest.raises(Interrupted) as interrupted:
        run_small(mlflow_store, tmp_path)
    assert interrupted.value.signal == signal.SIGINT
    (path,) = tmp_path.glob("*/run.json")
    run_id = path.parent.name
    assert json.loads(path.read_text())["status"] == "KILLED"
    assert resume(run_id, tmp_path, progress=Progress(**QUIET)).status == "FINISHED"
    with pytest.raises(UsageError, match=f"run {run_id} is finished"):
        resume(run_id, tmp_path)


def test_a_resumed_run_can_join_a_sweep(mlflow_store, tmp_path):
    with signal_after(2), pytest.raises(Interrupted):
        run_small(mlflow_store, tmp_path)
    (path,) = tmp_path.glob("*/run.json")
    resume(path.parent.name, tmp_path, progress=Progress(**QUIET), parent="0" * 32)
    assert json.loads(path.read_text())["parent"] == "0" * 32


# --- what stays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["results", "weights", "all"])
def test_a_finished_run_keeps_what_it_was_told_to_and_the_store_has_no_more_weights(
    mlflow_store, tmp_path, keep
):
    result = run_small(mlflow_store, tmp_path, execution={"keep": keep})
    weights = {"weights-last.pt", "weights-training-domain-validation.pt"} if keep != "results" else set()
    state = {"checkpoint.pt"} if keep == "all" else set()
    here = {file.name for file in result.path.iterdir() if file.suffix == ".pt"}
    assert here >= weights | state and bool(here) == bool(weights)
    assert ("checkpoint.pt" in here) == bool(state)

    files = json.loads((result.path / "run.json").read_text())["artifacts"]
    assert {name for name in files if name.endswith(".pt")} == here - state
    assert {"evaluations.json", "predictions-10.parquet"} <= files.keys()
    assert result.chosen["last"].step == 10 and stored(mlflow_store, result.path)["status"] == "FINISHED"


@pytest.mark.parametrize("keep", ["results", "weights"])
def test_a_run_that_was_stopped_keeps_all_that_it_goes_on_from(mlflow_store, tmp_path, keep):
    whole = run_small(mlflow_store, tmp_path / "whole", execution={"keep": keep})
    with signal_after(9), pytest.raises(Interrupted):
        run_small(mlflow_store, tmp_path / "parts", execution={"keep": keep})
    assert (tmp_path / "parts" / whole.run_id / "checkpoint.pt").exists()
    resumed = resume(whole.run_id, tmp_path / "parts", progress=Progress(**QUIET))
    assert resumed.chosen == whole.chosen and not (resumed.path / "checkpoint.pt").exists()


def test_what_is_not_kept_goes_before_a_slow_store_is_served(mlflow_store, tmp_path, monkeypatch):
    follow = Tracker.follow

    def killed_once_finished(tracker):
        if tracker.rundir.state.status == "FINISHED":
            raise SystemExit(9)
        return follow(tracker)

    monkeypatch.setattr(Tracker, "follow", killed_once_finished)
    with pytest.raises(SystemExit):
        run_small(mlflow_store, tmp_path, execution={"keep": "results"})
    (path,) = tmp_path.glob("*/run.json")
    assert json.loads(path.read_text())["status"] == "FINISHED" and not list(path.parent.glob("*.pt"))


# --- failures --------------------------------------------------------------------------------------


@penalty()
def nan_from_seven(step, hp):
    """Not a number once seven updates are done."""
    return step.risks_E.mean() * (float("nan") if step.t >= 7 else 0.0)


@objective()
def breaks(step, hp):
    """Fails in its third update."""
    if step.t == 2:
        raise IndexError("no such thing")
    return step.risks_E.mean(), {}


def failed(store, output):
    (path,) = output.glob("*/run.json")
    state, kept = json.loads(path.read_text()), stored(store, path.parent)
    assert state["status"] == kept["status"] == "FAILED"
    assert state["error"] == kept["tags"]["dg.error"]
    return state["error"], kept


@pytest.mark.parametrize("log_every", [1, 100])
def test_divergence_names_the_term_and_its_first_step_whenever_it_is_noticed(
    mlflow_store, tmp_path, log_every
):
    train = {"eval_every": 10, "log_every": log_every}
    with pytest.raises(DivergenceError) as diverged:
        run_small(
            mlflow_store, tmp_path, "nan-from-seven", plugins=[f"{__name__}:nan_from_seven"], train=train
        )
    assert (diverged.value.term, diverged.value.step) == ("penalty", 8)
    error, kept = failed(mlflow_store, tmp_path)
    assert "'penalty' was not finite at step 8" in error
    if log_every == 1:
        assert [s for key, s, _ in kept["metrics"] if key == "train/risk"] == list(range(1, 8))


def test_a_learning_rate_out_of_all_proportion_is_a_divergence(mlflow_store, tmp_path):
    with pytest.raises(DivergenceError) as diverged:
        run_small(mlflow_store, tmp_path, optimizer={"lr": 1e30, "name": "sgd"})
    assert diverged.value.step <= 4
    error, _ = failed(mlflow_store, tmp_path)
    assert "training diverged" in error and f"at step {diverged.value.step}" in error


def test_an_exception_inside_an_algorithm_fails_the_run_with_its_reason(mlflow_store, tmp_path):
    with pytest.raises(IndexError):
        run_small(mlflow_store, tmp_path, "breaks", plugins=[f"{__name__}:breaks"])
    assert failed(mlflow_store, tmp_path)[0] == "IndexError: no such thing"


# --- weight averaging ------------------------------------------------------------------------------


def test_the_logged_metrics_describe_the_averaged_weights(mlflow_store, tmp_path):
    plain = run_small(mlflow_store, tmp_path)
    averaged = run_small(mlflow_store, tmp_path, averaging={"name": "sma", "start": 2})
    trained, mean = saved(averaged.path)["learner"], saved(averaged.path, "weights-last")["weights"]
    assert not differences(saved(plain.path)["learner"]["model"], trained["model"])
    assert differences(trained["model"], mean["model"])

    run = build(
        prepare(small_config(mlflow_store, tmp_path, averaging={"name": "sma", "start": 2})), Progress()
    )
    rows = all_rows(run.splits.rows["val"])
    model = run.learner.algorithm.model
    model.load_state_dict(mean["model"])
    outputs = run.evaluator.outputs(model.eval(), rows)
    nll = torch.nn.functional.cross_entropy(outputs, run.evaluator.dataset.targets_M[torch.from_numpy(rows)])
    logged = curve(mlflow_store, averaged.path, "val/nll")
    assert logged[10] == pytest.approx(float(nll), rel=1e-6)
    assert logged != curve(mlflow_store, plain.path, "val/nll")


# --- learning rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "step", "decay_every": 4}, [1] * 4 + [0.1] * 4 + [0.01] * 2),
    ],
    ids=["warm-up", "linear", "step"],
)
def test_every_update_has_the_learning_rate_of_its_schedule(
    mlflow_store, tmp_path, monkeypatch, optimizer, expected
):
    seen, step = [], Learner.step

    def watched(learner, *args, **kwargs):
        metrics = step(learner, *args, **kwargs)
        seen.extend(group["lr"] for group in learner.optimizers["model"].param_groups)
        return metrics

    monkeypatch.setattr(Learner, "step", watched)
    run_small(mlflow_store, tmp_path, optimizer={"lr": 0.5, "name": "sgd", **optimizer})
    assert seen == pytest.approx([0.5 * factor for factor in expected])


def test_clipping_bounds_an_update(mlflow_store, tmp_path):
    sgd = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e-3}
    one = {"steps": 1, "eval_every": 1}
    start = build(prepare(small_config(mlflow_store, tmp_path)), Progress()).learner.state_dict()["model"]
    end = saved(run_small(mlflow_store, tmp_path, optimizer=sgd, train=one).path)["learner"]["model"]
    moved = torch.cat([(end[name] - start[name]).flatten() for name in start]).norm()
    assert float(moved) == pytest.approx(0.5 * 1e-3, rel=1e-3)
