"""SubpopBench's tables of images, and what training may know of their attributes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from layouts.subpop import LAYOUTS, loaded
from PIL import Image

from dgharness import registry
from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.groups import grouping
from dgharness.data.protocols import subpopulation
from dgharness.data.shift import shift_measures
from dgharness.errors import UsageError
from dgharness.training.prepare import Prepared, prepare

SMALL = {"data.size": 8, "model.name": "mlp", "model.width": 8, "train.steps": 5}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Writes the layout of a dataset where there is none, and loads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return partial(loaded, tmp_path)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(name: str, **sets: Any) -> Prepared:
        if not (tmp_path / "cache").exists():
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
    found = shift_measures(run.dataset)["attributes"]["context"]
    assert found["attribute_generalization"] == 0 and found["unseen_with_class"] == pytest.approx(7 / 360)
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
        ("filename", "../../x.jpg", r"row 3 of .*csv names the image '../../x.jpg', which leaves the folder"),
        ("filename", "gone.jpg", r"row 3 of .*csv names the image 'gone.jpg', which is not in"),
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


def test_rows_that_are_left_out_count_where_a_missing_image_is_named(load, tmp_path):
    load("cxr-multisite")
    path = tmp_path / "MIMIC-CXR-JPG" / "subpop_bench_meta" / "metadata_multisite.csv"
    table = pd.read_csv(path).sort_values("split", ascending=False, kind="stable", ignore_index=True)
    table.loc[table["split"] == 3, "filename"] = "/data/chexpert/nowhere.jpg"
    table.to_csv(path, index=False)
    assert len(load("cxr-multisite").manifest) == 36  # nobody reads the images of rows that are left out
    table.loc[40, "filename"] = "/data/chexpert/gone.jpg"
    table.to_csv(path, index=False)
    with pytest.raises(UsageError, match=rf"row 40 of {path} names the image 'chexpert/gone.jpg'"):
        load("cxr-multisite")
    table.loc[40, "filename"] = "/data/elsewhere.jpg"
    table.to_csv(path, index=False)
    with pytest.raises(UsageError, match=rf"row 40 of {path} names the image '/data/elsewhere.jpg'"):
        load("cxr-multisite")


@pytest.mark.parametrize("name", ["entity13", "entity30", "nonliving26"])
def test_of_breeds_only_living17_is_reported_on_unseen_subclasses_by_default(load, name):
    manifest = load(name).manifest
    assert set(manifest["split"]) == {"train", "val", "test"}
    trained, tested = (
        set(manifest.loc[manifest["split"] == split, "subclass"]) for split in ("train", "test")
    )
    assert tested <= trained
    assert set(load(name, test_split="zs").manifest["split"]) == {"train", "val", "test", "id_test"}


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
