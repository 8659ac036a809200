"""The configuration: layers, what a mistake in it says, how it is resolved, and what its hash means."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import pytest
import yaml

from dgharness.config import RunConfig, compose, merge
from dgharness.data.dataset import Defaults
from dgharness.errors import UsageError
from dgharness.hparams import Hparams, LogUniform, Neutral, Uniform, checked, draw
from dgharness.resolution import config_hash, flat
from dgharness.training.prepare import Prepared, prepare


def resolved(*sets: str, **flags) -> Prepared:
    return prepare(compose(sets=sets, flags=flags))


@pytest.fixture
def preset(tmp_path):
    """A preset that fixes hyperparameters with and without a search space."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "about": "for the tests",
                "optimizer": {"lr": 0.5, "weight_decay": 0.25},
                "train": {"steps": 77, "batch_size": 33},
                "algorithms": {"irmv1": {"weight": 7.0, "l2": 0.125}},
            }
        )
    )
    return str(path)


# --- layers ----------------------------------------------------------------------------------------


def test_later_layers_win_key_by_key(tmp_path, preset):
    file = tmp_path / "config.yaml"
    file.write_text("train: {steps: 10, log_every: 7}\noptimizer: {momentum: 0.5}\n")
    config = compose(preset=preset, file=file, sets=["train.log_every=8"], flags={"trial_seed": 3})
    assert config.optimizer.lr == 0.5  # preset
    assert (config.train.steps, config.optimizer.momentum) == (10, 0.5)  # file over preset
    assert config.train.log_every == 8  # --set over file
    assert config.trial_seed == 3  # flag
    assert config.train.precision == "float32"  # default
    over = compose(file=file, sets=["trial_seed=1"], flags={"trial_seed": 2})
    assert over.trial_seed == 2


def test_an_alias_finds_the_presets_hyperparameters(preset):
    config = compose(preset=preset, flags={"algorithm": "irm"})
    assert config.hp == {"weight": 7.0, "l2": 0.125}
    assert compose(preset=preset, flags={"algorithm": "vrex"}).hp == {}


def test_a_preset_may_be_named_in_the_file(tmp_path, preset):
    file = tmp_path / "config.yaml"
    file.write_text(f"preset: {preset}\n")
    assert compose(file=file).train.steps == 77


