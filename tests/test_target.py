"""What is scored on the target beside the result: heads, adaptation, and how its settings were chosen."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest
import torch
from small_runs import (
    assert_a_resumed_run_is_an_uninterrupted_one,
    curve,
    run_small,
    saved,
    small_config,
    stored,
)
from test_honesty import other_inputs, permuted_labels
from torch import nn

from dgharness import registry
from dgharness.config import TTAConfig
from dgharness.errors import UsageError
from dgharness.models.model import Model
from dgharness.names import slug
from dgharness.plugin import Choice, Hparams, Structural, tta_method
from dgharness.rundir import RunDir
from dgharness.testing.world import small_source
from dgharness.training import prepare
from dgharness.training.adaptation import Adaptation, Draw, best
from dgharness.training.build import build
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.progress import Progress
from dgharness.training.run import read_config, train

TARGET, TRAINING = "-90%", ("+90%", "+80%")
RULES = {"selection": {"rules": ["last"]}}


@pytest.fixture(autouse=True)
def _own_plugins(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})


@pytest.fixture
def go(mlflow_store, tmp_path):
    def run(algorithm="erm", *plugins, output="runs", **sections):
        own = [f"{__name__}:{plugin}" for plugin in plugins]
        return run_small(mlflow_store, tmp_path / output, algorithm, plugins=own, **{**RULES, **sections})

    return run


@pytest.fixture
def metrics(mlflow_store):
    """``metrics(result)``: what was logged, by key; the last step of each."""
    return lambda result: {key: value for key, _, value in stored(mlflow_store, result.path)["metrics"]}


def rebuilt(result, name="last"):
    """A run like the one that gave this result, and the predictor that it ended with."""
    config = read_config(RunDir.open(result.path.parent, result.run_id))
    run = build(prepare.prepare(config), Progress(say=lambda text: None))
    return run, run.learner.predictor(run.source, saved(result.path, f"weights-{name}")["weights"])


def targets_of(run, rows):
    return run.evaluator.dataset.targets_M[torch.from_numpy(rows)]


# --- heads -----------------------------------------------------------------------------------------


def test_every_heads_target_accuracy_stands_beside_the_gap_of_the_best(go, metrics):
    result = go("drm", protocol={"targets": ["+80%", TARGET]})
    run, predictor = rebuilt(result)
    logged = metrics(result)
    for domain, rows in run.splits.rows["test"].items():
        z = predictor.features(run.evaluator.dataset.prepare(run.evaluator.reader(torch.from_numpy(rows))))
        by_head = {
            slug(name): (logits_NC.argmax(-1) == targets_of(run, rows)).float().mean().item()
            for name, logits_NC in zip([*run.source.domain_names, "pooled"], predictor.heads(z), strict=True)
        }
        own = (predictor.classify(z).argmax(-1) == targets_of(run, rows)).float().mean().item()
        for name, accuracy in by_head.items():
            assert logged[f"test/head_acc/{name}/{slug(domain)}"] == pytest.approx(accuracy, abs=1e-6)
        gap = logged[f"test/adaptivity_gap/{slug(domain)}"]
        assert gap == pytest.approx(max(by_head.values()) - own, abs=1e-6)
    heads = [key for key in logged if key.startswith("test/head_acc/")]
    assert len(heads) == len(predictor.head_names) * len(run.splits.targets)


def test_a_predictor_of_one_head_has_no_accuracies_by_head(go, metrics):
    assert not any("head_acc" in key for key in metrics(go("erm")))


# --- what a method adapted on ----------------------------------------------------------------------


class Support(Hparams):
    support: int = 0
    """Examples at the head of the stream that it says it adapted on."""


@tta_method(Support)
class Recalls:
    """Answers with the first pixel of an input; knows what it adapted on after its first batch."""

    def __init__(self, predictor, hp, source, seed):
        self.hp = hp

    def __call__(self, x):
        if self.hp.support:
            self.support = self.hp.support
        first_N = x.flatten(1).mean(1)
        return torch.stack([first_N, first_N], 1)


recalls = Recalls


@pytest.fixture
def small():
    """An evaluator of four domains with one mean per row, so that outputs tell rows apart."""
    source = small_source()
    dataset = dataclasses.replace(source.dataset, task=dataclasses.replace(source.dataset.task, outputs=2))
    grouping = SimpleNamespace(group_M=dataset.domain_M, names=dataset.domains)
    return Evaluator(dataset, source.reader, grouping, torch.device("cpu")), source


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("order", ["shuffled", "manifest"])
@pytest.mark.parametrize("support", [0, 3, 7, 40, 64])
def test_the_query_is_every_row_that_was_not_first_in_the_stream(small, support, order, mode):
    evaluator, source = small
    rows = np.arange(40, 80)
    seen = []

    class Watched(recalls.factory):
        def __call__(self, x):
            seen.append(x)
            return super().__call__(x)

    method = dataclasses.replace(recalls, factory=Watched)
    protocol = TTAConfig(name="recalls", batch_size=16, order=order, mode=mode)
    adapted = evaluator.adapted(nn.Identity(), rows, method, Support(support=support), protocol, source, 0)
    x_M = source.reader(torch.from_numpy(rows))
    torch.testing.assert_close(adapted.outputs_NC[:, 0], x_M.mean(1))  # in the rows' order again
    stream = torch.cat(seen)[: len(rows)]
    adapted_on = {tuple(x.tolist()) for x in stream[:support]}
    expected = [tuple(x.tolist()) not in adapted_on for x in x_M]
    assert adapted.query_N.tolist() == expected and sum(expected) == max(40 - support, 0)


def test_examples_beyond_the_support_are_scored_for_themselves(go, metrics):
    result = go(
        "erm", "recalls", tta={"name": "recalls", "support": 10}, protocol={"targets": list(TRAINING)}
    )
    logged, (run, _) = metrics(result), rebuilt(result)
    sizes = {d: len(rows) for d, rows in run.splits.rows["test"].items()}
    assert logged["test/count"] == logged["test_unadapted/count"] == sum(sizes.values())
    assert logged["test_query/count"] == sum(sizes.values()) - 10 * len(sizes)
    for domain, size in sizes.items():
        assert logged[f"test_query/count/{slug(domain)}"] == size - 10
    assert logged["test_holdout_query/count"] == logged["test_holdout/count"] - 20


@pytest.mark.parametrize("support", [0, 10**6], ids=["none", "everything"])
def test_without_a_rest_there_are_no_scores_of_it(go, metrics, support):
    result = go("erm", "recalls", tta={"name": "recalls", "support": support})
    assert not any("_query" in key for key in metrics(result))


# --- hyperparameters chosen on the training domains -------------------------------------------------


class Shift(Hparams):
    shift: Annotated[float, Choice((0.0, 1.0, 1e9, -1.0, 1e8)), Structural] = 1e9
    """Added to the last class."""
    other: float = 0.0
    """Nothing that is drawn."""
    training_lr: float = 1.0
    """Learning rate of training."""


SEEN = []


@tta_method(Shift)
class Shifts:
    def __init__(self, predictor, hp, source, seed):
        self.predictor, self.hp = predictor, hp
        SEEN.append(hp)

    @torch.no_grad()
    def __call__(self, x):
        logits_NC = self.predictor.classify(self.predictor.features(x))
        logits_NC[:, -1] += self.hp.shift
        return logits_NC


shifts = Shifts
CHOOSE = {"tta": {"name": "shifts", "choose": 12, "other": 5.0}}


@pytest.fixture
def adaptation(small):
    """``adaptation(predictor=None, **options)``: (method on the small world, predictor, validation rows)."""
    _, source = small
    grouping = SimpleNamespace(group_M=source.dataset.domain_M, names=source.dataset.domains)
    evaluator = Evaluator(source.dataset, source.reader, grouping, torch.device("cpu"))

    def make(**options):
        torch.manual_seed(0)
        model = Model(nn.Identity(), nn.Linear(10, 3))
        config = TTAConfig(name="shifts", **options)
        return Adaptation(evaluator, shifts, config, source, 0, 0.25), model, source.splits.rows["val"]

    return make


def test_the_first_draw_is_as_given_and_no_draw_is_tried_twice(adaptation):
    method, model, val_rows = adaptation(choose=50)
    draws = method.tried(model, val_rows)
    assert draws[0].number == 0 and draws[0].hp.shift == 1e9
    assert sorted(each.hp.shift for each in draws) == [-1.0, 0.0, 1.0, 1e8, 1e9]


def test_what_is_given_is_not_drawn(adaptation):
    method, model, val_rows = adaptation(choose=50, shift=1.0, other=2.0)
    (only,) = method.tried(model, val_rows)
    assert (only.hp.shift, only.hp.other) == (1.0, 2.0)


def test_a_method_gets_trainings_learning_rate_unless_it_was_given_one(adaptation):
    assert adaptation()[0].draw().hp.training_lr == 0.25
    assert adaptation(training_lr=3.0)[0].draw().hp.training_lr == 3.0


def test_a_draw_is_worth_its_unweighted_mean_accuracy_over_the_validation_domains(adaptation):
    method, model, val_rows = adaptation(choose=8)
    val_rows = {**val_rows, "p": val_rows["p"][:3]}  # domains of other sizes count alike
    dataset = method.evaluator.dataset
    for each in method.tried(model, val_rows):
        accuracies = []
        for rows in val_rows.values():
            index = torch.from_numpy(rows)
            with torch.no_grad():
                logits_NC = model(method.evaluator.reader(index))
            logits_NC[:, -1] += each.hp.shift
            accuracies.append((logits_NC.argmax(-1) == dataset.targets_M[index]).double().mean().item())
        assert each.scores.goodness == pytest.approx(sum(accuracies) / len(accuracies))


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([0.5, 0.7, 0.7], 1),
        ([0.5, 0.5], 0),
        ([math.nan, -2.0, -1.0], 2),  # of a regression
        ([math.nan, math.nan], 0),
    ],
)
def test_the_best_is_chosen_the_first_on_ties_and_nan_last(scores, chosen):
    draws = [Draw(n, None, SimpleNamespace(goodness=score)) for n, score in enumerate(scores)]
    assert best(draws).number == chosen


def test_the_target_is_predicted_with_the_draw_of_the_best_validation_score(go, metrics):
    SEEN.clear()
    result = go("erm", "shifts", **CHOOSE)
    (record,) = [json.loads(path.read_text()) for path in result.path.glob("tta-*.json")]
    draws, logged = record["draws"], metrics(result)
    (chosen,) = [each for each in draws if each["chosen"]]
    worth = [each["val_adapted/acc_domain_mean"] for each in draws]
    assert record["method"] == "shifts" and chosen["draw"] == logged["tta/draw"]
    assert chosen["val_adapted/acc_domain_mean"] == max(worth) == logged["val_adapted/acc_domain_mean"]
    assert max(worth) > worth[0] and abs(chosen["hp"]["shift"]) <= 1  # all for one class is not best
    assert chosen["hp"]["other"] == 5.0

    val, test = ([hp.shift for hp in part] for part in (SEEN[1:-2], SEEN[-2:]))
    assert val == [each["hp"]["shift"] for each in draws for _ in TRAINING]
    assert test == [chosen["hp"]["shift"]] * 2  # the target, and its part for the oracle

    run, predictor = rebuilt(result)
    rows = all_rows(run.splits.rows["test"])
    logits_NC = run.evaluator.outputs(predictor, rows)
    logits_NC[:, -1] += chosen["hp"]["shift"]
    assert logged["test/acc_avg"] == pytest.approx(
        (logits_NC.argmax(-1) == targets_of(run, rows)).double().mean().item()
    )


def test_what_was_chosen_is_said(mlflow_store, tmp_path):
    said = []
    config = small_config(mlflow_store, tmp_path, plugins=[f"{__name__}:shifts"], **RULES, **CHOOSE)
    train(config, progress=Progress(say=said.append))
    (line,) = [text for text in said if "draw" in text]
    assert "shifts at checkpoint 10: draw" in line and "on validation data" in line and "as given" in line


def test_nothing_is_chosen_unless_it_is_asked_for(go, metrics):
    result = go("erm", "shifts", tta={"name": "shifts"})
    assert not list(result.path.glob("tta-*.json"))
    assert not any(key.startswith(("tta/", "val_adapted/")) for key in metrics(result))


@pytest.mark.parametrize("change", [permuted_labels, other_inputs])
@pytest.mark.parametrize(
    ("algorithm", "tta"),
    [("erm", {"name": "t3a"}), ("drm", {"name": "drm-online"})],
    ids=["t3a", "drm-online"],
)
def test_the_choice_depends_on_nothing_of_the_target(go, mlflow_store, monkeypatch, change, algorithm, tta):
    sections = {
        "tta": {**tta, "choose": 6},
        "selection": {"rules": ["last", "training-domain-validation"]},
    }
    real = go(algorithm, **sections)
    load = prepare.load_dataset
    monkeypatch.setattr(prepare, "load_dataset", lambda *args: change(load(*args)))
    canary = go(algorithm, output="canary", **sections)
    files = sorted(path.name for path in real.path.glob("tta-*.json"))
    assert files and files == sorted(path.name for path in canary.path.glob("tta-*.json"))
    for file in files:
        assert (real.path / file).read_bytes() == (canary.path / file).read_bytes()
    for key in ("tta/draw", "val_adapted/acc_domain_mean", "val_adapted/nll"):
        assert curve(mlflow_store, real.path, key) == curve(mlflow_store, canary.path, key)
    scores = [curve(mlflow_store, run.path, "test/nll") for run in (real, canary)]
    assert scores[0] != scores[1], "the canary changed nothing at all"


def test_what_is_chosen_while_scoring_survives_an_interruption(mlflow_store, tmp_path):
    assert_a_resumed_run_is_an_uninterrupted_one(
        mlflow_store,
        tmp_path,
        "drm",
        tta={"name": "drm-online", "choose": 4},
        selection={"rules": ["last", "training-domain-validation", "leave-one-domain-out-cv"]},
    )


def test_online_retraining_relates_its_rate_to_that_of_the_run(go, mlflow_store):
    result = go("drm", tta={"name": "drm-online", "choose": 1})
    (record,) = [json.loads(path.read_text()) for path in result.path.glob("tta-*.json")]
    assert record["draws"][0]["hp"]["training_lr"] == 1e-2  # of small_runs


def test_without_a_learning_rate_online_retraining_predicts_what_drm_does(go, metrics):
    logged = metrics(go("drm", tta={"name": "drm-online", "lr_multiplier": 0.0}))
    adapted = {key: value for key, value in logged.items() if key.startswith("test/acc")}
    assert adapted == {key: logged[key.replace("test/", "test_unadapted/")] for key in adapted}


def test_online_retraining_of_anything_but_drm_is_refused_before_the_run(go):
    with pytest.raises(UsageError, match="drm-online retrains the heads of drm"):
        go("erm", tta={"name": "drm-online"})
