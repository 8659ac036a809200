"""Adaptation by Meta-DMoE to one target domain, and whole runs that end with it.

Shapes: N examples of a batch, S support examples, D features, C classes, M experts.
"""

import copy
from typing import Any

import pytest
import torch
from small_runs import assert_a_resumed_run_is_an_uninterrupted_one, curve, run_small
from torch import nn

from dgharness import registry
from dgharness.errors import NotApplicable, UsageError
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.training.averaging import AveragingConfig
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
INPUTS, D, C, K, SUPPORT, RATE = 4, 8, 3, 3, 5, 0.5
algorithm, tta = registry.load("algorithms", "meta-dmoe"), registry.load("tta", "meta-dmoe")


def model(number=0):
    torch.manual_seed(number)
    layers = [nn.Linear(INPUTS, D), nn.BatchNorm1d(D), nn.Tanh(), nn.Dropout(0.5)]
    return Model(nn.Sequential(*layers), nn.Linear(D, C)).double()


def predictor(**options):
    hp = {"support": SUPPORT, "inner_lr": RATE, **options.pop("hp", {})}
    learner = Learner(
        algorithm,
        model(),
        Dims(C, D, K, K),
        algorithm.hparams(**hp),
        OptimizerConfig(lr=0.1, weight_decay=0.0),
        seed=0,
        new_model=model,
        **options,
    )
    learner.algorithm.double()
    if learner.averaged:
        learner.averaged.module.double()
    return learner.predictor()


def stream(batches=3, N=8):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(N, INPUTS, generator=draw, dtype=torch.float64) for _ in range(batches)]


def adapting(to, **hp):
    return tta.factory(copy.deepcopy(to), tta.hparams(**hp), None, 0)


def plain_student(source, x_SI):
    """The student after an ordinary step of gradient descent towards all experts."""
    aggregator = source.teacher.aggregator
    with torch.no_grad():
        features = [expert.featurizer(x_SI) for expert in source.teacher.experts]
        tokens_SMD = torch.stack(features, dim=1)
        taught_SD = aggregator(tokens_SMD, torch.ones(tokens_SMD.shape[:2]).bool())
    student = copy.deepcopy(source.model).requires_grad_(True)
    optimizer = torch.optim.SGD(student.featurizer.parameters(), lr=RATE)
    (student.featurizer(x_SI) - taught_SD).square().mean().backward()
    optimizer.step()
    return student


def test_every_batch_is_predicted_by_the_student_adapted_to_the_first_examples_of_the_first():
    source, batches = predictor(), stream()
    adapt, student = adapting(source), plain_student(source, batches[0][:SUPPORT])
    for x in batches:
        logits = adapt(x)
        torch.testing.assert_close(logits, student(x).detach(), **EXACT)
        assert not logits.requires_grad
        assert not torch.allclose(logits, source.model(x))
    assert adapt.support == SUPPORT


def test_a_second_pass_changes_nothing():
    adapt, batches = adapting(predictor()), stream()
    first = [adapt(x) for x in batches]
    for x, before in zip(batches, first, strict=True):
        assert adapt(x).equal(before)


def test_only_the_encoder_moves_and_no_statistics():
    source = predictor()
    adapt = adapting(source)
    adapt(stream()[0])
    before, after = source.state_dict(), adapt.predictor.state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed == {f"model.featurizer.{name}" for name, _ in source.model.featurizer.named_parameters()}


@pytest.mark.parametrize(
    ("given", "size", "used"), [(None, 8, 5), (3, 8, 3), (7, 8, 7), (None, 4, 4), (7, 1, 1)]
)
def test_it_says_how_many_examples_it_adapted_to(given, size, used):
    source, x = predictor(), stream(N=size)[0]
    adapt = adapting(source, support=given)
    logits = adapt(x)
    assert adapt.support == used
    torch.testing.assert_close(logits, plain_student(source, x[:used])(x).detach(), **EXACT)


def test_an_inner_rate_of_zero_is_no_adaptation():
    source, x = predictor(hp={"inner_lr": 0.0}), stream()[0]
    assert adapting(source)(x).equal(source.classify(source.features(x)))


@pytest.mark.parametrize("options", [{}, {"averaging": AveragingConfig(name="sma", start=1)}])
def test_it_adapts_inside_an_evaluation_without_gradients(options):
    source, x = predictor(**options), stream()[0]
    expected = plain_student(source, x[:SUPPORT])(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(adapting(source)(x), expected, **EXACT)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        torch.testing.assert_close(adapting(source)(x).double(), expected, rtol=0.1, atol=0.1)


def test_another_algorithms_predictor_is_a_clear_error():
    with pytest.raises(UsageError, match="experts of the algorithm meta-dmoe, and Model has none"):
        adapting(model())


# --- whole runs ------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "hp": {"expert_steps": 2, "aggregator_steps": 2, "student_steps": 2, "support": 4, "inner_lr": 30.0},
    "data": {"name": "rotated-digits"},
}


def test_a_run_reports_the_target_with_and_without_adaptation_and_without_the_support(mlflow_store, tmp_path):
    result = run_small(mlflow_store, tmp_path, "meta-dmoe", **SHORT)
    scores = {
        split: curve(mlflow_store, result.path, f"{split}/nll")[10]
        for split in ("test", "test_unadapted", "test_query")
    }
    assert len(set(scores.values())) == 3, scores
    trained = {
        name: sorted(curve(mlflow_store, result.path, f"train/{name}"))
        for name in ("expert_risk", "aggregator_risk", "risk", "distance")
    }
    assert trained == {
        "expert_risk": [2],
        "aggregator_risk": [3, 4],
        "risk": [6, 8, 9, 10],
        "distance": [8, 9, 10],
    }


def test_resumed_inside_a_stage_and_between_two(mlflow_store, tmp_path):
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "meta-dmoe", (3, 6, 9), **SHORT)


def test_a_run_that_would_end_before_meta_training_does_not_start(mlflow_store, tmp_path):
    with pytest.raises(NotApplicable, match=r"take 2500 updates, and train\.steps=10 leaves none"):
        run_small(mlflow_store, tmp_path, "meta-dmoe")
    assert not list(tmp_path.glob("*/run.json"))


def test_erm_has_no_experts_to_adapt_with(mlflow_store, tmp_path):
    with pytest.raises(UsageError, match="set algorithm=meta-dmoe"):
        run_small(mlflow_store, tmp_path, "erm", tta={"name": "meta-dmoe"})
