"""What the contract promises to a method, each promise held by a method of a few lines."""

import dataclasses

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
    stored,
)
from torch import nn

from dgharness import registry
from dgharness.errors import Interrupted, UsageError
from dgharness.names import slug
from dgharness.plugin import (
    Algorithm,
    Hparams,
    Needs,
    Stage,
    algorithm,
    annotator,
    objective,
    tta_method,
)
from dgharness.rundir import RunDir
from dgharness.training import prepare
from dgharness.training.build import build
from dgharness.training.learner import Learner
from dgharness.training.progress import Progress
from dgharness.training.run import read_config, resume

DOMAINS = ("+90%", "+80%", "-90%")


@pytest.fixture(autouse=True)
def _own_plugins(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})


@pytest.fixture
def go(mlflow_store, tmp_path):
    """Run an algorithm of this file, or a registered one."""

    def run(name, *plugins, output="runs", **sections):
        own = [f"{__name__}:{attr}" for attr in (name.replace("-", "_"), *plugins) if attr in globals()]
        return run_small(mlflow_store, tmp_path / output, name, plugins=own, **sections)

    return run


@pytest.fixture
def updates(monkeypatch):
    """What every update of the runs under way was given: (batch fields, state of the model before it)."""
    seen, step = [], Learner.step

    def watched(learner, x, y_EB, **given):
        before = {k: v.clone() for k, v in learner.algorithm.model.state_dict().items()}
        seen.append({"x": x, "y_EB": y_EB, **given, "learner": learner, "before": before})
        return step(learner, x, y_EB, **given)

    monkeypatch.setattr(Learner, "step", watched)
    return seen


@pytest.fixture
def dataset(monkeypatch):
    """Runs see the dataset with some fields changed."""
    load = prepare.load_dataset

    def change(**changes):
        monkeypatch.setattr(
            prepare, "load_dataset", lambda *args: dataclasses.replace(load(*args), **changes)
        )

    return change


def manifest(result):
    config = read_config(RunDir.open(result.path.parent, result.run_id))
    return prepare.prepare(config)


# --- the third rung --------------------------------------------------------------------------------


@algorithm()
class TwoNetworks(Algorithm):
    """A second network learns beside the first, with an optimizer of its own."""

    def __init__(self, setup):
        super().__init__(setup)
        self.other, self.loss = setup.new_model(), setup.loss
        self.start = {k: v.clone() for k, v in self.other.state_dict().items()}

    def optimizers(self, make):
        return {"model": make(self.model.named_parameters()), "other": make(self.other.named_parameters())}

    def update(self, step, descend):
        descend("model", lambda: step.fresh().risks_E.mean())
        descend("other", lambda: self.loss(self.other(step.x), step.targets_EB.flatten()).mean())
        return {"risk": step.fresh().risks_E.mean()}


two_networks = TwoNetworks


def test_two_networks_with_two_optimizers(go, updates):
    alone, both = go("erm"), go("two-networks")
    state = saved(both.path)["learner"]
    assert not differences(saved(alone.path)["learner"]["model"], state["model"])
    own = {k.removeprefix("other."): v for k, v in state["algorithm"].items()}
    learner = updates[-1]["learner"]
    assert differences(learner.algorithm.start, own), "the second network did not train"
    assert differences(learner.algorithm.start, updates[0]["before"]), "the second network is a copy"
    assert set(state["optimizers"]) == {"model", "other"}


def test_two_networks_resume(mlflow_store, tmp_path):
    plugins = [f"{__name__}:two_networks"]
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "two-networks", plugins=plugins)


# --- stages ----------------------------------------------------------------------------------------


class StagedHparams(Hparams):
    seek: int = 4
    """Updates of the first stage."""


@objective(
    StagedHparams,
    stages=lambda hp: [
        Stage("seek", hp.seek, sampler="pooled"),
        Stage("use", 3, reinit=True),
        Stage("head", split="val"),
    ],
)
class Staged(nn.Module):
    """Counts how often each example came, and hands that over."""

    def __init__(self, dims, hp):
        super().__init__()
        self.register_buffer("seen_M", torch.zeros(dims.rows))

    def forward(self, step, hp):
        self.seen_M.index_add_(0, step.index_EB.flatten(), torch.ones(step.index_EB.numel()))
        kept = step.handed_over.get("seen_M", torch.zeros(1)).sum()
        noise = step.handed_over.get("noise", torch.zeros(()))
        return step.risks_E.mean(), {"kept": kept, "noise": noise, "rows": step.risks_E}

    def end_stage(self, name, source):
        return {"seen_M": self.seen_M, "noise": torch.rand(())} if name == "seek" else {name: torch.ones(1)}


