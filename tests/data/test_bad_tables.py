"""csv:PATH and parquet:PATH: what is said of a table that cannot be used."""

from __future__ import annotations

import gzip
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
    ("y,domain,x,time\na,u,1,01/31/2020\n", {}, "'01/31/2020' .* numbers, or dates as 2020-01-31; write"),
    ("y,domain,x\n0.0,u,1\n1.0,v,2\n,v,3\n", {}, "'y' of .* whole numbers written as fractions .*task=class"),
    (f"y,domain,x\n{2**63},u,1\n{2**63 + 1},v,2\n", {}, "'y' of .* whole numbers written as fractions"),
    (f"y,domain,x\na,{2**64},1\na,{2**64 + 1},2\n", {}, "line 2 of .* more than 15 digits .* 'domain'"),
    ("y,domain,x\na,u,1\na,v,1e300\n", {}, "line 3 of .* has no finite number in .* 'x'; .* up to 3.4e38"),
    ("y;domain;x\na;u;1\n", {}, "table.csv has semicolons between its cells; save it with commas"),
    ("y;domain;x\na;u;0,5\n", {}, "table.csv has semicolons between its cells; save it with commas"),
    ("y\tdomain\tx\na\tu\t1\n", {}, "table.csv has tabs between its cells; save it with commas"),
    ("\n\ny,domain,x\na,u\n", {}, "line 4 of .* has 2 cells, and there are 3 columns; mend it"),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"y,domain,x\na,u,1\n,v,2\n", "line 3 of .* has no label"),
        (b"\xef\xbb\xbfy,domain,x\na,u,1\nb,v\n", "line 3 of .* has 2 cells, and there are 3 columns"),
        (b"y,domain,x\na,caf\xe9,1\n", r"line 2 of .* is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_a_compressed_table_is_told_of_as_if_it_were_not(tmp_path, text, said):
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(text))
    with pytest.raises(UsageError, match=said):
        csv.load(str(tmp_path / "table.csv.gz"), None, 0, TableOptions())


def test_a_compressed_table_that_is_damaged_is_named(tmp_path):
    whole = gzip.compress(b"y,domain,x\n" + b"a,u,1\n" * 9999)
    for damaged in (whole[: len(whole) // 2], b"y,domain,x\na,u,1\n"):
        (tmp_path / "table.csv.gz").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"table\.csv\.gz cannot be read as csv: "):
            csv.load(str(tmp_path / "table.csv.gz"), None, 0, TableOptions())


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04\x14\x00", "but an Excel file or a zip archive; export the table as CSV"),
        (gzip.compress(b"y,domain,x\na,u,1\n"), r"but compressed; .* let its name end in \.csv\.gz"),
        (b"PAR1\x15\x04", "but a Parquet file; name it as parquet:PATH"),
        ("y,domain,x\n".encode("utf-16"), "but text in UTF-16; save it as text in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_first_bytes(load_table, start, said):
    assert re.search(f"is no table of comma-separated values {said}", refused(load_table, start))


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
        ("a\0.png", "line 3 of .* names the image .*, which is not in .*null byte"),
        ("", r"line 3 of .* has no path \(column 'path'\); fill it in"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(load_table, pictures, path, said):
    pictures.loc[1, "path"] = path
    with pytest.raises(UsageError, match=said):
        load_table(pictures)


def test_a_column_of_paths_that_holds_numbers_is_named(load_table, pictures):
    assert "holds int64 and no text" in refused(load_table, pictures.assign(path=[1, 2, 3]))


def test_all_paths_that_lead_nowhere_are_counted(load_table, pictures):
    table = pictures.assign(path=["a.png", "y.png", "z.png"])
    assert "line 3 " in (said := refused(load_table, table)) and "(1 more of 3 are missing)" in said


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
