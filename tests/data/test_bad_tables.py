"""csv:PATH and parquet:PATH: what is said of a table that cannot be used."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from dgharness.data.table import TableOptions, csv
from dgharness.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
from layouts.table import features


def refused(load_table, table, name="table.csv", **options) -> str:
    with pytest.raises(UsageError) as caught:
        load_table(table, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
def test_a_bad_table_is_one_sentence_with_its_line(load_table, text, options, said):
    assert re.search(said, refused(load_table, text, **options))


def test_lines_are_counted_as_an_editor_does(load_table):
    text = 'y,domain,text\n\n0,u,"two\nlines"\n\n0,,"more"\n'
    assert refused(load_table, text).startswith("line 6 of ")


def test_rows_of_parquet_are_counted_from_one(load_table):
    table = features()
    table.loc[4, "y"] = None
    assert refused(load_table, table, "table.parquet").startswith("row 5 of ")


@pytest.mark.parametrize("line", [b"y,domain,x\ncat,caf\xe9,1\n", b"y,domain,caf\xe9\ncat,u,1\n"])
def test_bytes_that_are_not_utf8_are_named(load_table, line):
    number = 1 + line[: line.index(b"\xe9")].count(b"\n")
    assert f"line {number} of " in (said := refused(load_table, line)) and "not UTF-8 (byte 0xe9)" in said


def test_a_file_that_is_none_is_named(load_table, tmp_path):
    assert "there is no file" in refused(load_table, None, "missing.csv")
    assert "cannot be read as parquet" in refused(load_table, b"PAR1 and nothing more", "broken.parquet")
    (tmp_path / "folder.csv").mkdir()
    assert "there is no file" in refused(load_table, None, "folder.csv")
    with pytest.raises(UsageError, match="csv needs a path, as in csv:PATH"):
        csv.load(None, None, 0, TableOptions())


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[1.0], [2.0]]), "the column 'z' of .* holds a list<.*> in each row"),
        (pa.array([b"a", b"b"]), "the column 'z' of .* holds bytes; save it as text in UTF-8"),
    ],
)
def test_a_column_of_something_else_is_named(load_table, tmp_path, column, said):
    table = pa.table({"y": [0, 1], "domain": ["u", "v"], "x": [1.0, 2.0], "z": column})
    pa.parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(UsageError, match=said):
        load_table(None, "table.parquet")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../a.png", r"line 3 of .* names the image '\.\./a\.png', which leaves the folder"),
        ("/etc/a.png", "line 3 of .* names the image '/etc/a.png', which leaves the folder"),
        ("z.png", "line 3 of .* names the image 'z.png', which is not in .*No such file"),
        ("", r"line 3 of .* has no path \(column 'path'\); fill it in"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(load_table, pictures, path, said):
    pictures.loc[1, "path"] = path
    with pytest.raises(UsageError, match=said):
        load_table(pictures)


def test_a_column_of_paths_that_holds_numbers_is_named(load_table, pictures):
    assert "holds int64 and no text" in refused(load_table, pictures.assign(path=[1, 2, 3]))


# --- images that are none -----------------------------------------------------------------------------


def test_an_array_of_seven_channels_is_no_image(load_table, pictures, tmp_path):
    np.save(tmp_path / "b.npy", np.zeros((7, 6, 5)))
    (tmp_path / "b.npy").rename(tmp_path / "b.png")
    assert "1 of 3 images" in (said := refused(load_table, pictures)) and "b.png (Unidentified" in said


def test_a_truncated_image_is_named(load_table, pictures, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    os.truncate(tmp_path / "b.png", 2000)
    assert "b.png (OSError: image file is truncated" in refused(load_table, pictures)
