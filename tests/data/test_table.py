"""csv:PATH and parquet:PATH: what becomes of a user's own table, and what is said of a bad one."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from dgharness.config import compose
from dgharness.data import image_cache
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import default_targets, leave_one_domain_out, official
from dgharness.data.source import batches
from dgharness.data.table import TableOptions, csv, parquet
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.training.prepare import prepare

sys.path.insert(0, str(Path(__file__).parent))
from layouts.table import features

SPEC = {".csv": csv, ".parquet": parquet}
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def load(tmp_path: Path):
    """Load a table, written first if it is given; text is written as it stands."""

    def run(table: pd.DataFrame | str | bytes | None, name: str = "table.csv", **options) -> Dataset:
        file = tmp_path / name
        if isinstance(table, bytes):
            file.write_bytes(table)
        elif isinstance(table, str):
            file.write_text(table)
        elif table is not None and file.suffix == ".csv":
            table.to_csv(file, index=False)
        elif table is not None:
            table.to_parquet(file, index=False)
        chosen = {"cache_dir": tmp_path / "cache", "size": 4, "tokenizer": "hashing", **options}
        return SPEC[file.suffix].load(str(file), None, 0, checked(TableOptions, chosen, "data"))

    return run


@pytest.fixture
def photos(tmp_path: Path) -> pd.DataFrame:
    """Three photographs of one colour each, beside the table."""
    for name, colour in (("a", RED), ("b", GREEN), ("c", BLUE)):
        Image.new("RGB", (6, 5), colour).save(tmp_path / f"{name}.png")
    return pd.DataFrame(
        {"y": ["cat", "dog", "cat"], "domain": ["u", "u", "v"], "path": ["a.png", "b.png", "c.png"]}
    )


def refused(load, table, name="table.csv", **options) -> str:
    with pytest.raises(UsageError) as caught:
        load(table, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what a table becomes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patients.csv", "patients.parquet"])
def test_numbers_become_features_and_all_else_attributes(load, name):
    table = features()
    dataset = load(table, name)
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


def test_a_table_with_a_split_is_official_and_one_without_leaves_domains_out(load):
    assert load(features()).defaults.protocol == "official"
    dataset = load(features().drop(columns="split"), "other.csv")
    assert dataset.defaults.protocol == "leave-one-domain-out"


def test_both_protocols_split_it_as_the_column_says_and_by_domain(load):
    table = features()
    dataset = load(table)
    splits = official(dataset, default_targets("official", dataset), 0)
    for split in ("train", "val", "test"):
        rows = np.sort(np.concatenate(list(splits.rows[split].values())))
        assert rows.tolist() == np.flatnonzero(table["split"] == split).tolist()
    splits = leave_one_domain_out(dataset, ["site 10"], 0)
    held_out = np.concatenate([splits.rows["test"]["site 10"], splits.rows["test_holdout"]["site 10"]])
    assert np.sort(held_out).tolist() == np.flatnonzero(table["domain"] == "site 10").tolist()


def test_both_formats_are_the_same_dataset(load):
    table = features()
    assert load(table, "a.csv").digest == load(table, "a.parquet").digest


def test_columns_may_be_called_otherwise(load):
    names = {"y": "label", "domain": "hospital", "split": "fold", "time": "day"}
    renamed = load(
        features().rename(columns=names), "renamed.csv", **dict(zip(names, names.values(), strict=True))
    )
    assert renamed.digest == load(features()).digest


def test_a_name_that_is_taken_from_a_column_leaves_the_column_out(load):
    table = features().assign(hospital=["north", "south"] * 60)
    dataset = load(table, domain="hospital", split="", time="", y="sex")
    assert dataset.domains == ("north", "south") and dataset.attributes_M == {}
    assert "split" not in dataset.manifest and "time" not in dataset.manifest


def test_features_are_named_by_pattern_and_attributes_by_name(load):
    table = features().assign(age=range(120))
    dataset = load(table, features=["x1", "x3*"], attributes="age")
    assert dataset.input_shape == (2,) and set(dataset.attributes_M) == {"age", "time"}
    assert "age" not in set(load(table, attributes=["sex"]).attributes_M)


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
def test_classes_stand_in_natural_order_or_as_given(load, labels, options, classes, codes):
    dataset = load(pd.DataFrame({"y": labels, "domain": "u", "x": 1}), **options)
    assert list(dataset.manifest["y"].cat.categories) == classes
    assert dataset.targets_M.tolist() == codes


@pytest.mark.parametrize(("labels", "options"), [([0.5, 2.0, -1.0], {}), ([1, 2, 3], {"task": "regression"})])
def test_fractions_are_numbers_to_regress_on(load, labels, options):
    dataset = load(pd.DataFrame({"y": labels, "domain": list("uuv"), "x": range(3)}), **options)
    assert (dataset.task.name, dataset.groups) == ("regression", ("domain",))
    assert dataset.targets_M.tolist() == labels


@pytest.mark.parametrize("label", ["a", 0.5])
def test_unlabeled_rows_have_no_label_whatever_they_hold(load, label):
    table = pd.DataFrame(
        {
            "y": [label, None, "z" if label == "a" else 9.5],
            "domain": "u",
            "split": ["train", "unlabeled", "unlabeled"],
            "x": 1,
        }
    )
    dataset = load(table)
    unknown = dataset.targets_M < 0 if label == "a" else dataset.targets_M.isnan()
    assert unknown.tolist() == [False, True, True] and dataset.task.outputs == 1


def test_dates_become_days(load):
    table = pd.DataFrame({"y": [0, 1], "domain": "u", "x": 1, "time": ["1970-01-03", "1970-01-01"]})
    assert load(table).manifest["time"].tolist() == [2.0, 0.0]


def test_texts_become_tokens(load):
    table = pd.DataFrame(
        {"y": [0, 1], "domain": ["u", "v"], "text": ["so, so\ngood", "bad"], "stars": [5, 1]}
    )
    dataset = load(table)
    assert dataset.reader(torch.arange(2))["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert set(dataset.attributes_M) == {"stars"}


def test_features_are_standardised_over_the_rows_that_are_trained_on(load, tmp_path):
    load(features(), "patients.csv")
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


def test_standardisation_can_be_left_out(load):
    assert load(features()).fit is not None and load(features(), standardise=False).fit is None


def test_the_digest_follows_a_feature_that_was_edited(load):
    before = load(features()).digest
    table = features()
    table.loc[7, "x2"] += 1
    assert load(table).digest != before


# --- images ----------------------------------------------------------------------------------------


def colours(dataset: Dataset) -> list[tuple[int, ...]]:
    return [tuple(x[:, 0, 0].tolist()) for x in dataset.reader(torch.arange(len(dataset.manifest)))]


def test_paths_are_relative_to_the_table(load, photos, monkeypatch):
    monkeypatch.chdir("/")
    dataset = load(photos)
    assert colours(dataset) == [RED, GREEN, BLUE]
    assert (dataset.input_shape, dataset.defaults.model) == ((3, 4, 4), "resnet50")


def test_a_manifest_edited_after_the_cache_was_built_gets_the_right_pixels(load, photos, tmp_path):
    load(photos)
    before = len(list((tmp_path / "cache").glob("*.npy")))
    edited = photos.iloc[[2, 0]]
    dataset = load(edited)
    assert colours(dataset) == [BLUE, RED] and dataset.manifest["y"].tolist() == ["cat", "cat"]
    # Labels alone leave the pixels, and so the cache, as they are.
    relabelled = load(edited.assign(y=["dog", "cat"]))
    assert colours(relabelled) == [BLUE, RED] and relabelled.digest != dataset.digest
    assert len(list((tmp_path / "cache").glob("*.npy"))) == before + 1


def test_an_image_replaced_after_the_cache_was_built_is_read_again(load, photos, tmp_path):
    load(photos)
    Image.new("RGB", (9, 9), GREEN).save(tmp_path / "a.png")
    assert colours(load(photos)) == [GREEN, GREEN, BLUE]


def test_after_the_first_load_no_image_is_read_again(load, photos, tmp_path, monkeypatch):
    first = load(photos)
    monkeypatch.setattr(image_cache.Image, "open", lambda *args, **kwargs: pytest.fail("it read an image"))
    again = load(photos)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    for dataset in (first, again):
        for _ in range(2):  # epochs
            assert colours(dataset) == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 77), ("LA", (77, 255)), ("RGBA", (77, 77, 77, 255)), ("P", 3)]
)
def test_an_image_with_another_number_of_channels_becomes_one_of_three(load, photos, tmp_path, mode, value):
    Image.new(mode, (6, 5), value).save(tmp_path / "b.png")
    x = load(photos).reader(torch.arange(3))
    assert x.shape == (3, 3, 4, 4) and len(x[1].unique()) == 1


def test_an_image_that_cannot_become_one_of_three_channels_is_named(load, photos, tmp_path):
    np.save(tmp_path / "b.npy", np.zeros((7, 6, 5)))
    (tmp_path / "b.npy").rename(tmp_path / "b.png")
    assert "1 of 3 images" in (said := refused(load, photos)) and "b.png (Unidentified" in said


def test_a_truncated_image_is_named(load, photos, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    os.truncate(tmp_path / "b.png", 2000)
    assert "b.png (OSError: image file is truncated" in refused(load, photos)


# --- bad tables ------------------------------------------------------------------------------------

GOOD = "y,domain,x\ncat,u,1\ndog,v,2\n"
BAD = [
    ("", {}, "table.csv is empty; it needs a first line with the names of its columns"),
    ("y,domain,x\n", {}, "table.csv has no rows below the names of its columns"),
    ("y,domain,x,y\ncat,u,1,2\n", {}, "table.csv has two columns named 'y'; rename one"),
    ("label,domain,x\ncat,u,1\n", {}, "has no column 'y'; .* --set data.y=COLUMN"),
    ("y,domian,x\ncat,u,1\n", {}, "has no column 'domain'; did you mean 'domian'?"),
    (GOOD, {"text": "review"}, "has no column 'review'; .* --set data.text=COLUMN"),
    (GOOD, {"features": "z*"}, r"has no column 'z\*'; .* --set data.features=COLUMN"),
    (GOOD, {"attributes": "sex"}, "has no column 'sex'; .* --set data.attributes=COLUMN"),
    (GOOD, {"split": "domain"}, "the column 'domain' of .* has two parts to play"),
    ("y,domain\ncat,u\n", {}, "no column of images .* none of texts .* none of numbers; name it"),
    ("y,domain,x\na,u,1\n,v,2\n,v,2\n", {}, r"line 3 of .* has no label \(column 'y'\) \(1 more such"),
    ("y,domain,x\n0.5,u,1\nnan,v,2\n", {}, r"line 3 of .* has no label \(column 'y'\); fill it in"),
    ("y,domain,x\n0.5,u,1\ninf,v,2\n", {}, "line 3 of .* has no label"),
    ("y,domain,x\na,,1\n", {}, r"line 2 of .* has no domain \(column 'domain'\); fill it in or take"),
    ("y,domain,x\na,u,1\nb,v,\n", {}, "line 3 of .* has no finite number in the column 'x'; fill it"),
    ("y,domain,x\na,u,inf\n", {}, "line 2 of .* has no finite number in the column 'x'"),
    ("y,domain,x,z\na,u,1,2\nb,v,two,2\nb,v,3,4\n", {}, "line 3 of .* 'two' among the numbers of .* 'x'"),
    (GOOD + "cat,u,two\n", {"features": "x"}, "line 4 of .* 'two' in the column 'x'; it should hold numbers"),
    ("y,domain,x\n0.5,u,1\n0.7,u,1\nhi,v,2\n", {}, "line 4 of .* 'hi' among the numbers of .* 'y'; mend"),
    (GOOD, {"task": "regression"}, r"line 2 of .* 'cat' in the column 'y' \(1 more such row\); it should"),
    (GOOD, {"classes": ["cat", "cow"]}, "line 3 of .* 'dog' in the column 'y', which is none of cat, cow"),
    ("y,domain,x,split\na,u,1,train\nb,v,1,dev\n", {}, "line 3 of .* the split 'dev' .* none of train, val"),
    ("y,domain,x\na,u,1\nb,v\n", {}, "line 3 of .* has 2 cells, and there are 3 columns; mend it"),
    ("y,domain,x,time\na,u,1,soon\n", {}, "line 2 of .* 'soon' in the column 'time'; it should hold"),
]


@pytest.mark.parametrize(("text", "options", "said"), BAD)
def test_a_bad_table_is_one_sentence_with_its_line(load, text, options, said):
    assert re.search(said, refused(load, text, **options))


def test_lines_are_counted_as_an_editor_does(load):
    text = 'y,domain,text\n\n0,u,"two\nlines"\n\n0,,"more"\n'
    assert refused(load, text).startswith("line 6 of ")


def test_rows_of_parquet_are_counted_from_one(load):
    table = features()
    table.loc[4, "y"] = None
    assert refused(load, table, "table.parquet").startswith("row 5 of ")


@pytest.mark.parametrize("line", [b"y,domain,x\ncat,caf\xe9,1\n", b"y,domain,caf\xe9\ncat,u,1\n"])
def test_bytes_that_are_not_utf8_are_named(load, line):
    number = 1 + line[: line.index(b"\xe9")].count(b"\n")
    assert f"line {number} of " in (said := refused(load, line)) and "not UTF-8 (byte 0xe9)" in said


def test_a_file_that_is_none_is_named(load, tmp_path):
    assert "there is no file" in refused(load, None, "missing.csv")
    assert "cannot be read as parquet" in refused(load, b"PAR1 and nothing more", "broken.parquet")
    (tmp_path / "folder.csv").mkdir()
    assert "there is no file" in refused(load, None, "folder.csv")
    with pytest.raises(UsageError, match="csv needs a path, as in csv:PATH"):
        csv.load(None, None, 0, TableOptions())


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[1.0], [2.0]]), "the column 'z' of .* holds a list<.*> in each row"),
        (pa.array([b"a", b"b"]), "the column 'z' of .* holds bytes; save it as text in UTF-8"),
    ],
)
def test_a_column_of_something_else_is_named(load, tmp_path, column, said):
    table = pa.table({"y": [0, 1], "domain": ["u", "v"], "x": [1.0, 2.0], "z": column})
    pa.parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(UsageError, match=said):
        load(None, "table.parquet")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../a.png", r"line 3 of .* names the image '\.\./a\.png', which leaves the folder"),
        ("/etc/a.png", "line 3 of .* names the image '/etc/a.png', which leaves the folder"),
        ("z.png", "line 3 of .* names the image 'z.png', which is not in .*No such file"),
        ("", r"line 3 of .* has no path \(column 'path'\); fill it in"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(load, photos, path, said):
    photos.loc[1, "path"] = path
    with pytest.raises(UsageError, match=said):
        load(photos)


def test_a_column_of_paths_that_holds_numbers_is_named(load, photos):
    assert "holds int64 and no text" in refused(load, photos.assign(path=[1, 2, 3]))


def test_a_table_that_moves_with_its_images_stays_the_same(load, photos, tmp_path):
    before = load(photos).digest
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("*.*"):
        if file.is_file():
            shutil.copy(file, moved)
    assert load(None, "moved/table.csv").digest == before
