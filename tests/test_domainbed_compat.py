"""Unmodified DomainBed classes as algorithms: both dialects, settings, checkpoints, whole runs, mistakes."""

import copy
import hashlib
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import domainbed_style
import pytest
import torch
from small_runs import assert_a_resumed_run_is_an_uninterrupted_one, run_small, small_config, stored
from torch import nn

from dgharness import registry
from dgharness.algorithms.erm import erm
from dgharness.algorithms.irmv1 import irmv1
from dgharness.commands.listing import show_entry
from dgharness.errors import UsageError
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.report.cells import build_tables
from dgharness.report.load import load_experiment
from dgharness.testing import check_algorithm
from dgharness.testing.world import INPUTS, run, small_batch, small_model
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig
from dgharness.training.prepare import prepare

FILE = Path(domainbed_style.__file__)
DIMS = Dims(outputs=3, features=6, domains=3, groups=3, input_shape=(INPUTS,))
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


def brought(name, seed=0, dtype=torch.float32, config=None, **hp):
    spec = registry.load("algorithms", f"domainbed:domainbed_style:{name}")
    settings = OptimizerConfig(**{"lr": 0.01, "weight_decay": 1e-4, **(config or {})})
    learner = Learner(spec, small_model(0), DIMS, spec.hparams(**hp), settings, seed, steps=12)
    learner.algorithm.to(dtype)
    return learner


def own(learner):
    return learner.algorithm.model.algorithm


def built_in(spec, other, **hp):
    """A learner of a built-in algorithm on the network that ``other`` brought."""
    featurizer, classifier = copy.deepcopy((own(other).featurizer, own(other).classifier))
    settings = OptimizerConfig(lr=0.01, weight_decay=1e-4)
    return Learner(spec, Model(featurizer, classifier), DIMS, spec.hparams(**hp), settings, 0)


def train_both(one, other, updates):
    for t in range(updates):
        x, y_EB = small_batch(t)
        for learner in (one, other):
            learner.step(x.double(), y_EB)


# --- the same numbers ------------------------------------------------------------------------------


def test_erm_of_both_code_bases_is_the_same_update_for_update():
    theirs = brought("ERM", dtype=torch.float64)
    ours = built_in(erm, theirs)
    train_both(theirs, ours, 5)
    x = small_batch(99)[0].double()
    torch.testing.assert_close(theirs.predict(x), ours.predict(x), **EXACT)


def test_irm_of_both_code_bases_is_the_same_before_at_and_after_the_anneal_step():
    theirs = brought("IRM", dtype=torch.float64, irm_lambda=10.0, irm_penalty_anneal_iters=3)
    ours = built_in(irmv1, theirs, weight=10.0, anneal_steps=3)
    train_both(theirs, ours, 6)
    x = small_batch(99)[0].double()
    torch.testing.assert_close(theirs.predict(x), ours.predict(x), **EXACT)


def test_lists_by_domain_and_the_step_reach_the_later_dialect():
    plain, seen = brought("ListsERM", ld=0.0, dtype=torch.float64), []
    update = own(plain).update
    own(plain).update = lambda **given: seen.append(given) or update(**given)
    x, y_EB = small_batch(0)
    for _ in range(2):
        plain.step(x.double(), y_EB)
    assert [sorted(given) for given in seen] == [["step", "x", "y"]] * 2
    assert [given["step"] for given in seen] == [0, 1]
    assert torch.cat(seen[0]["x"]).equal(x.double()) and torch.stack(seen[0]["y"]).equal(y_EB)


@pytest.mark.parametrize(
    ("name", "hp"), [("ERM", {}), ("IRM", {"irm_lambda": 1.0, "irm_penalty_anneal_iters": 3})]
)
def test_a_brought_class_passes_the_conformance_kit(name, hp):
    check_algorithm(registry.load("algorithms", f"domainbed:domainbed_style:{name}"), **hp)


# --- settings --------------------------------------------------------------------------------------


def test_hparams_hold_domainbeds_entries_the_training_configuration_and_what_is_given():
    hparams = own(brought("IRM", irm_lambda=3.0, irm_penalty_anneal_iters=5)).hparams
    assert hparams["irm_lambda"] == hparams.irm_lambda == hparams.get("irm_lambda") == 3.0
    assert (hparams["lr"], hparams["weight_decay"], hparams["optimizer"]) == (0.01, 1e-4, "adam")
    assert hparams["data_augmentation"] and not hparams["nonlinear_classifier"]
    assert hparams["resnet_dropout"] == 0 and hparams["batch_size"] > 0
    assert "freeze_bn" in hparams and not hasattr(hparams, "other") and hparams.get("other", 7) == 7


def test_the_class_gets_the_batch_size_of_the_run(mlflow_store, tmp_path):
    from dgharness.training.build import build

    prepared = prepare(small_config(mlflow_store, tmp_path, "domainbed:domainbed_style:ERM"))
    assert own(build(prepared, None).learner).hparams["batch_size"] == 8


