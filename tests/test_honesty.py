"""What no number may depend on: the target's labels, and who else is in the comparison."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from small_runs import curve, differences, run_small, saved, signal_after, stored

from dgharness.data.dataset import InMemory
from dgharness.errors import Interrupted
from dgharness.training import prepare
from dgharness.training.learner import Learner

TARGET = "-90%"
BY_VALIDATION = ("training-domain-validation", "worst-group")


@pytest.fixture
def go(mlflow_store, tmp_path):
    def run(name, output="runs", **sections):
        return run_small(mlflow_store, tmp_path / output, name, **sections)

    return run


@pytest.fixture
def updates(monkeypatch):
    """(index_EB, x, labels, model before, algorithm before) of every update, run after run."""
    seen, step = [], Learner.step

    def watched(learner, x, y_EB, **given):
        state = {k: v.clone() for k, v in learner.algorithm.state_dict().items()} if learner.t == 0 else {}
        seen.append({"index_EB": given["index_EB"], "x": x, "y_EB": y_EB, "start": state})
        return step(learner, x, y_EB, **given)

    monkeypatch.setattr(Learner, "step", watched)
    return seen


# --- canaries --------------------------------------------------------------------------------------


def permuted_labels(dataset):
    """The same dataset with the target's labels, and all that follows from them, dealt out anew."""
    rows = dataset.rows_of(TARGET)
    order = np.random.RandomState(1).permutation(rows)
    changed = {}
    for name in ("y", "color", "digit"):
        codes = dataset.manifest[name].cat.codes.to_numpy(copy=True)
        codes[rows] = codes[order]
        changed[name] = pd.Categorical.from_codes(codes, dtype=dataset.manifest[name].dtype)
    return dataclasses.replace(dataset, manifest=dataset.manifest.assign(**changed))


def unknown_labels(dataset):
    """The same dataset with one label for the whole target."""
    changed = dataset.manifest["y"].copy()
    changed.iloc[dataset.rows_of(TARGET)] = "1"
    return dataclasses.replace(dataset, manifest=dataset.manifest.assign(y=changed))


def other_inputs(dataset):
    """The same dataset with noise for the target's inputs."""
    x_M = dataset.reader.x_M.clone()
    rows = torch.from_numpy(dataset.rows_of(TARGET))
    noise = torch.randint(256, x_M[rows].shape, generator=torch.Generator().manual_seed(1))
    x_M[rows] = noise.to(x_M.dtype)
    return dataclasses.replace(dataset, reader=InMemory(x_M))


CASES = {
    "erm-t3a": ("erm", {"tta": {"name": "t3a"}}),
    "irmv1-pairs": (
        "irmv1",
        {
            "hp": {"anneal_steps": 5},
            "selection": {
                "rules": ["last", *BY_VALIDATION, "test-domain-validation", "leave-one-domain-out-cv"]
            },
        },
    ),
    "drm-prototypes": ("drm", {"hp": {"selection": "prototype", "prototype_samples": 64}}),
    "group-dro-groups": (
        "group-dro",
        {"data": {"train_groups": ["y", "color"]}, "train": {"sampler": "by-group"}},
    ),
    "group-dro-balanced": (
        "group-dro",
        {"train": {"sampler": "balanced"}, "averaging": {"name": "sma", "start": 2}},
    ),
}


@pytest.mark.parametrize(
    ("case", "change"),
    [
        *((case, permuted_labels) for case in CASES),
        ("group-dro-groups", unknown_labels),
        ("drm-prototypes", other_inputs),
        ("erm-t3a", other_inputs),
    ],
)
def test_nothing_trained_or_chosen_depends_on_the_target(go, mlflow_store, monkeypatch, case, change):
    algorithm, sections = CASES[case]
    real = go(algorithm, **sections)
    load = prepare.load_dataset
    monkeypatch.setattr(prepare, "load_dataset", lambda *args: change(load(*args)))
    canary = go(algorithm, output="canary", **sections)

    one, other = saved(real.path), saved(canary.path)
    for part in ("learner", "recent", "best"):
        assert not differences(one[part], other[part])
    kept = sorted(file.stem for file in real.path.glob("weights-*.pt"))
    assert kept == sorted(f"weights-{name}" for name in ("last", *BY_VALIDATION))
    for name in kept:
        assert not differences(saved(real.path, name), saved(canary.path, name))
    for rule in BY_VALIDATION:
        assert real.chosen[rule].step == canary.chosen[rule].step

    first, second = (stored(mlflow_store, run.path)["metrics"] for run in (real, canary))
    assert seen_in_training(first) == seen_in_training(second)
    assert first != second, "the canary changed nothing at all"


