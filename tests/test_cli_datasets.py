"""``dgharness datasets check``: what it prints, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dgharness import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in this process; gives exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dgharness", "datasets", "check", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``datasets show`` in this process; gives stdout."""
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dgharness", "datasets", "show", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return capsys.readouterr().out

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(8):
        path = folder / ("art", "sketch")[number // 4] / ("cat", "dog")[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number, 9, 9)).save(path)
    return folder


def test_a_sound_dataset_is_counted_and_exits_with_0(check, photos):
    code, out, err = check(f"folder:{photos}", "--set", "data.size=4")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "photos: 8 examples",
        "  art     4  cat 2 · dog 2",
        "  sketch  4  cat 2 · dog 2",
        "nothing is wrong with it",
    ]


def test_findings_are_printed_and_exit_with_1(check, photos):
    (photos / "sketch/dog/copy.png").write_bytes((photos / "art/cat/0.png").read_bytes())
    (photos / "art/dog/bad.png").write_bytes(b"no image")
    code, out, _ = check(f"folder:{photos}", "--set", "data.size=4")
    assert code == 1
    assert "files that cannot be read: 1\n  art/dog/bad.png (UnidentifiedImageError" in out
    assert "duplicates across domains: 1\n  row 0 (art/cat/0.png, art) and row 9 (sketch/dog/copy.png" in out


def test_json_holds_the_counts_and_the_findings(check, photos):
    (photos / "sketch/dog/copy.png").write_bytes((photos / "art/cat/0.png").read_bytes())
    code, out, _ = check(f"folder:{photos}", "--set", "data.size=4", "--json")
    record = json.loads(out)
    assert (code, record["loaded"], record["examples"]) == (1, True, 9)
    assert {"domain": "sketch", "y": "dog", "examples": 3} in record["counts"]
    (finding,) = record["findings"]
    assert (finding["kind"], finding["count"], finding["rows"]) == ("duplicates across domains", 1, [0, 8])


def test_a_table_is_checked_by_its_own_split(check, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("y,domain,split,x\na,u,train,1\nb,u,train,2\na,v,val,3\na,v,test,1\n")
    code, out, _ = check(f"csv:{file}")
    assert code == 1
    assert "  u train  2  a 1 · b 1\n  v val    1  a 1\n  v test   1  a 1\n" in out
    assert "classes missing in a domain: 1\n  domain v has no b\n" in out
    assert "classes missing in a split: 2\n  split val has no b\n  split test has no b\n" in out
    assert f"duplicates across splits: 1\n  line 2 of {file} (train) and line 5 of {file} (test)\n" in out


def test_a_generated_dataset_needs_no_files(check):
    assert check("colored-digits")[0] == 0


def test_missing_data_exits_with_2_and_shows_what_belongs_where(check, tmp_path):
    code, out, err = check("domainbed:PACS", "--root", str(tmp_path))
    assert (code, err) == (2, "")
    assert out.startswith("domainbed:PACS cannot be loaded: ") and str(tmp_path) in out
    assert "expected\n  PACS/<domain>/<class>/<image>\n" in out
    code, out, _ = check("domainbed:PACS", "--root", str(tmp_path), "--json")
    record = json.loads(out)
    assert code == 2 and record["loaded"] is False and "<class>" in record["layout"]


def test_the_advice_to_check_is_not_given_to_who_checks(check, tmp_path):
    pytest.importorskip("wilds")
    code, out, _ = check("wilds:camelyon17", "--root", str(tmp_path))
    assert code == 2 and "there is no folder camelyon17_v1.0\nexpected\n" in out


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of texts; to ask for any tokenizer but the hashing one is a failure."""
    monkeypatch.setattr("dgharness.data.text._hugging_face", lambda name: pytest.fail(f"asked for {name}"))
    file = tmp_path / "texts.csv"
    file.write_text("y,domain,text\na,u,good\nb,u,bad\na,v,better\nb,v,worse\n")
    return file


def test_texts_are_checked_and_shown_without_a_tokenizer(check, show, texts):
    code, out, _ = check(f"csv:{texts}")
    assert code == 0 and "nothing is wrong with it" in out
    show_out = show(f"csv:{texts}", "--set", "data.max_tokens=7")
    assert "at most 7 tokens" in show_out
    assert json.loads(show(f"csv:{texts}", "--json"))["input"] == [300]


def test_options_of_a_dataset_can_be_given_where_it_is_shown(show):
    assert "classes      0 896 · 1 901\n" in show("colored-digits", "--set", "data.label_noise=0")


def test_an_incomplete_dataset_is_told_apart_from_the_complete_one(check, photos, tmp_path):
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for label in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
            path = tmp_path / "PACS" / domain / label / "1.png"
            path.parent.mkdir(parents=True)
            Image.effect_noise((8, 8), 60).convert("RGB").save(path)
    code, out, _ = check("domainbed:PACS", "--root", str(tmp_path), "--set", "data.size=4")
    assert code == 1
    assert "domains that differ from the complete dataset: 4\n  domain art_painting has 7 examples" in out
    assert "classes that differ from the complete dataset: 28\n  domain art_painting has 1 dog and" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "error: there is no dataset 'nope'"),
        (["folder:x", "--set", "data.sze=4"], "error: data.sze is not a setting here; did you mean 'size'?"),
        (["folder:x", "--set", "data.size=0"], "error: data.size=0 is not valid"),
        ([], "error: missing argument"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(check, words, said):
    code, out, err = check(*words)
    assert (code, out) == (2, "") and err.lower().startswith(said) and err.count("\n") == 1