def test_an_entry_that_nobody_gave_is_named_with_the_way_to_give_it():
    with pytest.raises(
        UsageError, match=re.escape("hparams['irm_penalty_anneal_iters']") + r".*--set hp\.irm_pen"
    ):
        run(brought("IRM"), 1)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("lr", "optimizer.lr"), ("weight_decay", "optimizer.weight_decay"), ("batch_size", "train.batch_size")],
)
def test_what_the_training_configuration_says_is_not_given_twice(name, setting):
    with pytest.raises(UsageError, match=rf"hp\.{name} comes from .* --set {setting}=VALUE"):
        registry.load("algorithms", "domainbed:domainbed_style:ERM").hparams(**{name: 1})


def test_the_optimizers_name_reaches_a_class_that_asks_for_it_and_is_refused_by_another():
    assert isinstance(own(brought("ListsERM", ld=0.0, config={"name": "sgd"})).optimizer, torch.optim.SGD)
    with pytest.raises(UsageError, match=r"optimizer\.name=sgd does not reach it"):
        brought("ERM", config={"name": "sgd"})


@pytest.mark.parametrize("setting", [{"clip_norm": 1.0}, {"head_lr_multiplier": 2.0}, {"beta1": 0.5}])
def test_a_setting_that_cannot_reach_its_optimizers_is_refused(setting):
    with pytest.raises(UsageError, match=rf"optimizer\.{next(iter(setting))} cannot reach"):
        brought("ERM", config=setting)


def test_a_schedule_scales_the_rates_of_its_optimizers_and_none_leaves_them_alone():
    scheduled, plain = brought("ERM", config={"schedule": "linear"}), brought("ERM")
    own(plain).optimizer.param_groups[0]["lr"] = 0.5  # as a class with a schedule of its own would
    run(scheduled, 4)
    run(plain, 4)
    assert own(scheduled).optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 9 / 12)
    assert own(plain).optimizer.param_groups[0] == {**own(plain).optimizer.param_groups[0], "lr": 0.5}
    assert "base_lr" not in own(plain).optimizer.param_groups[0]


# --- metrics, modes, streams -----------------------------------------------------------------------


def test_numbers_that_update_returns_become_metrics_and_all_else_is_left_out():
    metrics = run(brought("Hoarder"), 1)
    assert set(metrics) == {"loss", "a_b"}
    assert all(isinstance(value, torch.Tensor) and value.dim() == 0 for value in metrics.values())


def test_a_class_that_overrides_both_modes_without_an_argument_is_put_into_them():
    learner = brought("OwnModes")
    learner.predictor()
    assert own(learner).mode == "eval" and not own(learner).training
    run(learner, 1)
    assert own(learner).mode == "train" and own(learner).training


def test_draws_from_every_generator_follow_the_run_and_leave_no_trace_outside():
    import random

    import numpy as np

    one, other = brought("Hoarder"), brought("Hoarder")
    run(one, 3)
    random.seed(5), np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    run(other, 3)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert one.predict(small_batch(9)[0]).equal(other.predict(small_batch(9)[0]))


# --- checkpoints -----------------------------------------------------------------------------------


def resumed(learner, fresh):
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resume_around_the_rebuilt_optimizer_is_exact(stop):
    hp = {"irm_lambda": 10.0, "irm_penalty_anneal_iters": 3}
    whole, half = brought("IRM", **hp), brought("IRM", **hp)
    run(whole, 6)
    run(half, stop)
    half = resumed(half, brought("IRM", **hp))
    run(half, 6 - stop)
    x = small_batch(9)[0]
    assert whole.predict(x).equal(half.predict(x))
    assert whole.step(*small_batch(6)).keys() == half.step(*small_batch(6)).keys()


def test_state_in_every_usual_place_survives_a_resume_to_the_last_bit():
    whole, half = brought("Hoarder"), brought("Hoarder")
    run(whole, 6)
    run(half, 3)
    half = resumed(half, brought("Hoarder"))
    run(half, 3)
    ours, theirs = own(half), own(whole)
    for name, value in theirs.state_dict().items():
        assert value.equal(ours.state_dict()[name]), name
    assert ours.recent == theirs.recent and ours.recent.maxlen == 3 and ours.steps == 6
    assert ours.averages[2].values["mean"].equal(theirs.averages[2].values["mean"])
    assert ours.extra[0].weight.equal(theirs.extra[0].weight)
    assert ours.scheduler.get_last_lr() == theirs.scheduler.get_last_lr()
    assert ours.first_mean is ours.means[0], "what was one tensor is still one"
    assert ours.parts == [ours.featurizer, ours.classifier]


def test_the_kept_weights_predict_alone_and_hold_no_optimizer():
    learner = brought("ERM")
    run(learner, 3)
    weights = copy.deepcopy(learner.weights())
    x = small_batch(9)[0]
    before = learner.predict(x)
    run(learner, 3)
    predictor = learner.predictor(weights=weights)
    assert predictor.classify(predictor.features(x)).equal(before)
    assert not any("optimizer" in str(key) for key in weights["model"])


