"""Texts: kept as strings, tokenised batch by batch."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dgharness.config import compose
from dgharness.data.text import BUCKETS, PADDING, START, TextOptions, not_utf8, text_dataset, text_reader
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.models.linear import linear
from dgharness.models.mlp import mlp
from dgharness.models.mnist_cnn import mnist_cnn
from dgharness.models.model import build_model
from dgharness.training.prepare import prepare

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "##ly", "it", "was", "!")
PAD, UNK, CLS, SEP, GOOD, BAD, LY, IT, WAS, BANG = 0, 1, 2, 3, 5, 6, 7, 8, 9, 10


def options(**given: Any) -> TextOptions:
    return checked(TextOptions, {"tokenizer": "hashing", **given}, "data")


def tokens(texts: list[str], **given: Any) -> dict[str, torch.Tensor]:
    return text_reader(texts, options(**given), "these texts")(torch.arange(len(texts)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of eleven tokens, in the files of DistilBERT's."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "DistilBertTokenizer"}')
    return folder


# --- a tokenizer of Hugging Face -------------------------------------------------------------------


def test_a_batch_holds_the_tokens_of_the_folders_vocabulary_as_long_as_the_longest_text(folder: Path):
    x = tokens(["It was badly good!", "was unheard"], tokenizer=str(folder))
    assert x["input_ids"].tolist() == [
        [CLS, IT, WAS, BAD, LY, GOOD, BANG, SEP],
        [CLS, WAS, UNK, SEP, PAD, PAD, PAD, PAD],
    ]
    assert x["attention_mask"].tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert x["input_ids"].dtype == x["attention_mask"].dtype == torch.int64


def test_a_long_text_is_cut_off(folder: Path):
    x = tokens(["good " * 50], tokenizer=str(folder), max_tokens=5)
    assert x["input_ids"].tolist() == [[CLS, GOOD, GOOD, GOOD, SEP]]


def test_the_input_shape_holds_the_vocabulary_that_a_model_must_cover(folder: Path):
    reader = text_reader(["good"], options(tokenizer=str(folder), max_tokens=7), "these texts")
    assert reader.input_shape == (7, len(VOCABULARY))
    assert text_reader(["good"], options(), "these texts").input_shape == (300, BUCKETS)


def test_a_reader_can_be_sent_to_another_process(folder: Path):
    reader = text_reader(["good", "it was bad"], options(tokenizer=str(folder)), "these texts")
    sent = pickle.loads(pickle.dumps(reader)).to(torch.device("cpu"))
    rows = torch.tensor([1, 0, 1])
    assert all(torch.equal(sent(rows)[key], value) for key, value in reader(rows).items())


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"no folder /nowhere/at/all with a tokenizer"):
        tokens(["good"], tokenizer="/nowhere/at/all")


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(UsageError, match=r"has no vocabulary; it lacks tokenizer.json or vocab.txt"):
        tokens(["good"], tokenizer=str(tmp_path))


def test_a_damaged_tokenizer_is_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UsageError, match=rf"the tokenizer {tmp_path} is neither a folder with tokenizer"):
        tokens(["good"], tokenizer=str(tmp_path))


def test_a_run_without_its_tokenizer_is_refused_before_it_begins(tmp_path: Path):
    (tmp_path / "table.csv").write_text("y,domain,text\na,u,good\nb,u,bad\na,v,better\nb,v,worse\n")
    sets = [f"data.name=csv:{tmp_path / 'table.csv'}", "data.tokenizer=/nowhere/at/all"]
    with pytest.raises(UsageError, match=r"no folder /nowhere/at/all with a tokenizer"):
        prepare(compose(sets=sets))


def test_the_cache_is_asked_before_the_hub_and_failing_both_the_switches_are_named(monkeypatch: Any):
    transformers = pytest.importorskip("transformers")
    asked = []

    def unreachable(name: str, **kwargs: Any) -> None:
        asked.append(kwargs.get("local_files_only", False))
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(UsageError, match=r"no route to the hub\); --set data.tokenizer=PATH .*=hashing"):
        tokens(["good"], tokenizer="somebody/some-tokenizer")
    assert asked == [True, False]


def test_without_transformers_the_extra_is_named_and_hashing_works(monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'dgharness\[text\]'"):
        tokens(["good"], tokenizer="bert-base-somebody")
    assert tokens(["good"])["input_ids"].shape == (1, 2)


def test_importing_what_reads_texts_does_not_import_transformers():
    modules = "dgharness.data.text, dgharness.data.wilds.text, dgharness.models.transformer"
    asked = f"import sys, {modules}; print('transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- the hashing tokenizer -------------------------------------------------------------------------


def test_a_hashed_word_has_one_number_for_ever():
    x = tokens(["Good, good", "Ça"])
    good, comma, ca = (2 + zlib.crc32(word.encode()) % (BUCKETS - 2) for word in ("good", ",", "ça"))
    assert x["input_ids"].tolist() == [[START, good, comma, good], [START, ca, PADDING, PADDING]]
    assert x["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_hashed_words_never_take_the_numbers_of_padding_and_start():
    x = tokens([" ".join(f"word{number}" for number in range(3000))], max_tokens=3001)
    words = x["input_ids"][0, 1:]
    assert words.min() > max(PADDING, START) and words.max() < BUCKETS
    assert len(words.unique()) > 2800  # few collide


def test_a_hashed_text_without_words_still_has_a_token():
    assert tokens(["", "so"])["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_long_hashed_text_is_cut_off():
    assert tokens(["so " * 50], max_tokens=4)["input_ids"].shape == (1, 4)


# --- bad input -------------------------------------------------------------------------------------


def test_a_missing_text_names_its_row():
    with pytest.raises(UsageError, match=r"row 1 of these texts has no text but nan \(2 such rows\)"):
        text_reader(["good", float("nan"), None], options(), "these texts")  # type: ignore[list-item]


def test_half_a_character_names_its_row():
    with pytest.raises(UsageError, match=r"row 2 of these texts holds half a character \('\\ud83d'\)"):
        text_reader(["good", "bad", "a \ud83d smile"], options(), "these texts")


def test_the_line_that_is_not_utf8_is_found(tmp_path: Path):
    (tmp_path / "latin.csv").write_bytes("text\ngood\nça\n".encode("latin-1"))
    (tmp_path / "utf8.csv").write_text("text\nça\n")
    assert not_utf8(tmp_path / "latin.csv") == f"line 3 of {tmp_path / 'latin.csv'} is not UTF-8 (byte 0xe7)"
    assert not_utf8(tmp_path / "utf8.csv") == ""


def test_an_edited_text_changes_the_digest_of_its_dataset():
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical(["a", "b"]),
            "domain": pd.Categorical(["here", "there"]),
            "split": ["train", "val"],
        }
    )
    first, edited = (text_dataset("texts", manifest, ["good", text], options()) for text in ("bad", "worse"))
    assert first.digest != edited.digest
    assert first.digest == text_dataset("texts", manifest, ["good", "bad"], options()).digest
    assert "text_hash" not in first.attributes_M


@pytest.mark.parametrize("model", [mlp, linear, mnist_cnn])
def test_a_model_of_numbers_refuses_text(model: Any):
    shape = text_reader(["good"], options(), "these texts").input_shape
    with pytest.raises(
        UsageError, match=r"takes numbers, and this dataset is text; --set model.name=distilbert"
    ):
        build_model(model, shape, 2, model.options(), seed=0)