def seen_in_training(metrics):
    return [metric for metric in metrics if metric[0].startswith(("train/", "val/"))]


def test_the_target_is_scored_at_kept_checkpoints_alone_and_the_queries_are_counted(go, mlflow_store):
    result = go("erm")
    kept = {10} | {step for _, step in saved(result.path)["best"].values()}
    assert set(curve(mlflow_store, result.path, "test/acc_avg")) == kept
    assert set(curve(mlflow_store, result.path, "cost/test_queries").values()) == {len(kept)}


def test_while_training_no_number_of_the_target_exists(go, mlflow_store, tmp_path):
    with signal_after(9), pytest.raises(Interrupted):
        go("erm")
    (path,) = (tmp_path / "runs").iterdir()
    state = saved(path)
    assert not state["sealed"] and state["evaluations"]
    logged = {metric[0] for metric in stored(mlflow_store, path)["metrics"]}
    assert {"val/acc_avg", "train/risk"} <= logged
    assert not any(key.startswith("test") for key in logged | {metric[0] for metric in state["journal"]})


# --- paired comparisons ----------------------------------------------------------------------------


def halves(updates):
    middle = len(updates) // 2
    return updates[:middle], updates[middle:]


@pytest.mark.parametrize(
    ("algorithm", "sections"),
    [
        ("irmv1", {"hp": {"weight": 1e4, "anneal_steps": 3}}),
        ("drm", {}),
        ("causirl-mmd", {}),  # draws for itself at every step
        ("erm", {"optimizer": {"lr": 1e-4, "name": "sam"}}),
        ("erm", {"averaging": {"name": "sma"}, "tta": {"name": "t3a"}}),
        ("group-dro", {"data": {"train_groups": ["y", "color"]}}),
        ("vrex", {"hparams_seed": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_two_runs_of_a_trial_see_the_same_data_in_the_same_order_from_the_same_start(
    go, mlflow_store, updates, algorithm, sections
):
    train = {"train": {"steps": 20, "eval_every": 20}}
    runs = go("erm", **train), go(algorithm, output="other", **train, **sections)
    one, other = halves(updates)
    assert len(one) == len(other) == 20
    for here, there in zip(one, other, strict=True):
        for part in ("index_EB", "x", "y_EB"):
            assert here[part].equal(there[part])
    model = [{k: v for k, v in u[0]["start"].items() if k.startswith("model.")} for u in (one, other)]
    assert model[0] and not differences(*model)
    digests = [stored(mlflow_store, run.path)["tags"]["dg.split_digest"] for run in runs]
    assert digests[0] == digests[1]


def test_another_trial_sees_other_data_from_another_start(go, mlflow_store, updates):
    runs = go("erm"), go("erm", trial_seed=1)
    one, other = halves(updates)
    assert not one[0]["index_EB"].equal(other[0]["index_EB"])
    assert differences(one[0]["start"], other[0]["start"])
    digests = [stored(mlflow_store, run.path)["tags"]["dg.split_digest"] for run in runs]
    assert digests[0] != digests[1]


def test_what_only_watches_changes_no_weight(go):
    plain = saved(go("erm").path)["learner"]["model"]
    for sections in (
        {"averaging": {"name": "sma", "start": 2}},
        {"tta": {"name": "t3a"}},
        {"train": {"eval_every": 1, "log_every": 1}},
        {"selection": {"rules": ["last", "leave-one-domain-out-cv"], "shown": "last"}},
    ):
        assert not differences(plain, saved(go("erm", **sections).path)["learner"]["model"])


def test_a_penalty_of_no_weight_is_erm(go):
    plain = saved(go("erm").path)["learner"]["model"]
    none = saved(go("vrex", hp={"weight": 0.0, "anneal_steps": 0}).path)["learner"]["model"]
    assert not differences(plain, none)