staged = Staged


def test_stages_change_sampler_split_and_weights_and_hand_tensors_over(go, updates):
    result = go("staged", train={"log_every": 1})
    shapes = [tuple(update["index_EB"].shape) for update in updates]
    assert shapes == [(1, 16)] * 4 + [(2, 8)] * 6
    rows = manifest(result).splits.rows
    trained, kept, val = (
        {int(i) for of_domain in rows[split].values() for i in of_domain}
        for split in ("train", "val_train", "val")
    )
    seen = [set(update["index_EB"].flatten().tolist()) for update in updates]
    assert set().union(*seen[:7]) <= trained and set().union(*seen[7:]) <= kept
    assert not kept & val

    assert differences(updates[0]["before"], updates[3]["before"])
    assert not differences(updates[0]["before"], updates[4]["before"]), "stage use starts afresh"
    assert differences(updates[0]["before"], updates[7]["before"])
    assert saved(result.path)["learner"]["handed_over"].keys() == {"seen_M", "noise", "use"}


def test_what_is_handed_over_stays_as_it_was(go, mlflow_store):
    result = go("staged", train={"log_every": 1})
    kept = curve(mlflow_store, result.path, "train/kept")
    assert kept == {t: 0.0 if t <= 4 else 64.0 for t in range(1, 11)}


def test_a_stage_on_validation_data_leaves_half_of_it_for_selection_and_is_tagged(go, mlflow_store):
    plain, result = go("erm"), go("staged")
    rows, whole = manifest(result).splits.rows, manifest(plain).splits.rows
    for name, of_domain in whole["val"].items():
        assert sorted([*rows["val"][name], *rows["val_train"][name]]) == sorted(of_domain)
        assert abs(len(rows["val"][name]) - len(rows["val_train"][name])) <= 1
    counts = [curve(mlflow_store, run.path, "val/count")[10] for run in (plain, result)]
    assert counts[1] == sum(map(len, rows["val"].values())) < counts[0]
    assert "validation data" in stored(mlflow_store, result.path)["tags"]["dg.uses"]
    assert "dg.uses" not in stored(mlflow_store, plain.path)["tags"]


