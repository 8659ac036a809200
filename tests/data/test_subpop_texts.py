"""SubpopBench's datasets that are no tables of images: texts, notes and coloured MNIST."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from layouts.subpop import IDENTITIES, loaded

from dgharness.data.dataset import Dataset
from dgharness.data.subpop.cmnist import CMnistOptions, drawn
from dgharness.errors import UsageError


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Writes the layout of a dataset where there is none, and loads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return partial(loaded, tmp_path)


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
