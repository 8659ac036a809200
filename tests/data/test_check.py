"""The doctor: each kind of fault is found, with the rows that cause it, and a sound dataset has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgharness.data.check import FEW, Finding, counts, findings
from dgharness.data.dataset import Dataset, Defaults, InMemory
from dgharness.data.folder import folder
from dgharness.data.images import ImageOptions
from dgharness.data.table import TableOptions, csv
from dgharness.data.tasks import classification, multilabel
from dgharness.data.temporal import in_time_order
from dgharness.errors import UsageError

SPLITS = ["train", "val", "test", "unlabeled"]


@pytest.fixture
def sound() -> Dataset:
    """Two domains, two classes, two colours and three splits; 48 rows, each with an input of its own."""
    row = np.arange(48)
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical.from_codes(row % 2, ["cat", "dog"]),
            "domain": pd.Categorical.from_codes(row // 2 % 2, ["art", "photo"]),
            "colour": pd.Categorical.from_codes(row // 4 % 2, ["red", "green"]),
            "split": pd.Categorical.from_codes(row // 8 % 3, SPLITS),
            "size": row / 2,
        }
    )
    reader = InMemory(torch.arange(48.0)[:, None] * torch.ones(3))
    return Dataset("sound", manifest, reader, classification(2), (3,), groups=("y", "colour"))


@pytest.fixture
def load(tmp_path: Path, photos: Path) -> Callable[[], Dataset]:
    options = ImageOptions(size=4, cache_dir=tmp_path / "cache", skip_unreadable=True)
    return lambda: folder.load(str(photos), None, 0, options)


def kinds(dataset: Dataset, **kwargs) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings(dataset, **kwargs)}


def with_column(dataset: Dataset, name: str, change: Callable[[pd.Series], None]) -> Dataset:
    column = dataset.manifest[name].copy()
    change(column)
    return replace(dataset, manifest=dataset.manifest.assign(**{name: column}))


def put(column: pd.Series, rows: slice | list[int], value: object) -> None:
    column.iloc[rows] = value


def test_a_sound_dataset_has_no_findings(sound, load):
    assert findings(sound) == [] and findings(load()) == []


def test_rows_are_those_of_the_source_even_where_some_of_it_was_left_out(load, photos):
    (photos / "art" / "cat" / "00.png").write_bytes(b"no image")
    shutil.copy(photos / "art" / "dog" / "03.png", photos / "sketch" / "dog" / "12.png")
    found = kinds(load())
    unreadable, twice = found["files that cannot be read"], found["duplicates across domains"]
    assert unreadable.rows == (0,) and unreadable.examples[0].startswith("art/cat/00.png (Unidentified")
    assert twice.rows == (3, 12)
    assert twice.examples == ("row 3 (art/dog/03.png, art) and row 12 (sketch/dog/12.png, sketch)",)


def test_rows_of_a_table_are_named_by_their_lines(load_table):
    table = "y,domain,split,x,time\na,u,train,1,5\n\na,u,,2,6\nb,v,val,3,\nb,v,test,1,7\n"
    found = kinds(dataset := load_table(table))
    lines = [
        found[kind].examples[0] for kind in ("rows without a split", "rows whose time is NaN or infinite")
    ]
    assert [line.partition(" of ")[0] for line in lines] == ["line 4", "line 5"]
    with pytest.raises(UsageError, match=r"^line 5 of .*table\.csv has no finite time, by which csv:table"):
        in_time_order(dataset)


def test_a_single_class_and_a_single_domain_are_findings(load_table):
    found = kinds(load_table("y,domain,x\na,u,1\na,u,2\n"))
    assert found["a single class"].examples == ("a",) and found["a single domain"].examples == ("u",)


def test_examples_are_counted_by_domain_split_and_class(sound):
    table = counts(sound)
    assert list(table.columns) == ["domain", "split", "y", "examples"]
    assert len(table) == 12 and set(table["examples"]) == {4}
    regression = sound.manifest.assign(y=1.5).drop(columns="split")
    assert counts(replace(sound, manifest=regression))["examples"].tolist() == [24, 24]


def test_a_domain_that_differs_from_the_complete_dataset_is_named(sound):
    found = kinds(sound, complete={"art": 24, "photo": 30, "sketch": 5})
    assert list(found) == ["domains that differ from the complete dataset"]
    assert found["domains that differ from the complete dataset"].examples == (
        "domain photo has 24 examples and should have 30",
        "domain sketch has 0 examples and should have 5",
    )
    assert kinds(sound, complete={"art": 24, "photo": 24}) == {}
    assert kinds(sound, complete={"art": 24}).popitem()[1].examples == (
        "domain photo has 24 examples and should have 0",
    )


def test_a_class_that_differs_from_the_complete_dataset_is_named_with_its_domain(sound):
    full = {"art": {"cat": 12, "dog": 12}, "photo": {"cat": 12, "dog": 12}}
    assert kinds(sound, classes=full) == {}
    found = kinds(sound, classes=full | {"photo": {"cat": 11, "dog": 12, "cow": 1}})
    assert found["classes that differ from the complete dataset"].examples == (
        "domain photo has 12 cat and should have 11",
        "domain photo has 0 cow and should have 1",
    )


def test_a_single_domain_in_place_of_several_is_compared_with_them_together(sound):
    one = replace(sound, manifest=sound.manifest.assign(domain=pd.Categorical(["all"] * 48)))
    classes = {"land": {"cat": 10, "dog": 10}, "water": {"cat": 14, "dog": 14}}
    complete = {"land": 20, "water": 28}
    assert kinds(one, complete=complete, classes=classes) == {}
    found = kinds(one, complete={"land": 20, "water": 29})
    assert found["domains that differ from the complete dataset"].examples == (
        "domain all has 48 examples and should have 49",
    )


# --- what is unknown -------------------------------------------------------------------------------


def test_rows_without_a_label_are_named_and_unlabeled_ones_are_not(sound):
    unknown = with_column(sound, "y", lambda column: put(column, [5, 9, 20, 30, 40], None))
    finding = kinds(unknown)["rows without a known label"]
    assert (finding.count, finding.rows) == (5, (5, 9, 20))
    assert str(finding) == "rows without a known label: 5: row 5; row 9; row 20; and 2 more"
    labeled = with_column(unknown, "split", lambda column: put(column, [5, 9, 20, 30, 40], "unlabeled"))
    assert "rows without a known label" not in kinds(labeled)


def test_of_several_labels_one_is_enough(sound):
    targets = torch.zeros(48, 2)
    targets[3], targets[4, 0] = torch.nan, torch.nan
    several = replace(sound, targets=targets, task=multilabel(2))
    assert kinds(several)["rows without a known label"].rows == (3,)


@pytest.mark.parametrize(("column", "kind"), [("domain", "domain"), ("colour", "colour")])
def test_rows_without_a_domain_or_a_group_are_named(sound, column, kind):
    unknown = with_column(sound, column, lambda values: put(values, [7], None))
    assert kinds(unknown)[f"rows without a known {kind}"].rows == (7,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(sound, value):
    broken = with_column(sound, "size", lambda column: put(column, [7], value))
    assert kinds(broken)["rows whose size is NaN or infinite"].rows == (7,)
    x_M = sound.reader.x_M.clone()
    x_M[11, 2] = value
    assert kinds(replace(sound, reader=InMemory(x_M)))["inputs that are NaN or infinite"].rows == (11,)


# --- what is too few -------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["domain", "split"])
def test_a_class_that_a_domain_or_a_split_lacks_is_named(sound, column):
    value = {"domain": "photo", "split": "test"}[column]
    kept = ~((sound.manifest[column] == value) & (sound.manifest["y"] == "dog"))
    lacking = replace(
        sound, manifest=sound.manifest[kept].reset_index(drop=True), reader=InMemory(sound.reader.x_M[kept])
    )
    found = kinds(lacking)
    assert list(found) == [f"classes missing in a {column}"]
    assert found[f"classes missing in a {column}"].examples == (f"{column} {value} has no dog",)


def test_groups_and_domains_without_examples_are_named(sound):
    kept = ~((sound.manifest["colour"] == "red") & (sound.manifest["y"] == "dog"))
    manifest = sound.manifest[kept].reset_index(drop=True)
    manifest["domain"] = manifest["domain"].cat.add_categories("sketch")
    found = kinds(replace(sound, manifest=manifest, reader=InMemory(sound.reader.x_M[kept])))
    assert found["groups of metrics without examples"].examples == ("y=dog,colour=red",)
    assert found["domains without examples"].examples == ("sketch",)


def test_groups_that_the_complete_dataset_lacks_too_are_no_fault(sound):
    kept = ~((sound.manifest["colour"] == "red") & (sound.manifest["y"] == "dog"))
    manifest = sound.manifest[kept].reset_index(drop=True)
    lacking = replace(sound, manifest=manifest, reader=InMemory(sound.reader.x_M[kept]))
    assert kinds(lacking, absent=("y=dog,colour=red",)) == {}
    assert list(kinds(lacking, absent=("y=cat,colour=red",))) == ["groups of metrics without examples"]


def test_a_group_that_only_the_test_has_is_missing_in_training(sound):
    manifest = sound.manifest
    moved = (manifest["split"] == "train") & (manifest["colour"] == "red") & (manifest["y"] == "dog")
    split = manifest["split"].where(~moved, "test")
    grouped = replace(sound, manifest=manifest.assign(split=split), train_groups=("y", "colour"))
    found = kinds(grouped)
    assert list(found) == ["groups of training without examples"]
    assert found["groups of training without examples"].examples == ("y=dog,colour=red",)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_examples_is_named_where_training_goes_by_it(sound, split):
    manifest = sound.manifest.assign(split=sound.manifest["split"].where(sound.manifest["split"] != split))
    trained_by_it = replace(sound, manifest=manifest, defaults=Defaults(protocol="official"))
    assert kinds(trained_by_it)["splits without examples"].examples == (split,)
    assert "splits without examples" not in kinds(replace(sound, manifest=manifest))


# --- leakage ---------------------------------------------------------------------------------------


def test_equal_inputs_in_two_domains_or_splits_are_duplicates(sound):
    x_M = sound.reader.x_M.clone()
    x_M[2], x_M[8], x_M[44] = x_M[0], x_M[1], x_M[40]  # art and photo; train and val; test alone
    found = kinds(replace(sound, reader=InMemory(x_M)))
    assert found["duplicates across domains"].rows == (0, 2)
    assert found["duplicates across splits"].rows == (1, 8)
    assert found["duplicates across splits"].examples == ("row 1 (train) and row 8 (val)",)
    assert {finding.count for finding in found.values()} == {1}


def test_a_content_of_many_rows_counts_once_for_each_further_domain(sound):
    constant = replace(sound, reader=InMemory(torch.ones(48, 3)))
    found = kinds(constant)
    assert found["duplicates across domains"].count == 1 and found["duplicates across splits"].count == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float64, torch.int64])
def test_inputs_of_every_kind_are_compared(sound, dtype):
    bits = torch.arange(48)[:, None] >> torch.arange(6) & 1  # six bits tell 48 rows apart
    assert findings(replace(sound, reader=InMemory(bits.to(dtype)))) == []
    bits[2] = bits[0]
    assert list(kinds(replace(sound, reader=InMemory(bits.to(dtype))))) == ["duplicates across domains"]


def test_what_is_no_tensor_is_compared_example_by_example(sound):
    class Graphs:
        """A batch is a list with a dictionary for each example."""

        def __call__(self, index_N):
            return [{"nodes": torch.ones(int(n) // 2, 2), "name": str(int(n) % 2)} for n in index_N]

        def to(self, device):
            return self

    assert findings(replace(sound, reader=Graphs())) == []
    halved = Graphs()
    once = Graphs.__call__
    Graphs.__call__ = lambda self, index_N: once(self, index_N % 46)  # type: ignore[method-assign]
    found = kinds(replace(sound, reader=halved))
    assert found["duplicates across domains"].rows == (0, 46, 1, 47)


def test_equal_files_in_two_domains_are_duplicates(photos, load):
    (photos / "sketch/dog/copy.png").write_bytes((photos / "art/cat/01.png").read_bytes())
    finding = kinds(load())["duplicates across domains"]
    assert finding.count == 1 and "(art/cat/01.png, art) and row " in finding.examples[0]
    assert "(sketch/dog/copy.png, sketch)" in finding.examples[0]


def test_equal_files_in_one_domain_are_no_leak(photos, load):
    (photos / "art/cat/copy.png").write_bytes((photos / "art/cat/01.png").read_bytes())
    assert findings(load()) == []


def test_equal_texts_in_two_splits_are_duplicates(tmp_path):
    rows = ["0,u,train,good", "1,u,train,bad", "0,u,val,it", "1,u,val,was", "0,v,test,good", "1,v,test,so so"]
    text = "\n".join(["y,domain,split,text", *rows, ""])
    (tmp_path / "table.csv").write_text(text)
    dataset = csv.load(str(tmp_path / "table.csv"), None, 0, TableOptions(tokenizer="hashing"))
    found = kinds(dataset)
    assert list(found) == ["duplicates across domains", "duplicates across splits"]
    assert found["duplicates across splits"].rows == (0, 4)


# --- files and text --------------------------------------------------------------------------------


def test_unreadable_files_are_named_with_the_reason(photos, load):
    (photos / "art/cat/bad.png").write_bytes(b"no image")
    for number in range(FEW):
        (photos / f"art/dog/bad{number}.png").write_bytes(b"")
    finding = kinds(load())["files that cannot be read"]
    assert finding.count == FEW + 1 and "and 1 more" in str(finding)
    assert finding.examples[0].startswith("art/cat/bad.png (UnidentifiedImageError")


def test_a_file_that_has_gone_since_is_named(photos, load):
    (photos / "art/cat/00.png").rename(photos / "gone")
    dataset = load()
    (photos / "art/cat/01.png").unlink()
    assert kinds(dataset)["files that cannot be read"].examples == (
        "art/cat/01.png (No such file or directory)",
    )


def test_a_folder_may_be_given_where_the_dataset_names_none(photos, load):
    (photos / "sketch/dog/copy.png").write_bytes((photos / "art/cat/01.png").read_bytes())
    dataset = replace(load(), folder=None)
    assert "duplicates across domains" in kinds(dataset, root=photos)


@pytest.mark.parametrize("damaged", ["caf\ufffd", "caf\x82", "ca\x00"])
def test_damaged_names_are_found(sound, damaged):
    renamed = sound.manifest["colour"].cat.rename_categories(["red", damaged])
    found = kinds(replace(sound, manifest=sound.manifest.assign(colour=renamed)))
    finding = found["names of colour with encoding errors"]
    assert finding.examples == (f"{damaged!a} in row 4",) and finding.rows == (4,)


@pytest.mark.parametrize("pair", [["café", "cafe\u0301"], ["red", "red "]])
def test_names_that_look_alike_are_found(sound, pair):
    renamed = sound.manifest["colour"].cat.rename_categories(pair)
    found = kinds(replace(sound, manifest=sound.manifest.assign(colour=renamed)))
    assert found["names of colour that look alike"].count == 1


def test_damaged_texts_are_found_and_accents_are_not(tmp_path):
    (tmp_path / "table.csv").write_text("y,domain,text\n0,u,cafés — ok\n1,u,caf\ufffds\n", encoding="utf-8")
    dataset = csv.load(str(tmp_path / "table.csv"), None, 0, TableOptions(tokenizer="hashing"))
    assert kinds(dataset)["encoding errors in texts"].rows == (1,)


def test_a_file_name_that_is_not_utf8_is_one_sentence(photos, load):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        Image.new("RGB", (3, 3)).save(photos / "art" / "cat" / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UsageError, match=r"the name 'art/cat/caf.*udce9.png' in .* is not UTF-8; rename"):
        load()