def test_rows_of_every_stage_are_logged_under_their_own_names(go, mlflow_store):
    result = go("staged")
    for name in DOMAINS[:2]:
        assert set(curve(mlflow_store, result.path, f"train/rows/{slug(name)}")) == {6, 7, 8, 9, 10}
    assert set(curve(mlflow_store, result.path, "train/kept")) == {3, 4, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("stops", [(2, 6), (4, 7), (9,)], ids=str)
def test_stages_resume_within_and_at_their_boundaries(mlflow_store, tmp_path, stops):
    assert_a_resumed_run_is_an_uninterrupted_one(
        mlflow_store,
        tmp_path,
        "staged",
        stops,
        plugins=[f"{__name__}:staged"],
        averaging={"name": "sma", "start": 2},
    )


def test_a_stage_of_no_steps_is_left_out(go, updates):
    result = go("staged", hp={"seek": 0})
    assert [tuple(update["index_EB"].shape) for update in updates] == [(2, 8)] * 10
    assert saved(result.path)["learner"]["handed_over"].keys() == {"use"}


# --- ending early ----------------------------------------------------------------------------------


@algorithm()
class Six(Algorithm):
    """Has enough after six updates."""

    def update(self, step, descend):
        descend("model", lambda: step.fresh().risks_E.mean())
        self.finished = step.t == 5
        return {}


six = Six


def test_finished_ends_the_loop_with_an_evaluation(go, mlflow_store):
    result = go("six")
    assert set(curve(mlflow_store, result.path, "val/nll")) == {4, 6}
    assert saved(result.path, "weights-last")["t"] == 6 and result.status == "FINISHED"


def test_a_run_interrupted_in_its_last_update_trains_no_further(go, tmp_path):
    with signal_after(6), pytest.raises(Interrupted):
        go("six")
    (path,) = (tmp_path / "runs").iterdir()
    resumed = resume(path.name, tmp_path / "runs", progress=Progress(**QUIET))
    assert saved(path)["learner"]["t"] == 6 and resumed.chosen["last"].step == 6


# --- annotators ------------------------------------------------------------------------------------


@annotator()
def thirds(source, new_model, hp, seed):
    """Three domains by row number, and as many groups as the model's random weights have columns."""
    return {"domain": source.columns["index"] % 3}


@annotator()
def fifths(source, new_model, hp, seed):
    """Five groups by row number."""
    return {"group": source.columns["index"] % 5}


@annotator()
def chance(source, new_model, hp, seed):
    """Two domains at random."""
    return {"domain": torch.randint(2, (len(source.columns["y"]),))}


def test_an_annotator_replaces_the_domains_in_training_only(go, updates, mlflow_store):
    result = go("drm", "thirds", annotator={"name": "thirds"})
    for update in updates:
        assert update["domain_EB"].equal(update["index_EB"] % 3)
        assert update["group_EB"].equal(update["domain_EB"]), "groups are the domains unless others are given"
    heads = saved(result.path)["learner"]["algorithm"]["objective.heads.weight"]
    assert heads.shape == (3 * 2, 16)
    keys = {key for key, _, _ in stored(mlflow_store, result.path)["metrics"]}
    assert {"train/risk/0", "train/risk/1", "train/risk/2"} <= keys
    assert {f"val/acc/{slug(name)}" for name in DOMAINS[:2]} <= keys
    assert stored(mlflow_store, result.path)["tags"]["dg.uses"] == "thirds"


def test_an_annotator_replaces_the_groups(go, updates, mlflow_store):
    result = go("group-dro", "fifths", annotator={"name": "fifths"}, train={"sampler": "by-group"})
    for update in updates:
        assert update["group_EB"].equal(update["index_EB"] % 5)
        assert update["group_EB"].equal(torch.arange(5)[:, None].expand(5, 8))
    assert saved(result.path)["learner"]["algorithm"]["objective.q_G"].shape == (5,)
    assert set(curve(mlflow_store, result.path, "train/risk/4")) == {3, 4, 6, 8, 9, 10}


def test_found_domains_let_one_domain_do_for_a_method_that_needs_two(go):
    targets = {"targets": list(DOMAINS[1:])}
    with pytest.raises(UsageError, match="vrex cannot run here: it needs at least 2 training domains"):
        go("vrex", protocol=targets)
    assert go("vrex", "chance", protocol=targets, annotator={"name": "chance"}).status == "FINISHED"


def test_an_annotator_that_draws_is_the_same_after_a_resume(mlflow_store, tmp_path):
    torch.manual_seed(int.from_bytes(tmp_path.name.encode()[-4:]))
    assert_a_resumed_run_is_an_uninterrupted_one(
        mlflow_store, tmp_path, "erm", plugins=[f"{__name__}:chance"], annotator={"name": "chance"}
    )


# --- what a step holds -----------------------------------------------------------------------------


@objective(needs=Needs(views=("noisy",)))
def two_views(step, hp):
    """Agrees with itself on a noisy view."""
    other = step.model(step.augment(step.x, "noisy")).unflatten(0, step.targets_EB.shape)
    agreement = (step.logits_EBC - other).square().mean()
    return step.risks_E.mean() + agreement, {"agreement": agreement}


def noisy(x, generator):
    return x + 0.5 * torch.randn(x.shape, generator=generator)


def test_a_view_is_drawn_anew_at_every_step_and_the_same_after_a_resume(
    mlflow_store, tmp_path, dataset, updates
):
    dataset(views={"noisy": noisy})
    assert_a_resumed_run_is_an_uninterrupted_one(
        mlflow_store, tmp_path, "two-views", plugins=[f"{__name__}:two_views"]
    )
    learner, x = updates[0]["learner"], updates[0]["x"]
    learner.t = 0
    first = learner._augment(x, "noisy")
    learner.t = 1
    assert not torch.equal(first, x) and not torch.equal(first, learner._augment(x, "noisy"))


@objective(needs=Needs(feature_maps=("1", "3")))
def maps(step, hp):
    """Looks at two hidden layers."""
    one, three = step.feature_maps["1"], step.feature_maps["3"]
    assert one.shape == three.shape == (step.index_EB.numel(), 16)
    assert torch.equal(three.relu(), step.features_EBD.flatten(0, 1))
    return step.risks_E.mean(), {"active": (one > 0).float().mean()}


def test_feature_maps_are_the_outputs_of_the_named_layers(go, mlflow_store):
    active = curve(mlflow_store, go("maps").path, "train/active")
    assert all(0 < value < 1 for value in active.values())


def test_a_layer_that_the_model_lacks_is_named(go):
    with pytest.raises(UsageError, match=r"maps cannot run here.*layers 3, and this model has 0, 1, 2$"):
        go("maps", model={"depth": 1})


@objective(needs=Needs(pretrained=True))
def stay_close(step, hp):
    """Stays close to where it began."""
    with torch.no_grad():
        before = step.pretrained.features(step.x).unflatten(0, step.targets_EB.shape)
    distance = (step.features_EBD - before).square().mean()
    return step.risks_E.mean() + distance, {"distance": distance}


def test_the_pretrained_snapshot_stays_as_it_was(mlflow_store, tmp_path, updates):
    sections = {"plugins": [f"{__name__}:stay_close"], "train": {"log_every": 1}}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "stay-close", **sections)
    snapshot = updates[-1]["learner"].pretrained
    assert not differences(updates[0]["before"], dict(snapshot.state_dict()))
    assert not any(p.requires_grad for p in snapshot.parameters()) and not snapshot.training
    distance = curve(mlflow_store, next((tmp_path / "whole").iterdir()), "train/distance")
    assert distance[1] == 0 and distance[10] > 0


