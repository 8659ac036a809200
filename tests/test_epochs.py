"""Epochs in place of updates: what they come to under each sampler, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from small_runs import assert_a_resumed_run_is_an_uninterrupted_one

from dgharness.config import RunConfig, compose
from dgharness.data.protocols import leave_one_domain_out
from dgharness.errors import UsageError
from dgharness.training.identity import deviations, shared_settings
from dgharness.training.prepare import load_dataset, prepare

SETS = ("model.name=linear", "train.batch_size=8")


def resolved(*sets: str, **flags: Any) -> RunConfig:
    return prepare(compose(sets=[*SETS, *sets], flags=flags)).config


@pytest.fixture(scope="module")
def examples() -> int:
    config = resolved()
    dataset = load_dataset(config.data, "", 0)
    splits = leave_one_domain_out(dataset, config.protocol.targets, 0)
    return sum(map(len, splits.rows["train"].values()))


@pytest.mark.parametrize(
    ("sampler", "rows", "per_update"),
    [
        ("by-domain", None, 16),  # of two training domains
        ("by-domain", 1, 8),
        ("pooled", None, 16),
        ("pooled", 5, 40),
        ("balanced", 3, 24),
        ("wilds-group", 1, 8),
        ("wilds-uniform", 3, 24),
    ],
)
def test_an_epoch_is_the_training_examples_over_those_of_an_update(
    examples: int, sampler: str, rows: int | None, per_update: int
) -> None:
    chosen = (f"train.sampler={sampler}", f"train.rows={rows or 'null'}", "train.epochs=2.5")
    train = resolved(*chosen).train
    assert train.steps == math.ceil(2.5 * examples / per_update)
    assert train.eval_every == math.ceil(examples / per_update)  # once per epoch


def test_an_epoch_of_everything_is_one_update() -> None:
    assert resolved("train.sampler=full", "train.epochs=7").train.steps == 7


def test_evaluations_may_be_asked_for_at_other_times() -> None:
    assert resolved("train.epochs=1", "train.eval_every=3").train.eval_every == 3


def test_steps_and_epochs_contradict_each_other(examples: int) -> None:
    with pytest.raises(
        UsageError, match=rf"train.steps=9 and train.epochs=1, which is {examples // 16} updates"
    ):
        resolved("train.epochs=1", "train.steps=9")


def test_a_resolved_configuration_is_resolved_to_itself() -> None:
    """As when a run is continued, whose configuration says steps and epochs."""
    once = resolved("train.epochs=1.5", "optimizer.schedule=step", "optimizer.decay_epochs=0.5")
    assert prepare(once).config == once


def test_decays_in_epochs_become_updates(examples: int) -> None:
    config = resolved("optimizer.schedule=step", "optimizer.decay_epochs=2")
    assert config.optimizer.decay_every == math.ceil(2 * examples / 16)
    assert config.train.steps == 5000  # the dataset's own


def test_more_rows_than_training_domains_are_refused() -> None:
    with pytest.raises(UsageError, match=r"train.rows=3 asks for more different domains"):
        resolved("train.epochs=1", "train.rows=3")


def test_without_epochs_and_rows_a_run_is_hashed_as_ever() -> None:
    plain, named = (
        prepare(compose(sets=[*SETS, *more])) for more in ((), ("train.epochs=null", "train.rows=null"))
    )
    assert plain.config_hash == named.config_hash
    assert prepare(compose(sets=[*SETS, "train.rows=1"])).config_hash != plain.config_hash


def test_targets_of_different_size_may_share_a_table_of_runs_of_as_many_epochs() -> None:
    sets = [*SETS, "train.epochs=1", "optimizer.decay_epochs=1"]
    settings = shared_settings(prepare(compose(sets=sets)))
    assert settings["train.epochs"] == "1.0"
    assert not {"train.steps", "train.eval_every", "optimizer.decay_every"} & settings.keys()


def test_epochs_of_a_preset_are_no_deviation_and_steps_in_their_place_are(tmp_path: Any) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("train: {epochs: 2, batch_size: 8}\nmodel: {name: linear}\n")
    assert deviations(prepare(compose(preset=str(preset)))) == []
    shorter = prepare(compose(preset=str(preset), sets=["train.steps=4"]))
    assert (shorter.config.train.steps, shorter.config.train.epochs) == (4, None)
    assert any("train.steps 4" in deviation for deviation in deviations(shorter))


@pytest.mark.parametrize("sampler", ["by-domain", "wilds-group", "wilds-uniform"])
def test_a_resumed_run_of_epochs_is_an_uninterrupted_one(
    mlflow_store: str, tmp_path: Any, examples: int, sampler: str
) -> None:
    """Ten updates, which cross the end of an epoch where batches are large."""
    train = {"sampler": sampler, "rows": 1, "batch_size": 400, "steps": None, "epochs": 10 * 400 / examples}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "group-dro", train=train)