def test_merging_leaves_the_layers_as_they_were():
    below, above = {"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}
    assert merge(merge({}, below), above) == {"a": {"b": {"c": 1, "d": 2}}}
    assert below == {"a": {"b": {"c": 1}}} and above == {"a": {"b": {"d": 2}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("0.001", 1e-3), ("1", 1.0)],
)
def test_numbers_are_read_as_everyone_writes_them(text, value):
    assert compose(sets=[f"optimizer.lr={text}"]).optimizer.lr == value


@pytest.mark.parametrize(
    ("text", "targets"),
    [("[15,30]", ("15", "30")), ("15", ("15",)), ("-90%", ("-90%",)), ("[+90%, -90%]", ("+90%", "-90%"))],
)
def test_domain_names_may_be_numbers_and_one_needs_no_brackets(text, targets):
    assert compose(sets=[f"protocol.targets={text}"]).protocol.targets == targets


def test_a_section_that_is_commented_out_changes_nothing(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("hp:\n  # weight: 3\ntrain:\n  # steps: 3\n")
    assert compose(file=file) == RunConfig()


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("trian.steps=5", "trian is not a setting here; did you mean 'train'?"),
        ("train.stps=5", "train.stps is not a setting here; did you mean 'steps'?"),
        ("optimizer.lrr=5", "optimizer.lrr is not a setting here; did you mean 'lr'?"),
        ("zzz=", "zzz is not a setting here; known: algorithm"),
        ("train=5", "train=5 is not valid: it is a table of settings, as in train.NAME=VALUE"),
        ("train", "--set train: expected KEY=VALUE, as in --set train.steps=1000"),
        ("=5", "--set =5: expected KEY=VALUE"),
        ("train..steps=5", "--set train..steps=5: expected KEY=VALUE"),
        ("train.steps=0", "train.steps=0 is not valid: input should be greater than 0"),
        ("train.steps=-5", "train.steps=-5 is not valid: input should be greater than 0"),
        ("train.steps=many", "train.steps='many' is not valid: input should be a valid integer"),
        ("train.eval_every=0", "train.eval_every=0 is not valid: input should be greater than 0"),
        ("train.log_every=0", "train.log_every=0 is not valid: input should be greater than 0"),
        ("train.batch_size=0", "train.batch_size=0 is not valid: input should be greater than 0, or"),
        ("train.batch_size=some", "train.batch_size='some' is not valid: input should be a valid integer"),
        ("train.sampler=by-domian", "train.sampler='by-domian' is not valid: input should be"),
        ("optimizer.lr=0", "optimizer.lr=0 is not valid: input should be greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan is not valid: input should be a finite number"),
        ("optimizer.lr=inf", "optimizer.lr=inf is not valid: input should be a finite number"),
        ("trial_seed=-1", "trial_seed=-1 is not valid: input should be greater than or equal to 0"),
        ("hparams_seed=-1", "hparams_seed=-1 is not valid: input should be greater than or equal to 0"),
        ("protocol.holdout=1", "protocol.holdout=1 is not valid: input should be less than 1"),
        ("execution.threads=-1", "execution.threads=-1 is not valid: input should be greater than or equal"),
        ("selection.shown=lst", "selection.shown=lst is not among selection.rules; did you mean 'last'?"),
        ("selection.rules=[]", "selection.rules is empty; name at least one rule"),
        ("averaging.name=swa", "averaging.name='swa' is not valid: input should be 'none' or 'sma'"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(assignment, said):
    with pytest.raises(UsageError) as caught:
        compose(sets=[assignment])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"train: {steps: 5\n", "is not valid YAML in line 2, column 1: expected ',' or '}'"),
        (b"- a\n", "must hold a table of settings, not a list"),
        (b"\x00\xff\xfe", "is not a YAML file: it holds bytes that are not text"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, content, said):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.yaml") as caught:
        compose(file=file)
    assert said in str(caught.value)


def test_files_and_presets_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"there is no configuration file .*nope\.yaml"):
        compose(file=tmp_path / "nope.yaml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        compose(file=tmp_path)
    with pytest.raises(UsageError, match="there is no preset 'nope'; known: "):
        compose(preset="nope")


def test_a_preset_of_the_wrong_shape_is_named(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text("algorithms: [irmv1]\n")
    with pytest.raises(UsageError, match=r"algorithms of the preset .*odd\.yaml must be a table of settings"):
        compose(preset=str(file))


def test_a_mistake_beside_a_preset_is_still_a_sentence(preset):
    with pytest.raises(UsageError, match="hparams_seed='abc' is not valid"):
        compose(preset=preset, sets=["hparams_seed=abc"])


# --- draws -----------------------------------------------------------------------------------------


def test_seed_zero_is_the_defaults_and_others_are_draws():
    default, first, again = (
        resolved(algorithm="irmv1", **({"hparams_seed": seed} if seed else {})).config for seed in (0, 1, 1)
    )
    assert (default.hp["weight"], default.optimizer.lr, default.train.batch_size) == (100.0, 1e-3, 64)
    assert first == again
    assert first.hp["weight"] != default.hp["weight"] and first.optimizer.lr != default.optimizer.lr
    assert resolved(algorithm="irmv1", hparams_seed=2).config.hp["weight"] != first.hp["weight"]


def test_what_is_given_is_not_drawn():
    config = resolved("hp.weight=3", "optimizer.lr=0.25", algorithm="irmv1", hparams_seed=1).config
    free = resolved(algorithm="irmv1", hparams_seed=1).config
    assert (config.hp["weight"], config.optimizer.lr) == (3.0, 0.25)
    assert config.hp["anneal_steps"] == free.hp["anneal_steps"]  # the others are drawn as before
    assert config.train.batch_size == free.train.batch_size


def test_a_draw_replaces_what_a_preset_fixes_where_there_is_a_space(preset):
    config = prepare(compose(preset=preset, flags={"algorithm": "irmv1", "hparams_seed": 1})).config
    free = resolved(algorithm="irmv1", hparams_seed=1).config
    assert config.hp["weight"] == free.hp["weight"]
    assert (config.optimizer.lr, config.train.batch_size) == (free.optimizer.lr, free.train.batch_size)
    # The small profile has no space for the weight decay, and l2 has none either.
    assert (config.hp["l2"], config.optimizer.weight_decay, config.train.steps) == (0.125, 0.25, 77)


def test_full_batches_of_a_preset_are_not_drawn(tmp_path):
    file = tmp_path / "full.yaml"
    file.write_text("train: {batch_size: all}\n")
    assert prepare(compose(preset=str(file), sets=["hparams_seed=1"])).config.train.batch_size == "all"


def test_a_further_field_shifts_no_other_draw():
    class Before(Hparams):
        weight: Annotated[float, LogUniform(0.1, 10)] = 1.0

    class After(Hparams):
        decay: Annotated[float, Uniform(0, 1)] = 0.5
        weight: Annotated[float, LogUniform(0.1, 10)] = 1.0

    assert draw(Before, 3, 4).weight == draw(After, 3, 4).weight


# --- resolving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hparams_seed", [0, 1])
@pytest.mark.parametrize("algorithm", ["erm", "irmv1", "drm"])
def test_resolving_again_changes_nothing(algorithm, hparams_seed):
    once = resolved("averaging.name=sma", "tta.name=t3a", algorithm=algorithm, hparams_seed=hparams_seed)
    twice = prepare(once.config)
    assert twice.config == once.config
    assert twice.config_hash == once.config_hash


def test_a_resolved_configuration_survives_its_file():
    once = resolved("data.color_noise=[0.1,0.3,0.8]", algorithm="irmv1", hparams_seed=2)
    text = yaml.safe_dump(once.config.model_dump(mode="json"))
    again = prepare(checked(RunConfig, yaml.safe_load(text), where=""))
    assert (again.config, again.config_hash) == (once.config, once.config_hash)


# --- the hash --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "execution.threads=3",
        "execution.output=elsewhere",
        "execution.tracking_uri=sqlite:///other.db",
        "execution.experiment=mine",
        "execution.data_root=/data",
        "selection.shown=last",
    ],
)
def test_where_a_run_happens_is_not_in_its_hash(setting):
    assert resolved(setting).config_hash == resolved().config_hash


def test_a_presets_name_is_not_in_the_hash(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 12}\n")
    assert prepare(compose(preset=str(file))).config_hash == resolved("train.steps=12").config_hash


def test_the_place_of_plugins_and_of_files_is_not_in_the_hash():
    prepared = resolved()
    elsewhere = prepared.config.model_copy(update={"plugins": ("mine.py:method",)})
    moved = elsewhere.model_copy(
        update={"model": elsewhere.model.model_copy(update={"weights_file": "/there.pt"})}
    )
    assert config_hash(moved, {}, prepared.dataset) == config_hash(prepared.config, {}, prepared.dataset)


def test_the_order_of_keys_and_of_targets_is_not_in_the_hash():
    one = resolved("hp.weight=2", "hp.anneal_steps=3", algorithm="irmv1").config_hash
    other = resolved("hp.anneal_steps=3", "hp.weight=2", algorithm="irmv1").config_hash
    assert one == other
    data = {"name": "rotated-digits"}
    targets = [{"targets": ["15", "30"]}, {"targets": ["30", "15"]}]
    first, second = (resolved(data=data, protocol=named) for named in targets)
    assert first.config_hash == second.config_hash and first.config.protocol.targets == ("15", "30")


def test_writing_out_a_default_leaves_the_hash_as_it_is():
    spelled = resolved("hp.weight=100", "optimizer.lr=1e-3", "train.sampler=by-domain", algorithm="irmv1")
    assert spelled.config_hash == resolved(algorithm="irm").config_hash


@pytest.mark.parametrize(
    "setting",
    [
        "algorithm=vrex",
        "hp.weight=2",
        "hparams_seed=1",
        "trial_seed=1",
        "protocol.targets=+90%",
        "protocol.holdout=0.3",
        "data.label_noise=0.1",
        "data.groups=y",
        "data.train_groups=color",
        "model.width=7",
        "model.name=linear",
        "optimizer.lr=0.1",
        "optimizer.name=sgd",
        "averaging.name=sma",
        "tta.name=t3a",
        "train.steps=3",
        "train.batch_size=3",
        "train.eval_every=3",
        "train.sampler=pooled",
        "train.precision=bf16",
        "selection.rules=last",
        "selection.min_group_size=3",
    ],
)
def test_whatever_decides_the_result_is_in_the_hash(setting):
    name = "erm" if setting == "train.sampler=pooled" else "irmv1"
    sets = [f"algorithm={name}", setting]
    assert prepare(compose(sets=sets)).config_hash != resolved(algorithm=name).config_hash


def test_data_versions_and_weights_are_in_the_hash():
    prepared = resolved()
    config, dataset = prepared.config, prepared.dataset
    plain = config_hash(config, {"algorithm": 1}, dataset)
    manifest = dataset.manifest.assign(y=dataset.manifest["y"].iloc[::-1].to_numpy())
    relabeled = dataclasses.replace(dataset, manifest=manifest)
    assert config_hash(config, {"algorithm": 2}, dataset) != plain
    assert config_hash(config, {"algorithm": 1}, dataset, "0676") != plain
    assert config_hash(config, {"algorithm": 1}, relabeled) != plain


def test_a_later_field_at_its_neutral_value_leaves_old_hashes_alone():
    class Later(RunConfig):
        smoothing: Annotated[float, Neutral(0.0)] = 0.0

    prepared = resolved()
    values = {name: getattr(prepared.config, name) for name in RunConfig.model_fields}
    old = config_hash(prepared.config, {}, prepared.dataset)
    assert config_hash(Later(**values), {}, prepared.dataset) == old
    assert config_hash(Later(**values, smoothing=0.1), {}, prepared.dataset) != old


def test_a_later_hyperparameter_at_its_neutral_value_leaves_old_hashes_alone():
    plain, set_to_it, changed = (
        resolved(algorithm="irmv1", hp=hp).config_hash for hp in ({}, {"affine": False}, {"affine": True})
    )
    assert plain == set_to_it != changed
    prepared = resolved(algorithm="irmv1")
    before = prepared.config.model_copy(
        update={"hp": {key: value for key, value in prepared.config.hp.items() if key != "affine"}}
    )
    versions = {"algorithm": 1, "model": 1}
    assert config_hash(before, versions, prepared.dataset) == config_hash(
        prepared.config, versions, prepared.dataset, options=prepared.options
    )


def test_tracked_settings_are_flat_text_without_places():
    pairs = flat(resolved(algorithm="irmv1").config)
    assert pairs["hp.weight"] == "100.0" and pairs["protocol.targets"] == "-90%"
    assert not any(key.startswith("execution") for key in pairs)


def test_defaults_of_the_dataset_fill_what_is_open():
    config, defaults = resolved().config, Defaults()
    assert config.model.name == "mlp"
    assert (config.train.steps, config.train.eval_every) == (defaults.steps, defaults.eval_every)
    assert config.protocol.targets == ("-90%",)