def test_attributes_and_groups_are_those_of_the_rows(go, updates):
    result = go("group-dro", data={"train_groups": ["y", "color"]})
    data = manifest(result).dataset
    y_M, color_M = data.targets_M, data.attributes_M["color"]
    for update in updates:
        rows_EB = update["index_EB"]
        assert update["y_EB"].equal(y_M[rows_EB])
        assert update["attributes"]["color"].equal(color_M[rows_EB])
        assert update["group_EB"].equal(2 * y_M[rows_EB] + color_M[rows_EB])
    assert saved(result.path)["learner"]["algorithm"]["objective.q_G"].shape == (4,)


def test_a_group_of_the_target_alone_gets_no_share(go):
    for targets in (["-90%"], ["+90%"]):
        result = go("group-dro", protocol={"targets": targets})
        q_G = saved(result.path)["learner"]["algorithm"]["objective.q_G"]
        assert q_G.shape == (2,) and float(q_G.sum()) == pytest.approx(1)


def test_the_rows_of_groups_are_logged_under_the_groups(go, mlflow_store):
    result = go("erm", train={"sampler": "by-group"}, data={"train_groups": ["color"]})
    keys = {key for key, _, _ in stored(mlflow_store, result.path)["metrics"]}
    named = {f"train/risk/{slug(f'color={color}')}" for color in ("red", "green")}
    assert {key for key in keys if key.startswith("train/risk/")} == named


@algorithm()
class LooksAround(Algorithm):
    """Trains plainly; reports the size of the training data and a number of its own stream."""

    def update(self, step, descend):
        descend("model", lambda: step.fresh().risks_E.mean())
        first, again, other = (torch.rand((), generator=step.generator(name)) for name in "aab")
        assert first == again and first != other
        return {"examples": step.source.counts_K.sum(), "drawn": first}


looks_around = LooksAround


def test_an_update_sees_the_training_data_and_has_a_stream_of_its_own(go, mlflow_store):
    result = go("looks-around", train={"log_every": 1})
    training_rows = sum(map(len, manifest(result).splits.rows["train"].values()))
    assert set(curve(mlflow_store, result.path, "train/examples").values()) == {training_rows}
    drawn = curve(mlflow_store, result.path, "train/drawn")
    assert len(set(drawn.values())) == len(drawn) > 3


@objective(lr_multipliers=lambda hp: {"objective.": 0.0})
class SlowHead(nn.Module):
    """Trains the model and a scale of its own at another rate."""

    def __init__(self, dims, hp):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, step, hp):
        risk = (self.scale * step.risks_E).mean()
        return risk, {"risk": risk}


slow_head = SlowHead


