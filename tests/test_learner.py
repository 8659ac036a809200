"""The learner alone: no data source, no tracking, plain tensors."""

import io

import pytest
import torch
from small_runs import differences
from torch import nn
from toy_settings import toy

from dgharness import registry
from dgharness.data.source import TrainingSource
from dgharness.errors import UsageError
from dgharness.models.model import Model
from dgharness.plugin import Algorithm, Dims, Hparams, Stage, algorithm, objective
from dgharness.testing import small_batch, small_model, small_source
from dgharness.training.averaging import AveragingConfig
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

DIMS = Dims(outputs=3, features=6, domains=3, groups=3, input_shape=(10,))
ALL = [e.name for e in registry.entries("algorithms", include_unverified=True) if e.source == "built-in"]
DRAWS_FOR_ITSELF = {"nw-head", "sparse-irm", "ddg", "meta-dmoe"}


def make(name_or_spec="erm", model=None, seed=0, optimizer=None, **options):
    spec = registry.load("algorithms", name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    config = OptimizerConfig(**{"lr": 0.01, "weight_decay": 0.0, **(optimizer or {})})
    hp = options.pop("hp", spec.hparams())
    return Learner(spec, model or small_model(0), DIMS, hp, config, seed, **options)


def train(learner, steps, **given):
    for _ in range(steps):
        x, y_EB = small_batch(learner.t)
        metrics = learner.step(x, y_EB, **given)
    return metrics


def test_a_learner_is_built_trained_used_and_saved_in_a_few_lines():
    spec = registry.load("algorithms", "vrex")
    model = Model(nn.Sequential(nn.Linear(10, 6), nn.ReLU()), nn.Linear(6, 3))
    learner = Learner(
        spec, model, DIMS, spec.hparams(weight=2.0), OptimizerConfig(lr=0.01, weight_decay=0), seed=0
    )

    x, y_EB = torch.randn(3 * 8, 10), torch.randint(3, (3, 8))  # three domains of eight examples
    metrics = learner.step(x, y_EB)
    assert {"loss", "risk", "penalty", "risks_E"} <= metrics.keys()
    assert learner.t == 1 and learner.predict(x).shape == (24, 3)

    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["model"].keys() == model.state_dict().keys()


def test_a_step_is_the_textbook_step():
    learner, model = make(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0}), small_model(0)
    x, y_EB = small_batch(0)
    metrics = learner.step(x, y_EB)
    loss = nn.functional.cross_entropy(model(x), y_EB.flatten())
    loss.backward()
    torch.testing.assert_close(metrics["risk"], loss.detach())
    for mine, p in zip(learner.algorithm.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), (p - 0.1 * p.grad).detach())


@pytest.mark.parametrize("name", [e.name for e in registry.entries("algorithms") if e.source == "built-in"])
def test_two_learners_with_the_same_weights_minibatches_and_noise_stay_the_same(name):
    spec = registry.load("algorithms", name)
    # What noise cannot hold is drawn from the learner's own seed.
    seeds = (0, 0) if name in DRAWS_FOR_ITSELF else (0, 1)
    one, other = (
        make(name, seed=seed, hp=spec.hparams(**toy(name)), new_model=small_model, source=small_source())
        for seed in seeds
    )
    other.load_state_dict(one.state_dict())
    for t in range(10):
        noise = spec.noise(3, 8, torch.Generator().manual_seed(t)) if spec.noise else None
        x, y_EB = small_batch(t)
        mine, theirs = (learner.step(x, y_EB, noise=noise) for learner in (one, other))
        assert not differences(mine, theirs)
        torch.rand(1)
    assert not differences(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_a_model_in_float64_takes_what_the_method_owns_with_it(name):
    spec = registry.load("algorithms", name)
    learner = make(
        name,
        model=small_model(0).double(),
        hp=spec.hparams(**toy(name)),
        new_model=lambda number: small_model(number).double(),
        source=small_source(),
    )
    for t in range(8):
        x, y_EB = small_batch(t)
        metrics = learner.step(x.double(), y_EB)
        assert all(value.isfinite().all() for value in metrics.values())
    state = learner.state_dict()
    tensors = (*state["model"].values(), *state["algorithm"].values())
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float64}