def test_an_optimizer_that_is_made_in_training_cannot_be_resumed_and_says_so():
    learner = brought("LateOptimizer")
    run(learner, 1)
    with pytest.raises(UsageError, match="LateOptimizer cannot be resumed: late was made during training"):
        resumed(learner, brought("LateOptimizer"))


# --- whole runs ------------------------------------------------------------------------------------


def test_a_run_is_trained_resumed_and_reported_like_any_other(mlflow_store, tmp_path, monkeypatch):
    name, hp = "domainbed:domainbed_style:IRM", {"irm_lambda": 5.0, "irm_penalty_anneal_iters": 5}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, name, hp=hp)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    found = load_experiment("colored-digits/leave-one-domain-out")
    (table,) = build_tables(found.records, [registry.load("selection", "last")], baseline=name)
    assert [row.label for row in table.rows] == [name]
    assert (table.block.model, table.block.weights) == ("own", "own")


def test_the_run_says_where_the_code_came_from_and_an_edit_makes_another_run(mlflow_store, tmp_path):
    mine = tmp_path / "mine.py"
    shutil.copy(FILE, mine)
    name = f"domainbed:{mine}:ERM"
    result = run_small(mlflow_store, tmp_path / "runs", name)
    sha = hashlib.sha256(mine.read_bytes()).hexdigest()[:16]
    tags = stored(mlflow_store, result.path)["tags"]
    assert tags["dg.source"] == f"domainbed {mine} (sha256 {sha})"
    assert (tags["dg.trust"], tags["dg.model"]) == ("plugin", "own")
    config = small_config(mlflow_store, tmp_path / "runs", name)
    before = prepare(config).config_hash
    mine.write_text(mine.read_text() + "\n# edited\n")
    registry._added.clear()
    for module in [module for module in sys.modules if module.startswith("dgharness_plugin_mine")]:
        del sys.modules[module]
    assert prepare(config).config_hash != before


def test_the_files_of_its_bases_are_part_of_its_identity(tmp_path, monkeypatch):
    (tmp_path / "derived_style.py").write_text("from domainbed_style import ERM\nclass Mine(ERM): pass\n")
    monkeypatch.chdir(tmp_path)
    both = (tmp_path / "derived_style.py").read_bytes() + FILE.read_bytes()
    entry = registry.entry("algorithms", "domainbed:derived_style:Mine")
    assert entry.sha256 == hashlib.sha256(both).hexdigest()[:16]


def test_it_is_shown_with_its_docstring_and_settings(capsys):
    show_entry("algorithms", "domainbed:domainbed_style:ERM", [], False)
    shown = capsys.readouterr().out
    assert "The mean risk, as DomainBed computes it." in shown and "resnet_dropout" in shown


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("domainbed:ERM", "must be domainbed:MODULE:CLASS or domainbed:FILE.py:CLASS"),
        ("domainbed", "must be domainbed:MODULE:CLASS or domainbed:FILE.py:CLASS"),
        ("domainbed:my_styl:ERM", "No module named 'my_styl'; did you mean 'my_style'?"),
        ("domainbed:my_styl.py:ERM", "there is no file"),
        ("domainbed:my_styl.py:ERM", "did you mean 'my_style.py'?"),
        ("domainbed:domainbed_style:ERN", "domainbed_style has no class 'ERN'; did you mean 'ERM'?"),
        ("domainbed:domainbed_style:not_a_class", "domainbed_style has no class 'not_a_class'"),
        ("domainbed:domainbed_style:MovingAverage", "MovingAverage is no torch.nn.Module"),
        ("domainbed:domainbed_style:NoPredict", "NoPredict has no predict(x)"),
        (
            "domainbed:domainbed_style:OtherUpdate",
            "has update(self, images, labels, domains) and not",
        ),
        (
            "domainbed:domainbed_style:OtherInit",
            "is built from (network) and not from (input_shape,",
        ),
    ],
)
def test_a_wrong_name_or_class_is_one_sentence(tmp_path, monkeypatch, name, reason):
    (tmp_path / "my_style.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        registry.load("algorithms", name)
    assert str(caught.value).startswith(f"algorithm {name!r} ") and "\n" not in str(caught.value)


def test_inputs_that_are_no_tensor_are_refused():
    learner = brought("ERM")
    with pytest.raises(UsageError, match="takes tensors by domain, and this dataset's inputs are a dict"):
        learner.step({"ids": torch.zeros(6)}, torch.zeros(3, 2, dtype=torch.long))


def test_a_learner_that_knows_no_input_shape_says_what_to_give():
    spec = registry.load("algorithms", "domainbed:domainbed_style:ERM")
    model = Model(nn.Identity(), nn.Linear(3, 3))
    with pytest.raises(UsageError, match=r"give Dims\(input_shape="):
        Learner(spec, model, Dims(3, 3, 3, 3), spec.hparams(), OptimizerConfig(lr=0.1, weight_decay=0), 0)