def test_a_method_states_the_learning_rates_of_its_own_parameters(go):
    state = saved(go("slow-head").path)["learner"]
    assert state["algorithm"]["objective.scale"] == 1


def test_what_an_objective_owns_is_trained_and_kept(go, updates):
    state = saved(go("drm").path)["learner"]
    learner = updates[0]["learner"]
    assert {"objective.heads.weight", "objective.heads.bias"} == state["algorithm"].keys()
    parameters = [id(p) for group in learner.optimizers["model"].param_groups for p in group["params"]]
    assert {id(p) for p in learner.algorithm.objective.parameters()} <= set(parameters)
    assert state["algorithm"]["objective.heads.bias"].abs().sum() > 0
    assert differences(
        saved(go("group-dro").path)["learner"]["algorithm"], {"objective.q_G": torch.ones(2) / 2}
    )


@objective()
class Counts(nn.Module):
    """Logs a buffer that it changes in place."""

    def __init__(self, dims, hp):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, step, hp):
        self.count += 1
        return step.risks_E.mean(), {"count": self.count}


counts = Counts


def test_a_metric_that_is_a_buffer_is_logged_as_it_was_at_its_step(go, mlflow_store):
    logged = curve(mlflow_store, go("counts", train={"log_every": 2, "eval_every": 10}).path, "train/count")
    assert logged == {2: 1.5, 4: 3.5, 6: 5.5, 8: 7.5, 10: 9.5}


# --- predictors and test time ----------------------------------------------------------------------


class Opposite(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def features(self, x):
        return self.model.features(x)

    def classify(self, z):
        return -self.model.classify(z)


@objective()
class Contrary(nn.Module):
    """Learns as ERM and predicts the opposite."""

    def __init__(self, dims, hp):
        super().__init__()

    def forward(self, step, hp):
        return step.risks_E.mean(), {}

    def predictor(self, model, hp, source):
        return Opposite(model)


contrary = Contrary


def test_the_predictor_of_an_objective_is_what_is_scored(go, mlflow_store):
    plain, opposite = go("erm"), go("contrary")
    for key in ("val/acc_avg", "test/acc_avg"):
        one, other = (curve(mlflow_store, run.path, key)[10] for run in (plain, opposite))
        assert one + other == pytest.approx(1) and one != other


CALLS: list = []


@tta_method()
class Spoils:
    """Zeroes the predictor's weights little by little, and always answers 0."""

    def __init__(self, predictor, hp, source, seed):
        self.predictor, self.calls = predictor, []
        CALLS.append((predictor, self.calls))

    def __call__(self, x):
        self.calls.append(len(x))
        with torch.no_grad():
            for parameter in self.predictor.parameters():
                parameter.mul_(0.5)
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)


spoils = Spoils


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_test_time_method_gets_its_own_copy_once_per_target_domain(go, mlflow_store, mode):
    CALLS.clear()
    sections = {"protocol": {"targets": list(DOMAINS[1:])}, "selection": {"rules": ["last"]}}
    plain = go("erm", **sections)
    adapted = go("erm", "spoils", tta={"name": "spoils", "mode": mode}, **sections)
    rows = manifest(adapted).splits.rows
    sizes = [len(of_domain) for split in ("test", "test_holdout") for of_domain in rows[split].values()]
    passes = 2 if mode == "offline" else 1
    unused, *used = CALLS  # one is built before the run, to see that the method can use this predictor
    assert not unused[1]
    assert [sum(calls) for _, calls in used] == [passes * size for size in sizes]
    assert all(max(calls) <= 64 for _, calls in used)
    assert len({id(predictor) for predictor, _ in used}) == 4

    assert not differences(saved(plain.path, "weights-last"), saved(adapted.path, "weights-last"))
    targets = manifest(adapted).dataset.targets_M
    for name in DOMAINS[1:]:
        without, beside, score = (
            curve(mlflow_store, run.path, f"{split}/acc/{slug(name)}")[10]
            for run, split in ((plain, "test"), (adapted, "test_unadapted"), (adapted, "test"))
        )
        assert without == beside
        assert score == pytest.approx(
            float((targets[torch.from_numpy(rows["test"][name])] == 0).float().mean())
        )


