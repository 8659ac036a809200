"""SubpopBench's datasets: its tables, what training may know of attributes, and its own evaluation."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from layouts.subpop import IDENTITIES, LAYOUTS
from PIL import Image
from sklearn import metrics

from dgharness import registry
from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.groups import grouping
from dgharness.data.protocols import subpopulation
from dgharness.data.shift import shift_measures
from dgharness.data.subpop.cmnist import CMnistOptions, drawn
from dgharness.data.subpop.official import NAMES, evaluate
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.metrics.scores import score
from dgharness.training.prepare import Prepared, prepare

SMALL = {"data.size": 8, "model.name": "mlp", "model.width": 8, "train.steps": 5}


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """Writes the layout of a dataset if it is not there, and loads it."""

    def run(name: str, **options: Any) -> Dataset:
        if not any(path.name != "cache" for path in tmp_path.iterdir()):
            LAYOUTS[f"subpop:{name}"].write(tmp_path)
        spec = registry.load("datasets", f"subpop:{name}")
        small = {"size": 8} if "size" in spec.options.model_fields else {}
        if "tokenizer" in spec.options.model_fields:
            small = {"tokenizer": "hashing"}
        return spec.load(None, tmp_path, 0, checked(spec.options, {**small, **options}))

    return run


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Prepared]:
    def run(name: str, **sets: Any) -> Prepared:
        if not any(path.name != "cache" for path in tmp_path.iterdir()):
            LAYOUTS[f"subpop:{name}"].write(tmp_path)
        given = {"data.name": f"subpop:{name}", "execution.data_root": tmp_path, **SMALL, **sets}
        return prepare(compose(sets=[f"{key}={value}" for key, value in given.items()]))

    return run


# --- what training may know ------------------------------------------------------------------------


def test_a_known_attribute_is_the_domain_and_half_of_the_groups(prepared):
    run = prepared("waterbirds")
    assert run.dataset.domains == ("land", "water")
    assert run.train_grouping.names == (
        "y=landbird,place=land",
        "y=landbird,place=water",
        "y=waterbird,place=land",
        "y=waterbird,place=water",
    )
    assert set(run.dataset.attributes_M) == {"place"}
    assert run.config.protocol.name == "subpopulation" and run.config.train.sampler == "pooled"


def test_of_an_unknown_attribute_training_sees_nothing_and_the_metrics_everything(prepared):
    run = prepared("waterbirds", **{"data.attributes": "unknown"})
    assert run.dataset.domains == run.splits.train_domains == ("all",)
    assert run.train_grouping.names == ("y=landbird", "y=waterbird")
    assert torch.equal(run.train_grouping.group_M, run.dataset.targets_M)
    assert run.dataset.attributes_M == {}
    assert run.config.data.groups == ("y", "place")


def test_groups_by_a_hidden_attribute_are_refused(prepared):
    with pytest.raises(UsageError, match=r"train_groups names 'place', which this configuration .* hides"):
        prepared("waterbirds", **{"data.attributes": "unknown", "data.train_groups": "[y, place]"})


def test_known_and_unknown_are_different_runs_on_the_same_examples(prepared):
    known, unknown = prepared("waterbirds"), prepared("waterbirds", **{"data.attributes": "unknown"})
    assert known.config_hash != unknown.config_hash
    for split in ("train", "val", "test"):
        rows = [np.sort(np.concatenate(list(run.splits.rows[split].values()))) for run in (known, unknown)]
        assert np.array_equal(*rows)


def test_groups_that_training_lacks_have_no_number_in_it(prepared):
    run = prepared("nico++")
    assert len(run.train_grouping) == 60 * 6 - 7
    assert len(grouping(run.dataset.manifest, run.dataset.groups)) == 360
    tested = np.concatenate(list(run.splits.rows["test"].values()))
    assert (run.train_grouping.group_M[tested] < 0).sum() == 7


# --- tables ----------------------------------------------------------------------------------------


def test_a_row_of_the_table_is_an_image_with_its_label_place_and_split(load, tmp_path):
    dataset = load("waterbirds")
    table = pd.read_csv(tmp_path / "waterbirds" / "metadata_waterbirds.csv")
    manifest = dataset.manifest
    assert manifest["y"].cat.codes.tolist() == table["y"].tolist()
    assert manifest["place"].cat.codes.tolist() == table["a"].tolist()
    assert (
        manifest["split"].astype(str).map({"train": 0, "val": 1, "test": 2}).tolist()
        == table["split"].tolist()
    )
    folder = tmp_path / "waterbirds" / "waterbird_complete95_forest2water2"
    pixels = dataset.reader(torch.arange(len(table)))
    for image, name in zip(pixels, table["filename"], strict=True):
        colour = torch.tensor(Image.open(folder / name).getpixel((3, 3)), dtype=torch.uint8)
        assert torch.equal(image, colour[:, None, None].expand_as(image))
    assert dataset.augment is None


def test_whole_paths_count_from_the_datasets_own_folder(load, tmp_path):
    dataset = load("metashift")
    table = pd.read_csv(tmp_path / "metashift" / "metadata_metashift.csv")
    assert table["filename"].str.startswith("/another/machine/data/metashift/").all()
    assert (
        dataset.manifest["path"].iloc[0]
        == "metashift/MetaShift-Cat-Dog-indoor-outdoor/dog/dog(outdoor)/0.jpg"
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("y", 2, r"row 3 of .*metadata_waterbirds.csv has y=.*2.*, which is not one of the numbers 0 to 1"),
        ("y", None, r"row 3 .* has y=.*nan.*, which is not one of the numbers 0 to 1"),
        ("y", "bird", r"row 3 .* has y='bird', which is not one of the numbers"),
        ("a", 0.5, r"row 3 .* has a=.*0.5.*, which is not one of the numbers 0 to 1"),
        ("split", 7, r"row 3 .* has split='7', which is none of 0, 1, 2"),
        ("filename", None, r"row 3 .* has no filename"),
        ("filename", "../../x.jpg", r"row 3 names the image '../../x.jpg', which leaves the folder"),
        ("filename", "gone.jpg", r"row 3 names the image 'gone.jpg', which is not in"),
    ],
)
def test_what_a_table_cannot_mean_is_told_with_its_row(column, value, message, load, tmp_path):
    load("waterbirds")
    path = tmp_path / "waterbirds" / "metadata_waterbirds.csv"
    table = pd.read_csv(path).astype({column: object})
    table.loc[3, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(UsageError, match=message):
        load("waterbirds")


def test_a_missing_table_or_column_is_named(load, tmp_path):
    load("waterbirds")
    with pytest.raises(
        UsageError, match=r"subpop:celeba needs .*celeba/metadata_celeba.csv, which SubpopBench"
    ):
        load("celeba")
    path = tmp_path / "waterbirds" / "metadata_waterbirds.csv"
    pd.read_csv(path).drop(columns="a").to_csv(path, index=False)
    with pytest.raises(UsageError, match=r"has no column 'a'; it needs split, filename, y, a"):
        load("waterbirds")
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"metadata_waterbirds.csv cannot be read as a table"):
        load("waterbirds")


def test_a_path_elsewhere_is_told_with_its_row(load, tmp_path):
    load("metashift")
    path = tmp_path / "metashift" / "metadata_metashift.csv"
    table = pd.read_csv(path)
    table.loc[5, "filename"] = "/data/pets/1.jpg"
    table.to_csv(path, index=False)
    with pytest.raises(UsageError, match=r"row 5 .* '/data/pets/1.jpg', which is not in a folder metashift"):
        load("metashift")


@pytest.mark.parametrize(
    ("name", "total"), [("waterbirds", 11_788), ("celeba", 202_599), ("multinli", 412_349)]
)
def test_the_counts_of_the_complete_dataset_add_up_to_its_published_size(name, total):
    assert sum(registry.load("datasets", f"subpop:{name}").counts.values()) == total


# --- attributes that appear at test alone ----------------------------------------------------------


def test_breeds_are_tested_on_subclasses_that_training_never_saw(load):
    dataset = load("living17")
    found = shift_measures(dataset)["attributes"]["subclass"]
    assert found["attribute_generalization"] == 1 and len(found["unseen"]) == 34
    splits = subpopulation(dataset, ["all"], 0)
    assert set(splits.rows) == {"train", "val", "test", "id_test"}
    assert dataset.groups == dataset.train_groups == ("y",) and not dataset.attributes_M
    own = shift_measures(load("living17", test_split="test"))["attributes"]["subclass"]
    assert own["attribute_generalization"] == 0 and own["unseen"] == []


def test_imagenet_is_tested_on_another_background(load):
    manifest = load("imagenet-bg").manifest
    assert set(manifest[manifest["split"] == "test"]["background"]) == {"mixed_rand"}
    assert set(manifest[manifest["split"] == "id_test"]["background"]) == {"original"}
    assert set(manifest[manifest["split"] == "train"]["background"]) == {"original"}
    assert len(manifest) == 4 * 18
    cut = load("imagenet-bg", test_split="no_fg").manifest
    assert set(cut[cut["split"] == "test"]["background"]) == {"no_fg"}
    plain = load("imagenet-bg", test_split="test").manifest
    assert set(plain["split"]) == {"train", "val", "test"} and set(plain["background"]) == {"original"}


def test_the_opposite_mixture_of_sites_is_left_out_unless_asked_for(load):
    usual, deployed = load("cxr-multisite"), load("cxr-multisite", test_split="deploy")
    assert set(usual.manifest["split"]) == {"train", "val", "test"} and len(usual.manifest) == 36
    assert set(deployed.manifest["split"]) == {"train", "val", "test", "id_test"}
    assert usual.domains == ("MIMIC-CXR", "CheXpert")


# --- texts and notes -------------------------------------------------------------------------------


def mentioned(tmp_path: Path) -> pd.DataFrame:
    table = pd.read_csv(tmp_path / "civilcomments" / "all_data_with_identities.csv", keep_default_na=False)
    table[list(IDENTITIES)] = table[list(IDENTITIES)].astype(float) >= 0.5
    return table


def test_the_fine_comments_stand_once_for_each_identity_and_those_of_none_are_left_out(load, tmp_path):
    dataset, table = load("civilcomments-fine"), mentioned(tmp_path)
    manifest = dataset.manifest
    assert len(manifest) == table[list(IDENTITIES)].to_numpy().sum()
    for identity in IDENTITIES:
        of_it = (manifest["identity"] == identity).to_numpy()
        assert dataset.reader.text_M[of_it].tolist() == table["comment_text"][table[identity]].tolist()
        assert manifest["y"].cat.codes[of_it].tolist() == (table["toxicity"][table[identity]] >= 0.5).tolist()
    assert dataset.groups == dataset.train_groups == ("y", "identity")


def test_in_the_coarse_comments_training_knows_whether_anyone_is_mentioned(load, tmp_path):
    dataset, table = load("civilcomments"), mentioned(tmp_path)
    manifest, trained = dataset.manifest, (dataset.manifest["split"] == "train").to_numpy()
    anyone = table[list(IDENTITIES)].any(axis=1)[table["split"] == "train"]
    assert (manifest["any_identity"][trained] == "yes").tolist() == anyone.tolist()
    assert manifest["identity"][trained].isna().all() and manifest["identity"][~trained].notna().all()
    assert (manifest["any_identity"][~trained] == "yes").all()
    assert dataset.train_groups == ("y", "any_identity") and dataset.groups == ("y", "identity")
    assert set(dataset.attributes_M) == {"any_identity"}
    assert load("civilcomments", attributes="unknown").attributes_M == {}


def test_a_comment_that_says_null_is_a_comment(load):
    dataset = load("civilcomments")
    assert "null" in dataset.reader.text_M.tolist()


def test_a_comment_without_a_label_is_told_with_its_row(load, tmp_path):
    load("civilcomments")
    path = tmp_path / "civilcomments" / "all_data_with_identities.csv"
    table = pd.read_csv(path, index_col=0)
    table.loc[4, "toxicity"] = None
    table.to_csv(path)
    with pytest.raises(UsageError, match=r"row 4 of .* has no toxicity"):
        load("civilcomments-fine")


def test_a_pair_of_sentences_is_joined_by_berts_separator(load):
    dataset = load("multinli")
    negated = (dataset.manifest["negation"] == "yes").to_numpy()
    assert dataset.reader.text_M[0] == 'He said "0 [SEP] null'
    assert all(("Nobody" in text) == no for text, no in zip(dataset.reader.text_M, negated, strict=True))


def test_sentences_that_do_not_belong_to_the_table_are_noticed(load, tmp_path):
    load("multinli")
    part = tmp_path / "multinli" / "glue_data" / "MNLI" / "train.tsv"
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")
    with pytest.raises(
        UsageError, match=r"row 5 of .* says contradiction, and its sentences .* say entailment"
    ):
        load("multinli")


def test_the_features_of_a_patient_are_those_of_the_row_that_the_table_names(load, tmp_path):
    dataset = load("mimic-notes")
    features = np.load(tmp_path / "mimic_notes" / "features.npy")
    x = dataset.prepare(dataset.reader(torch.tensor([0, 5])))
    assert x.dtype == torch.float32 and dataset.input_shape == (50,)
    assert np.allclose(x.numpy(), features[::-1][[0, 5]])
    assert list(dataset.manifest["sex"].cat.categories) == ["female", "male"]


def test_features_that_would_have_to_be_unpickled_are_refused(load, tmp_path):
    load("mimic-notes")
    file = tmp_path / "mimic_notes" / "features.npy"
    np.save(file, np.array({"sparse": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"features.npy is no plain array .* features.toarray"):
        load("mimic-notes")
    np.save(file, np.zeros((20, 50)))
    with pytest.raises(UsageError, match=r"row 0 of .* has filename='71', .* from 0 to 19"):
        load("mimic-notes")


# --- coloured MNIST --------------------------------------------------------------------------------


def test_labels_and_colours_are_wrong_as_often_as_the_dials_say():
    digits = np.arange(30_000) % 10
    kept, y, color = drawn(digits, CMnistOptions())
    assert np.array_equal(kept, np.arange(30_000))
    assert np.mean(y != (digits >= 5)) == pytest.approx(0.25, abs=0.01)
    assert np.mean(color != y) == pytest.approx(0.2, abs=0.01)
    stream = np.random.default_rng(666)  # SubpopBench's, drawn label by label and then colour by colour
    assert np.array_equal(y, (digits >= 5) ^ (stream.random(30_000) < 0.25))
    assert np.array_equal(color, y ^ (stream.random(30_000) < 0.2))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_what_there_is_too_much_of_is_left_out(share):
    digits = np.random.default_rng(0).integers(0, 10, 10_000)
    kept, _, color = drawn(digits, CMnistOptions(attr_prob=share, spur_prob=0.5))
    assert color.mean() == pytest.approx(share, abs=1e-3)
    kept, y, _ = drawn(digits, CMnistOptions(label_prob=share))
    assert y.mean() == pytest.approx(share, abs=1e-3)
    assert len(np.unique(kept)) == len(kept) < 10_000


def test_a_share_that_leaving_out_cannot_reach_is_refused():
    digits = np.array([0] * 600 + [9] * 400)
    exact = {"flip_prob": 0.0, "spur_prob": 0.0}
    with pytest.raises(UsageError, match=r"data.attr_prob=0.45 cannot be reached .* as 0.400 of them are 1"):
        drawn(digits, CMnistOptions(attr_prob=0.45, **exact))
    _, y, _ = drawn(digits, CMnistOptions(label_prob=0.25, **exact))
    assert (y.sum(), len(y)) == (200, 800)


def test_the_digit_is_lit_in_its_colour_at_the_size_of_the_model(load):
    dataset = load("cmnist", size=32)
    assert len(dataset.manifest) == 60_000 and dataset.domains == ("red", "green")
    assert dataset.manifest["split"].value_counts()[["train", "val", "test"]].tolist() == [
        30_000,
        10_000,
        20_000,
    ]
    x = torch.full((1, 3, 28, 28), 255, dtype=torch.uint8) * torch.tensor([0, 1, 0])[:, None, None]
    prepared = dataset.prepare(x)
    assert prepared.shape == (1, 3, 32, 32)
    expected = torch.tensor([-0.1307, 1 - 0.1307, 0.0]) / 0.3081
    torch.testing.assert_close(prepared[0, :, 5, 5], expected)


# --- its own evaluation ----------------------------------------------------------------------------


def ece_of(p: np.ndarray, outcome: np.ndarray) -> float:
    edges = np.linspace(0, 1, 11)
    gap = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & ((p < high) | ((high == 1) & (p == 1)))
        if inside.any():
            gap += inside.mean() * abs(p[inside].mean() - outcome[inside].mean())
    return gap


@pytest.mark.parametrize("classes", [2, 3, 17])
def test_the_official_numbers_are_those_of_scikit_learn(classes):
    stream = np.random.default_rng(classes)
    y, group = stream.integers(0, classes, 400), stream.choice([0, 2, 3, 7], 400)
    logits = torch.from_numpy(stream.normal(size=(400, classes)) + 2 * np.eye(classes)[y]).float()
    p = logits.double().softmax(-1).numpy()
    predicted = (p[:, 1] >= 0.5).astype(int) if classes == 2 else p.argmax(1)
    report = metrics.classification_report(y, predicted, output_dict=True, zero_division=0.0)
    by_class = [report[str(c)] for c in range(classes)]
    by_group = [metrics.accuracy_score(y[group == g], predicted[group == g]) for g in np.unique(group)]
    confidence, outcome = (p[:, 1], y) if classes == 2 else (p.max(1), predicted == y)
    expected = {
        "accuracy": report["accuracy"],
        "worst_group_accuracy": min(by_group),
        "adjusted_accuracy": np.mean(by_group),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "worst_class_accuracy": min(of["recall"] for of in by_class),
        "precision_avg": report["macro avg"]["precision"],
        "precision_worst": min(of["precision"] for of in by_class),
        "f1_avg": report["macro avg"]["f1-score"],
        "f1_worst": min(of["f1-score"] for of in by_class),
        "auroc": metrics.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
        "ece": ece_of(confidence, outcome),
    }
    assert tuple(expected) == NAMES
    assert evaluate(logits, y, group) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_predicted_and_does_not_occur_counts_in_the_averages_alone():
    logits = torch.eye(3)[[0, 1, 2, 1]] * 5
    y = np.array([0, 1, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = metrics.classification_report(y, [0, 1, 2, 1], output_dict=True, zero_division=0.0)
    found = evaluate(logits, y, y)
    assert found["f1_avg"] == pytest.approx(report["macro avg"]["f1-score"])
    assert found["precision_worst"] == 1 and found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert np.isnan(found["auroc"])


def test_a_probability_of_one_half_is_class_1_and_unknown_groups_count_in_none():
    found = evaluate(torch.zeros(4, 2), np.array([1, 1, 0, 0]), np.array([0, 0, 5, -1]))
    assert found["accuracy"] == 0.5
    assert (found["worst_group_accuracy"], found["adjusted_accuracy"]) == (0.0, 0.5)


def test_a_network_that_diverged_has_no_numbers():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    assert all(np.isnan(value) for value in evaluate(logits, np.array([0, 1]), np.array([0, 1])).values())


@pytest.mark.parametrize("name", [name.removeprefix("subpop:") for name in LAYOUTS])
def test_worst_and_adjusted_are_the_worst_and_the_mean_of_the_harness_own_groups(name, load):
    dataset = load(name)
    rows = np.flatnonzero((dataset.manifest["split"] == "test").to_numpy())[:2000]
    groups, index = grouping(dataset.manifest, dataset.groups), torch.from_numpy(rows)
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(len(rows), dataset.task.outputs, generator=stream)
    assert dataset.official is not None and dataset.official_metric == "worst_group_accuracy"
    official = dataset.official(logits, rows)
    harness = score(
        logits,
        dataset.targets_M[index],
        dataset.domain_M[index],
        dataset.domains,
        groups.group_M[index],
        groups.names,
    )
    assert official["worst_group_accuracy"] == pytest.approx(harness.wga.acc, abs=1e-6)
    assert official["adjusted_accuracy"] == pytest.approx(harness.acc_group_mean, abs=1e-6)
    assert official["accuracy"] == pytest.approx(harness.acc_avg, abs=1e-6)
