"""csv:PATH and parquet:PATH: what becomes of a user's own table, and what is said of a bad one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgharness.config import compose
from dgharness.data import image_cache
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import default_targets, leave_one_domain_out, official
from dgharness.data.source import batches
from dgharness.data.table import csv, parquet
from dgharness.errors import UsageError
from dgharness.training.prepare import prepare

sys.path.insert(0, str(Path(__file__).parent))
from layouts.table import features

SPEC = {".csv": csv, ".parquet": parquet}
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


# --- what a table becomes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patients.csv", "patients.parquet"])
def test_numbers_become_features_and_all_else_attributes(load_table, name):
    table = features()
    dataset = load_table(table, name)
    assert dataset.name == f"{name.partition('.')[2]}:patients"
    assert list(dataset.manifest["y"].cat.categories) == ["healthy", "ill"]
    assert dataset.domains == ("site 1", "site 2", "site 10")  # in natural order
    assert (dataset.task.name, dataset.task.outputs, dataset.input_shape) == ("classification", 2, (3,))
    expected = torch.tensor(table[["x1", "x2", "x3"]].to_numpy(np.float32))
    assert torch.equal(dataset.reader(torch.arange(len(table))), expected)
    assert set(dataset.attributes_M) == {"sex", "time"}
    assert dataset.attributes_M["time"].tolist() == table["time"].tolist()
    assert dataset.manifest["sex"].tolist() == table["sex"].tolist()
    assert dataset.manifest["y"].tolist() == table["y"].tolist()
    assert dataset.manifest["domain"].tolist() == table["domain"].tolist()


def test_a_table_with_a_split_is_official_and_one_without_leaves_domains_out(load_table):
    assert load_table(features()).defaults.protocol == "official"
    dataset = load_table(features().drop(columns="split"), "other.csv")
    assert dataset.defaults.protocol == "leave-one-domain-out"


@pytest.mark.parametrize("held_out", ["test", "id_test"])
def test_a_table_that_says_what_is_tested_on_is_never_trained_on_it(load_table, held_out):
    table = features().assign(split=np.where(np.arange(120) % 4 == 0, held_out, "train"))
    dataset = load_table(table)
    assert dataset.defaults.protocol == "official"
    with pytest.raises(UsageError, match=r"has no row of val.*protocol\.name=leave-one-domain-out"):
        default_targets("official", dataset)


def test_both_protocols_split_it_as_the_column_says_and_by_domain(load_table):
    table = features()
    dataset = load_table(table)
    splits = official(dataset, default_targets("official", dataset), 0)
    for split in ("train", "val", "test"):
        rows = np.sort(np.concatenate(list(splits.rows[split].values())))
        assert rows.tolist() == np.flatnonzero(table["split"] == split).tolist()
    splits = leave_one_domain_out(dataset, ["site 10"], 0)
    held_out = np.concatenate([splits.rows["test"]["site 10"], splits.rows["test_holdout"]["site 10"]])
    assert np.sort(held_out).tolist() == np.flatnonzero(table["domain"] == "site 10").tolist()


def test_both_formats_are_the_same_dataset(load_table):
    table = features()
    assert load_table(table, "a.csv").digest == load_table(table, "a.parquet").digest


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_the_row_numbers_that_pandas_writes_are_no_feature(load_table, tmp_path, name, caplog):
    shuffled = features().sample(frac=1, random_state=0).sort_values("x1")
    plain = load_table(shuffled)
    if name == "x.csv":
        shuffled.to_csv(tmp_path / "once.csv")
        pd.read_csv(tmp_path / "once.csv").to_csv(tmp_path / name)
    else:
        shuffled.to_parquet(tmp_path / name)
    dataset = load_table(None, name)
    assert dataset.digest == plain.digest and "no name of their own" in caplog.text


def test_an_index_with_a_name_is_no_feature_but_may_be_asked_for(load_table, tmp_path):
    features().set_index("domain").to_parquet(tmp_path / "by_domain.parquet")
    features().assign(patient=np.random.default_rng(0).permutation(120)).set_index("patient").to_parquet(
        tmp_path / "y.parquet"
    )
    assert load_table(None, "y.parquet").input_shape == (3,)
    assert load_table(None, "y.parquet", features="patient,x1").input_shape == (2,)
    assert load_table(None, "by_domain.parquet").domains == ("site 1", "site 2", "site 10")


def test_columns_may_be_called_otherwise(load_table):
    names = {"y": "label", "domain": "hospital", "split": "fold", "time": "day"}
    renamed = load_table(
        features().rename(columns=names), "renamed.csv", **dict(zip(names, names.values(), strict=True))
    )
    assert renamed.digest == load_table(features()).digest


def test_a_name_that_is_taken_from_a_column_leaves_the_column_out(load_table):
    table = features().assign(hospital=["north", "south"] * 60)
    dataset = load_table(table, domain="hospital", split="", time="", y="sex")
    assert dataset.domains == ("north", "south") and dataset.attributes_M == {}
    assert "split" not in dataset.manifest and "time" not in dataset.manifest


def test_features_are_named_by_pattern_and_attributes_by_name(load_table):
    table = features().assign(age=range(120))
    dataset = load_table(table, features=["x1", "x3*"], attributes="age")
    assert dataset.input_shape == (2,) and set(dataset.attributes_M) == {"age", "time"}
    assert "age" not in set(load_table(table, attributes=["sex"]).attributes_M)


@pytest.mark.parametrize(
    ("labels", "options", "classes", "codes"),
    [
        ([10, 2, 2], {}, ["2", "10"], [1, 0, 0]),
        (["b", "a10", "a9"], {}, ["a9", "a10", "b"], [2, 1, 0]),
        ([True, False, True], {}, ["False", "True"], [1, 0, 1]),
        ([1.0, 0.0, 0.5], {"task": "classification"}, ["0", "0.5", "1"], [2, 0, 1]),
        ([2, 0, 2], {"classes": [0, 1, 2]}, ["0", "1", "2"], [2, 0, 2]),
    ],
)
def test_classes_stand_in_natural_order_or_as_given(load_table, labels, options, classes, codes):
    dataset = load_table(pd.DataFrame({"y": labels, "domain": "u", "x": 1}), **options)
    assert list(dataset.manifest["y"].cat.categories) == classes
    assert dataset.targets_M.tolist() == codes


@pytest.mark.parametrize(("labels", "options"), [([0.5, 2.0, -1.0], {}), ([1, 2, 3], {"task": "regression"})])
def test_fractions_are_numbers_to_regress_on(load_table, labels, options):
    dataset = load_table(pd.DataFrame({"y": labels, "domain": list("uuv"), "x": range(3)}), **options)
    assert (dataset.task.name, dataset.groups) == ("regression", ("domain",))
    assert dataset.targets_M.tolist() == labels


@pytest.mark.parametrize("label", ["a", 0.5])
def test_unlabeled_rows_have_no_label_whatever_they_hold(load_table, label):
    table = pd.DataFrame(
        {
            "y": [label, None, "z" if label == "a" else 9.5],
            "domain": "u",
            "split": ["train", "unlabeled", "unlabeled"],
            "x": 1,
        }
    )
    dataset = load_table(table)
    unknown = dataset.targets_M < 0 if label == "a" else dataset.targets_M.isnan()
    assert unknown.tolist() == [False, True, True] and dataset.task.outputs == 1


def test_dates_become_days(load_table):
    table = pd.DataFrame({"y": [0, 1], "domain": "u", "x": 1, "time": ["1970-01-03", "1970-01-01"]})
    assert load_table(table).manifest["time"].tolist() == [2.0, 0.0]


def test_texts_become_tokens(load_table):
    table = pd.DataFrame(
        {"y": [0, 1], "domain": ["u", "v"], "text": ["so, so\ngood", "bad"], "stars": [5, 1]}
    )
    dataset = load_table(table)
    assert dataset.reader(torch.arange(2))["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert set(dataset.attributes_M) == {"stars"}


def test_features_are_standardised_over_the_rows_that_are_trained_on(load_table, tmp_path):
    load_table(features(), "patients.csv")
    for target in ("site 1", "site 2"):
        config = compose(
            sets=[
                f"data.name=csv:{tmp_path / 'patients.csv'}",
                "protocol.name=leave-one-domain-out",
                f"protocol.targets={target}",
            ]
        )
        prepared = prepare(config)
        trained = np.concatenate(list(prepared.splits.rows["train"].values()))
        dataset = prepared.dataset
        x = torch.cat(list(batches(dataset, dataset.reader, trained, 7, torch.device("cpu"))))
        torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_standardisation_can_be_left_out(load_table):
    assert load_table(features()).fit is not None and load_table(features(), standardise=False).fit is None


def test_the_digest_follows_a_feature_that_was_edited(load_table):
    before = load_table(features()).digest
    table = features()
    table.loc[7, "x2"] += 1
    assert load_table(table).digest != before


# --- images ----------------------------------------------------------------------------------------


def colours(dataset: Dataset) -> list[tuple[int, ...]]:
    return [tuple(x[:, 0, 0].tolist()) for x in dataset.reader(torch.arange(len(dataset.manifest)))]


def test_paths_are_relative_to_the_table(load_table, pictures, monkeypatch):
    monkeypatch.chdir("/")
    dataset = load_table(pictures)
    assert colours(dataset) == [RED, GREEN, BLUE]
    assert (dataset.input_shape, dataset.defaults.model) == ((3, 4, 4), "resnet50")


def test_a_manifest_edited_after_the_cache_was_built_gets_the_right_pixels(load_table, pictures, tmp_path):
    load_table(pictures)
    before = len(list((tmp_path / "cache").glob("*.npy")))
    edited = pictures.iloc[[2, 0]]
    dataset = load_table(edited)
    assert colours(dataset) == [BLUE, RED] and dataset.manifest["y"].tolist() == ["cat", "cat"]
    # Labels alone leave the pixels, and so the cache, as they are.
    relabelled = load_table(edited.assign(y=["dog", "cat"]))
    assert colours(relabelled) == [BLUE, RED] and relabelled.digest != dataset.digest
    assert len(list((tmp_path / "cache").glob("*.npy"))) == before + 1


def test_an_image_replaced_after_the_cache_was_built_is_read_again(load_table, pictures, tmp_path):
    load_table(pictures)
    Image.new("RGB", (9, 9), GREEN).save(tmp_path / "a.png")
    assert colours(load_table(pictures)) == [GREEN, GREEN, BLUE]


def test_after_the_first_load_no_image_is_read_again(load_table, pictures, tmp_path, monkeypatch):
    first = load_table(pictures)
    monkeypatch.setattr(image_cache.Image, "open", lambda *args, **kwargs: pytest.fail("it read an image"))
    again = load_table(pictures)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    for dataset in (first, again):
        for _ in range(2):  # epochs
            assert colours(dataset) == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 77), ("LA", (77, 255)), ("RGBA", (77, 77, 77, 255)), ("P", 3)]
)
def test_an_image_with_another_number_of_channels_becomes_one_of_three(
    load_table, pictures, tmp_path, mode, value
):
    Image.new(mode, (6, 5), value).save(tmp_path / "b.png")
    x = load_table(pictures).reader(torch.arange(3))
    assert x.shape == (3, 3, 4, 4) and len(x[1].unique()) == 1


def test_a_table_that_moves_with_its_images_stays_the_same(load_table, pictures, tmp_path):
    before = load_table(pictures).digest
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("*.*"):
        if file.is_file():
            shutil.copy(file, moved)
    assert load_table(None, "moved/table.csv").digest == before


def test_an_option_written_out_at_its_default_says_nothing_new(load_table):
    table = features().assign(text="a word")
    plain, written = (load_table(table, features=["x1"], **own) for own in ({}, {"text": "text"}))
    assert plain.digest == written.digest and plain.input_shape == written.input_shape