@tta_method()
class AlwaysFirst:
    """Predicts the first class whatever it sees."""

    def __init__(self, predictor, hp, source, seed):
        self.predictor = predictor

    def __call__(self, x):
        logits_NC = self.predictor.classify(self.predictor.features(x))
        return torch.eye(logits_NC.shape[1])[0].expand_as(logits_NC)


always_first = AlwaysFirst


@objective(tta="always-first")
def adapts_by_nature(step, hp):
    """Plain risk minimisation that counts on its test-time method."""
    risk = step.risks_E.mean()
    return risk, {"risk": risk}


def test_a_method_that_adapts_is_chosen_by_what_it_makes_of_the_validation_domains(go, mlflow_store):
    plain = go("erm")
    result = go("adapts-by-nature", "always_first", output="adapting")
    data, splits = manifest(result).dataset, manifest(result).splits
    shares = [float((data.targets_M[rows] == 0).float().mean()) for rows in splits.rows["val"].values()]
    adapted = curve(mlflow_store, result.path, "val/acc_domain_mean")
    assert list(adapted.values()) == pytest.approx([sum(shares) / len(shares)] * len(adapted))
    unadapted = curve(mlflow_store, result.path, "val_unadapted/acc_domain_mean")
    assert unadapted == curve(mlflow_store, plain.path, "val/acc_domain_mean")


def test_drm_logs_its_adaptivity_gap_for_every_target(go, mlflow_store):
    targets = {"protocol": {"targets": list(DOMAINS[1:])}}
    result = go("drm", **targets)
    run = build(manifest(result), Progress(**QUIET))
    predictor = run.learner.predictor(run.source, saved(result.path, "weights-last")["weights"])
    for name, rows in run.splits.rows["test"].items():
        targets_N = run.evaluator.dataset.targets_M[torch.from_numpy(rows)]
        best = max((run.evaluator.head_outputs(predictor, rows).argmax(-1) == targets_N).float().mean(1))
        gap = curve(mlflow_store, result.path, f"test/adaptivity_gap/{slug(name)}")[10]
        own = curve(mlflow_store, result.path, f"test/acc/{slug(name)}")[10]
        assert gap == pytest.approx(float(best) - own, abs=1e-6)
    keys = {key for key, _, _ in stored(mlflow_store, go("erm").path)["metrics"]}
    assert not any("adaptivity_gap" in key for key in keys)


# --- needs -----------------------------------------------------------------------------------------


@objective(needs=Needs(unlabeled=True, text=True))
def wants_more(step, hp):
    """Needs what no dataset has."""
    return step.risks_E.mean(), {}


@objective(needs=Needs(groups=True, tasks=("regression",)))
def wants_groups(step, hp):
    """Needs known groups and numbers to predict."""
    return step.risks_E.mean(), {}


@pytest.mark.parametrize(
    ("name", "sections", "sentence"),
    [
        (
            "vrex",
            {"protocol": {"targets": ["+90%", "-90%"]}},
            "vrex cannot run here: it needs at least 2 training domains, and this split leaves 1 (+80%)",
        ),
        (
            "vrex",
            {"train": {"sampler": "pooled"}},
            "vrex cannot run here: it needs rows of one domain each, and the sampler pooled mixes them "
            "(--set train.sampler=by-domain does not)",
        ),
        (
            "two-views",
            {},
            "two-views cannot run here: it needs the augmented views noisy, which colored-digits does not "
            "offer",
        ),
        (
            "wants-more",
            {},
            "wants-more cannot run here: it needs unlabeled data, which colored-digits under "
            "leave-one-domain-out does not provide and text embeddings of the classes, which the model mlp "
            "does not have",
        ),
        (
            "wants-groups",
            {"data": {"train_groups": ["secret"]}},
            "wants-groups cannot run here: it needs known groups, and secret is unknown throughout and a "
            "task of regression, and colored-digits is classification",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_sentence_before_anything_is_written(
    go, tmp_path, dataset, name, sections, sentence
):
    if name == "wants-groups":
        from dgharness.config import DataConfig

        known = prepare.load_dataset(DataConfig(), "", 0)
        dataset(
            manifest=known.manifest.assign(secret=known.manifest["color"].where(known.targets_M.numpy() > 9))
        )
    with pytest.raises(UsageError) as error:
        go(name, **sections)
    assert str(error.value) == sentence
    assert not (tmp_path / "runs").exists()