def test_noise_given_replaces_what_the_method_draws():
    states = []
    for fill in (None, 0.1, 0.9):
        learner = make("causirl-mmd")
        shape = learner.spec.noise(3, 8, torch.Generator()).shape
        train(learner, 3, noise=None if fill is None else torch.full(shape, fill))
        states.append(learner.state_dict()["model"])
    assert differences(states[1], states[2]) and differences(states[0], states[1])


def test_the_method_draws_from_the_seed_and_the_step_alone():
    one, other = make("causirl-mmd"), make("causirl-mmd")
    train(one, 2)
    torch.manual_seed(99)
    train(other, 2)
    assert not differences(one.state_dict(), other.state_dict())
    shifted = make("causirl-mmd", seed=5)
    train(shifted, 2)
    assert differences(one.state_dict()["model"], shifted.state_dict()["model"])


def test_weights_alone_predict_as_the_learner_does():
    learner = make("drm", averaging=AveragingConfig(name="sma", start=2))
    train(learner, 5)
    x, _ = small_batch(9)
    fresh = make("drm", model=small_model(7), seed=3)
    predictor = fresh.predictor(weights=learner.weights())
    with torch.no_grad():
        assert predictor.classify(predictor.features(x)).equal(learner.predict(x))
    train(learner, 1)
    assert learner.algorithm.training, "prediction leaves the trained networks in training mode"


def test_averaged_weights_are_what_predicts():
    plain, averaged = make(), make(averaging=AveragingConfig(name="sma", start=1))
    start = {k: v.clone() for k, v in plain.algorithm.model.state_dict().items()}
    states = [start]
    for _ in range(4):
        train(plain, 1), train(averaged, 1)
        states.append({k: v.clone() for k, v in plain.algorithm.model.state_dict().items()})
    assert not differences(plain.state_dict()["model"], averaged.state_dict()["model"])
    mean = {k: torch.stack([state[k] for state in states]).mean(0) for k in start}
    model = small_model(0)
    model.load_state_dict(mean)
    x, _ = small_batch(9)
    torch.testing.assert_close(averaged.predict(x), model(x).detach())


# --- the third rung --------------------------------------------------------------------------------


class TwoHeads(Algorithm):
    def __init__(self, setup):
        super().__init__(setup)
        self.head = nn.Linear(setup.dims.features, setup.dims.outputs)
        self.loss = setup.loss

    def optimizers(self, make):
        return {"model": make(self.model.named_parameters()), "head": make(self.head.named_parameters())}

    def update(self, step, descend):
        descend("model", lambda: step.fresh().risks_E.mean())

        def of_head():
            z_EBD = step.fresh().features_EBD.detach()
            return self.loss(self.head(z_EBD), step.targets_EB).mean()

        descend("head", of_head)
        return {}


two_heads = algorithm()(TwoHeads)


def batch_norm_model():
    torch.manual_seed(0)
    return Model(
        nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU()), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("name", ["adam", "sam"])
def test_every_descent_moves_batch_statistics_once_however_often_the_loss_is_evaluated(name):
    learner = make(two_heads, batch_norm_model(), optimizer={"name": name})
    train(learner, 5)
    assert int(learner.algorithm.model.featurizer[1].num_batches_tracked) == 10


def test_sam_keeps_the_batch_statistics_of_the_first_evaluation():
    sam, plain = (make("erm", batch_norm_model(), optimizer={"name": name}) for name in ("sam", "adam"))
    train(sam, 1), train(plain, 1)
    buffers = [dict(learner.algorithm.model.named_buffers()) for learner in (sam, plain)]
    assert not differences(*buffers)
    assert differences(sam.state_dict()["model"], plain.state_dict()["model"])


