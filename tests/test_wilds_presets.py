"""The published settings: every preset can be run, and says what the benchmark's paper or code says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dgharness import registry
from dgharness.config import compose
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.preset import preset_tree, presets
from dgharness.training.identity import deviations
from dgharness.training.prepare import prepare

sys.path.insert(0, str(Path(__file__).parent / "data"))  # the layouts are those of the datasets' tests

from layouts import layouts

DATASETS = ("wilds", "domainbed", "subpop")
TREES = {name: preset_tree(name) for name in presets()}
WHOLE = [name for name in TREES if name.startswith(DATASETS) and name.rpartition("/")[0] not in TREES]


# --- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_every_preset_composes_and_its_parts_know_their_settings(name: str) -> None:
    config = compose(preset=name)
    spec = registry.load("algorithms", config.algorithm)
    checked(spec.hparams, config.hp)
    dataset = registry.load("datasets", registry.split_argument("datasets", config.data.name)[0])
    checked(dataset.options, config.data.options, "data")
    model = registry.load("models", config.model.name)
    checked(model.options, config.model.options, "model")
    assert len(TREES[name]["about"]) > 40


@pytest.mark.parametrize("family", DATASETS)
def test_every_dataset_of_a_benchmark_has_its_preset(family: str) -> None:
    datasets = {entry.name for entry in registry.entries("datasets") if entry.name.startswith(f"{family}:")}
    assert datasets == {TREES[name]["data"]["name"] for name in WHOLE if name.startswith(family)}


@pytest.mark.parametrize("dataset", sorted(layouts().keys() & {TREES[n]["data"]["name"] for n in WHOLE}))
def test_every_preset_can_be_run_on_the_tiny_layout_of_its_dataset(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny model, and batches that fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = layouts()[dataset]
    for module in layout.needs:
        pytest.importorskip(module)
    layout.write(tmp_path)
    fitting = [f"execution.data_root={tmp_path}", "train.batch_size=1", "train.rows=2"]
    for name, tree in TREES.items():
        if tree.get("data", {}).get("name") == dataset and ("algorithm" in tree or "algorithms" not in tree):
            run = prepare(compose(preset=name, sets=[*layout.sets, *fitting]))
            assert run.config.algorithm == tree.get("algorithm", "erm")
            assert run.config.train.epochs == tree["train"].get("epochs")
            assert not any("data.name" in deviation for deviation in deviations(run))


# --- how they are named ----------------------------------------------------------------------------


def test_the_name_alone_chooses_dataset_and_algorithm() -> None:
    config = compose(preset="wilds/camelyon17/irmv1")
    assert (config.algorithm, config.data.name) == ("irmv1", "wilds:camelyon17")
    assert (config.protocol.name, config.model.name) == ("official", "densenet121")
    assert compose(preset="domainbed/PACS").data.name == "domainbed:PACS"


def test_without_an_algorithm_it_is_for_any() -> None:
    config = compose(preset="wilds/camelyon17", flags={"algorithm": "vrex"})
    assert (config.algorithm, config.hp, config.train.epochs) == ("vrex", {}, 5)
    assert compose(preset="wilds/camelyon17", flags={"algorithm": "coral"}).hp == {"weight": 0.1}


def test_an_algorithm_that_contradicts_the_name_is_refused() -> None:
    with pytest.raises(UsageError, match="the preset wilds/camelyon17/erm is for erm, and not for vrex"):
        compose(preset="wilds/camelyon17/erm", flags={"algorithm": "vrex"})
    assert compose(preset="wilds/camelyon17/irmv1", flags={"algorithm": "irm"}).algorithm == "irm"  # an alias


@pytest.mark.parametrize("name", ["wilds", "subpop", "wilds/camelyon17/nope", "domainbed/PACS/erm/erm"])
def test_what_is_no_preset_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no preset"):
        compose(preset=name)


def test_on_another_dataset_it_is_a_deviation_without_the_options_of_its_own(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("data: {name: colored-mnist, download: true}\ntrain: {batch_size: 8}\n")
    run = prepare(compose(preset=str(preset), sets=["data.name=colored-digits", "train.steps=5"]))
    assert run.config.data.options == {}
    assert "data.name colored-digits (preset: colored-mnist)" in deviations(run)


def test_another_model_keeps_no_option_of_the_presets() -> None:
    config = compose(preset="wilds/camelyon17/erm", sets=["model.name=linear"])
    assert config.model.options == {}
    assert compose(preset="wilds/camelyon17/erm", sets=["model.dropout=0.5"]).model.options == {
        "weights": "scratch",
        "dropout": 0.5,
    }


# --- what they say ---------------------------------------------------------------------------------

# Batch, groups of a batch, epochs, rate, decay; weights of coral and irmv1: examples/configs of the
# benchmark's code, with the epochs of camelyon17 and the batches and epochs of fmow from its paper.
WILDS: dict[str, tuple[Any, ...]] = {
    "camelyon17": (32, 2, 5, 1e-3, 1e-2, 0.1, 1),
    "iwildcam": (16, 2, 12, 3e-5, 0, 10, 1),
    "fmow": (64, 8, 50, 1e-4, 0, 0.1, 1),
    "poverty": (64, 8, 200, 1e-3, 0, 0.1, 1),
    "civilcomments": (16, 1, 5, 1e-5, 1e-2, 10, 1),
    "amazon": (8, 2, 3, 1e-5, 1e-2, 1, 1),
    "rxrx1": (72, 9, 90, 1e-3, 1e-5, 0.1, 1),
    "ogb-molpcba": (32, 4, 100, 1e-3, 0, 0.1, 1),
    "py150": (6, 2, 3, 8e-5, 0, None, 1),
    "encode": (128, 4, 12, 1e-3, 1e-4, 0.1, 100),
}


@pytest.mark.parametrize("dataset", WILDS)
def test_wilds_settings_are_the_published_ones(dataset: str) -> None:
    batch, groups, epochs, rate, decay, coral, irm = WILDS[dataset]
    plain = compose(preset=f"wilds/{dataset}/erm")
    train = plain.train
    assert train.rows * train.batch_size == batch and (train.rows, train.epochs) == (groups, epochs)
    assert (plain.optimizer.lr, plain.optimizer.weight_decay, train.sampler) == (rate, decay, "pooled")
    weights = {"irmv1": irm, **({"coral": coral} if coral else {})}
    penalised = {name: compose(preset=f"wilds/{dataset}/{name}") for name in weights}
    assert {name: config.hp["weight"] for name, config in penalised.items()} == weights
    assert {config.train.sampler for config in penalised.values()} == {"wilds-group"}
    assert penalised["irmv1"].hp["anneal_steps"] == 500
    dro = compose(preset=f"wilds/{dataset}/group-dro")
    assert (dro.hp, dro.train.sampler) == ({"eta": 0.01}, "wilds-uniform")


@pytest.mark.parametrize(
    ("dataset", "weight", "featurizer", "classifier"),
    [
        ("camelyon17", 0.1, 1e-4, 1e-3),
        ("iwildcam", 0.1, 3e-6, 3e-5),
        ("fmow", 1, 1e-5, 1e-4),
        ("poverty", 0.1, 1e-4, 1e-3),
        ("amazon", 1, 1e-6, 1e-5),
        ("civilcomments", 1, 1e-6, 1e-5),
        ("ogb-molpcba", 0.1, 1e-3, 1e-2),
    ],
)
def test_dann_has_its_three_rates(dataset: str, weight: float, featurizer: float, classifier: float) -> None:
    config = compose(preset=f"wilds/{dataset}/dann-grl")
    assert config.hp["weight"] == weight and config.optimizer.lr == featurizer
    assert config.optimizer.lr * config.optimizer.head_lr_multiplier == pytest.approx(classifier)
    assert config.optimizer.lr * config.hp["lr_multiplier"] == pytest.approx(classifier)


@pytest.mark.parametrize("name", [name for name in WHOLE if name.startswith("wilds/")])
def test_wilds_chooses_checkpoints_by_the_official_metric(name: str) -> None:
    """But for yelp, whose official metric is that of its worst year: it keeps the mean."""
    shown = "training-domain-validation" if name == "wilds/yelp" else "official-validation"
    selection = compose(preset=name).selection
    assert selection.shown == shown in selection.rules


def test_rules_of_ones_own_need_no_choice_of_what_is_shown() -> None:
    selection = compose(preset="wilds/fmow", sets=["selection.rules=last"]).selection
    assert (selection.rules, selection.shown) == (("last",), "training-domain-validation")
    both = compose(preset="wilds/fmow", sets=["selection.rules=[last,official-validation]"]).selection
    assert both.shown == "official-validation"


def test_schedules_are_the_published_ones() -> None:
    fmow, rxrx1, amazon = (
        compose(preset=f"wilds/{name}/erm").optimizer for name in ("fmow", "rxrx1", "amazon")
    )
    assert (fmow.schedule, fmow.decay_factor, fmow.decay_epochs) == ("step", 0.96, 1)
    assert (rxrx1.schedule, rxrx1.warmup_steps) == ("cosine", 5415)
    assert (amazon.name, amazon.schedule, amazon.clip_norm) == ("adamw", "linear", 1.0)


@pytest.mark.parametrize(
    ("name", "every"),
    [("PACS", 300), ("DomainNet", 1000), ("WILDSCamelyon", 100), ("SpawriousO2O_hard", 100)],
)
def test_domainbed_settings_are_the_published_ones(name: str, every: int) -> None:
    config = compose(preset=f"domainbed/{name}")
    train, optimizer = config.train, config.optimizer
    assert (train.steps, train.batch_size, train.sampler, train.eval_every) == (5001, 32, "by-domain", every)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 5e-5, 0)
    assert config.model.options == {"weights": "in1k-v1", "batchnorm": "frozen", "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("waterbirds", ("resnet50", "sgd", 1e-3, 1e-4, 108, 5001, 300)),
        ("living17", ("resnet50", "sgd", 1e-3, 1e-4, 108, 60001, 2000)),
        ("multinli", ("bert", "adamw", 1e-5, 1e-4, 32, 30001, 1000)),
        ("mimic-notes", ("mlp", "sgd", 1e-3, 1e-4, 256, 10001, 200)),
    ],
)
def test_subpopbench_settings_are_the_published_ones(name: str, expected: tuple[Any, ...]) -> None:
    config = compose(preset=f"subpop/{name}/erm")
    train, optimizer = config.train, config.optimizer
    found = (config.model.name, optimizer.name, optimizer.lr, optimizer.weight_decay)
    assert (*found, train.rows * train.batch_size, train.steps, train.eval_every) == expected
