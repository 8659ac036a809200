"""Unlabeled examples: shown to the algorithms that ask for them, and to nobody with a label."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_runs import assert_a_resumed_run_is_an_uninterrupted_one, run_small, stored

from dgharness.errors import NotApplicable
from dgharness.plugin import Needs, objective
from dgharness.training import prepare
from dgharness.training.learner import Learner


@objective(needs=Needs(unlabeled=True))
def small_outputs(step, hp):
    """The mean risk, and small outputs on unlabeled examples."""
    risk = step.risks_E.mean()
    return risk + step.model(step.unlabeled).square().mean(), {"risk": risk}


PLUGIN = [f"{__name__}:small_outputs"]
HALF = {"protocol": {"name": "official"}}


@pytest.fixture
def half_unlabeled(monkeypatch):
    """colored-digits with an own split, in which half of the last domain has lost its labels."""
    load = prepare.load_dataset

    def changed(*args):
        dataset = load(*args)
        manifest = dataset.manifest
        last = (manifest["domain"] == dataset.domains[-1]).to_numpy()
        place = np.arange(len(manifest))
        split = np.where(last, np.where(place % 2, "unlabeled", "test"), np.where(place % 5, "train", "val"))
        manifest = manifest.assign(split=split, y=manifest["y"].where(split != "unlabeled"))
        return dataclasses.replace(dataset, manifest=manifest)

    monkeypatch.setattr(prepare, "load_dataset", changed)


@pytest.fixture
def updates(monkeypatch):
    seen, step = [], Learner.step

    def watched(learner, x, y_EB, **given):
        seen.append({"x": x, "y_EB": y_EB, **given})
        return step(learner, x, y_EB, **given)

    monkeypatch.setattr(Learner, "step", watched)
    return seen


def test_every_update_comes_with_as_many_unlabeled_examples_as_labeled_ones(
    mlflow_store, tmp_path, half_unlabeled, updates
):
    result = run_small(mlflow_store, tmp_path / "runs", "small-outputs", plugins=PLUGIN, **HALF)
    assert len(updates) == 10
    for update in updates:
        assert update["unlabeled"].shape == update["x"].shape
        assert (update["y_EB"] >= 0).all()
    assert not torch.equal(updates[0]["unlabeled"], updates[1]["unlabeled"])
    assert stored(mlflow_store, result.path)["tags"]["dg.uses"].startswith("unlabeled examples of ")


def test_other_algorithms_are_not_shown_them(mlflow_store, tmp_path, half_unlabeled, updates):
    run_small(mlflow_store, tmp_path / "runs", "erm", **HALF)
    assert all(update["unlabeled"] is None for update in updates)


def test_a_resumed_run_is_shown_the_same_ones(mlflow_store, tmp_path, half_unlabeled):
    assert_a_resumed_run_is_an_uninterrupted_one(
        mlflow_store, tmp_path, "small-outputs", plugins=PLUGIN, **HALF
    )


def test_without_unlabeled_examples_such_an_algorithm_does_not_start(mlflow_store, tmp_path):
    with pytest.raises(NotApplicable, match="needs unlabeled data, which colored-digits under leave-one"):
        run_small(mlflow_store, tmp_path / "runs", "small-outputs", plugins=PLUGIN)