def test_sam_resumes_between_two_updates_with_dropout_and_batch_statistics():
    whole, half, rest = (make(two_heads, batch_norm_model(), optimizer={"name": "sam"}) for _ in range(3))
    train(whole, 6), train(half, 3)
    rest.load_state_dict(half.state_dict())
    train(rest, 3)
    assert not differences(whole.state_dict(), rest.state_dict())


class Further(Algorithm):
    """Builds a network when it is constructed and another at the end of each stage."""

    def __init__(self, setup):
        super().__init__(setup)
        self.new_model = setup.new_model
        self.other = setup.new_model()

    def update(self, step, descend):
        descend("model", lambda: step.fresh().risks_E.mean())
        return {}

    def end_stage(self, name, source):
        return {name: self.new_model().classifier.weight.detach()}


class FurtherHparams(Hparams):
    pass


further = algorithm(
    FurtherHparams, stages=lambda hp: [Stage("a", 2), Stage("b", 2), Stage("c", 2), Stage("a again")]
)(Further)


def through_stages(learner, steps):
    source: TrainingSource = small_source()
    for _ in range(steps):
        learner.enter_stage(source)
        train(learner, 1)


def test_networks_built_later_start_alike_after_a_resume():
    whole, half, rest = (make(further, new_model=lambda number: small_model(number)) for _ in range(3))
    through_stages(whole, 8)
    through_stages(half, 3)
    rest.load_state_dict(half.state_dict())
    through_stages(rest, 5)
    assert not differences(whole.state_dict(), rest.state_dict())
    assert whole.handed_over.keys() == {"a", "b", "c"}
    assert differences(whole.handed_over["a"], whole.handed_over["b"])


def test_an_algorithm_that_builds_networks_says_so_when_it_cannot():
    with pytest.raises(UsageError, match="new_model"):
        make(further)


@objective(stages=lambda hp: [Stage("a", 2), Stage("b", 2), Stage("a", 2)])
class Alternating(nn.Module):
    """The same stage twice."""

    def __init__(self, dims, hp):
        super().__init__()
        self.ended = []

    def forward(self, step, hp):
        return step.risks_E.mean(), {}

    def end_stage(self, name, source):
        self.ended.append(name)
        return {}


def test_a_stage_may_come_twice():
    learner = make(Alternating)
    through_stages(learner, 8)
    assert learner.algorithm.objective.ended == ["a", "b"]


@objective(stages=lambda hp: [Stage("warm", 4), Stage("again", reinit=True)])
def reinitialised(step, hp):
    """Starts afresh after four updates."""
    return step.risks_E.mean(), {}


def test_an_average_begins_again_where_the_weights_do():
    learner = make(reinitialised, averaging=AveragingConfig(name="sma", start=1))
    start = {k: v.clone() for k, v in learner.algorithm.model.state_dict().items()}
    through_stages(learner, 5)
    now = learner.algorithm.model.state_dict()
    mean = {k: (start[k] + now[k]) / 2 for k in start}
    torch.testing.assert_close(dict(learner.averaged.module.model.state_dict()), mean)


# --- learning rate, restarts, clipping -------------------------------------------------------------


def test_the_optimizer_starts_afresh_at_the_anneal_step():
    spec = registry.load("algorithms", "vrex")
    learner = make("vrex", hp=spec.hparams(anneal_steps=3))
    counts = []
    for _ in range(6):
        train(learner, 1)
        counts.append({int(state["step"]) for state in learner.optimizers["model"].state.values()})
    assert counts == [{1}, {2}, {3}, {1}, {2}, {3}]


def test_a_restart_may_set_another_learning_rate():
    @objective(restarts=lambda hp: [(2, 0.5)])
    def two_rates(step, hp):
        """Goes on with another learning rate."""
        return step.risks_E.mean(), {}

    learner, rates = make(two_rates, optimizer={"schedule": "linear"}, steps=4), []
    for _ in range(4):
        train(learner, 1)
        rates.append(learner.optimizers["model"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.0075, 0.25, 0.125])
