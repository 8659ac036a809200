"""WILDS' text datasets, from their files to their own evaluation, through its own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from layouts.wilds_text import IDENTITIES, write_amazon, write_civilcomments, write_yelp
from torch import Tensor

from dgharness.data.dataset import Dataset
from dgharness.data.groups import grouping, metric_groups
from dgharness.data.protocols import official
from dgharness.data.wilds.load import open_wilds
from dgharness.data.wilds.text import amazon, civilcomments, yelp
from dgharness.errors import UsageError
from dgharness.hparams import checked

WRITE = {"civilcomments": write_civilcomments, "amazon": write_amazon, "yelp": write_yelp}
SPECS = {"civilcomments": civilcomments, "amazon": amazon, "yelp": yelp}
SCHEMES = [
    ("civilcomments", "official"),
    ("amazon", "official"),
    ("amazon", "time"),
    ("amazon", "category_subpopulation"),
    ("yelp", "official"),
    ("yelp", "user"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wilds")
    for write in WRITE.values():
        write(root)
    return root


def loaded(name: str, root: Path, **given: Any) -> Dataset:
    options = checked(SPECS[name].options, {"tokenizer": "hashing", **given}, "data")
    return SPECS[name].load(None, root, 0, options)


def file_of(name: str, root: Path) -> Path:
    WRITE[name](root)
    return next(path for path in root.glob(f"{name}_v*/*.csv"))


def edited(name: str, root: Path, edit: Callable[[str], str]) -> None:
    file = file_of(name, root)
    file.write_text(edit(file.read_text()))


# --- what is loaded --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scheme"), SCHEMES)
def test_the_splits_are_those_of_wilds(name: str, scheme: str, root: Path):
    dataset, source = loaded(name, root, split_scheme=scheme), open_wilds(name, root, scheme)
    splits = official(dataset, tuple(official_targets(dataset)), 0)
    texts = np.asarray(getattr(source, "_text_array", None) or source._input_array, dtype=object)
    for split, number in source.split_dict.items():
        rows = np.sort(np.concatenate(list(splits.rows[split].values())))
        assert dataset.reader.text_M[rows].tolist() == texts[source.split_array == number].tolist()  # type: ignore[attr-defined]
        assert dataset.targets_M[rows].tolist() == source.y_array[source.split_array == number].tolist()


def official_targets(dataset: Dataset) -> list[str]:
    tested = dataset.manifest["domain"][dataset.manifest["split"] == "test"]
    return [name for name in dataset.domains if (tested == name).any()]


@pytest.mark.parametrize(
    ("name", "scheme", "first", "metric"),
    [
        ("civilcomments", "official", "not black", "acc_wg"),
        ("amazon", "official", "A000", "10th_percentile_acc"),
        ("amazon", "time", "2005", "acc_wg"),
        ("amazon", "category_subpopulation", "Books", "acc_wg"),
        ("yelp", "official", "2006", "acc_wg"),
        ("yelp", "user", "u0", "10th_percentile_acc"),
    ],
)
def test_the_domains_are_what_the_split_separates(
    name: str, scheme: str, first: str, metric: str, root: Path
):
    dataset = loaded(name, root, split_scheme=scheme)
    assert dataset.domains[0] == first
    assert dataset.official_metric == metric


def test_each_has_the_model_and_the_length_of_the_benchmark(root: Path):
    found = {name: loaded(name, root) for name in SPECS}
    assert {name: dataset.defaults.model for name, dataset in found.items()} == {
        "civilcomments": "distilbert",
        "amazon": "distilbert",
        "yelp": "bert",
    }
    assert [dataset.input_shape[0] for dataset in found.values()] == [300, 512, 512]
    tokenizers = [SPECS[name].options().tokenizer for name in SPECS]  # type: ignore[attr-defined]
    assert tokenizers == ["distilbert-base-uncased", "distilbert-base-uncased", "bert-base-uncased"]


def test_the_groups_of_civilcomments_overlap_in_metrics_and_are_a_partition_in_training(root: Path):
    dataset = loaded("civilcomments", root)
    groups = metric_groups(dataset.manifest, dataset.groups)
    assert groups.names[:2] == ("y=non-toxic,male", "y=non-toxic,female") and len(groups) == 16
    source = open_wilds("civilcomments", root)
    identity_MI = source.metadata_array[:, : len(IDENTITIES)].bool()
    toxic_M1 = source.y_array.bool()[:, None]
    assert torch.equal(groups.group_M, torch.cat([identity_MI & ~toxic_M1, identity_MI & toxic_M1], dim=1))
    assert groups.group_M.sum(1).max() > 1

    trained = grouping(dataset.manifest, dataset.train_groups)
    assert trained.names == (
        "black=0,y=non-toxic",
        "black=0,y=toxic",
        "black=1,y=non-toxic",
        "black=1,y=toxic",
    )
    black_M = source.metadata_array[:, source.metadata_fields.index("black")]
    assert torch.equal(trained.group_M, 2 * black_M + source.y_array)


def test_an_identity_that_nobody_has_leaves_its_groups_empty(tmp_path: Path):
    file = file_of("civilcomments", tmp_path)
    pd.read_csv(file, index_col=0).assign(muslim=0.0).to_csv(file)
    dataset = loaded("civilcomments", tmp_path)
    groups = metric_groups(dataset.manifest, dataset.groups)
    counts = dict(zip(groups.names, groups.counts_G.tolist(), strict=True))
    assert counts["y=toxic,muslim"] == counts["y=non-toxic,muslim"] == 0
    assert counts["y=toxic,male"] > 0


# --- the official evaluation -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scheme"), SCHEMES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_official_scores_are_those_of_wilds_and_of_a_plain_recomputation(
    name: str, scheme: str, split: str, root: Path
):
    dataset = loaded(name, root, split_scheme=scheme)
    rows = np.flatnonzero(dataset.manifest["split"] == split)
    logits_NC = torch.randn(len(rows), dataset.task.outputs, generator=torch.Generator().manual_seed(3))
    assert dataset.official is not None
    found = dataset.official(logits_NC, rows)

    source = open_wilds(name, root, scheme)
    own = source.get_subset(split)
    theirs, _ = source.eval(logits_NC.argmax(-1), own.y_array, own.metadata_array)
    metric = dataset.official_metric
    assert found["acc_avg"] == pytest.approx(theirs["acc_avg"], abs=1e-6)
    assert found[metric] == pytest.approx(float(theirs[metric]), abs=1e-6)

    plain = recomputed(dataset, logits_NC, rows)
    assert found["acc_avg"] == pytest.approx(plain["acc_avg"], abs=1e-6)
    assert found["acc_wg"] == pytest.approx(plain["acc_wg"], abs=1e-6)
    assert found[metric] == pytest.approx(plain[metric], abs=1e-6)


def recomputed(dataset: Dataset, logits_NC: Tensor, rows: np.ndarray) -> dict[str, float]:
    right_N = (logits_NC.argmax(-1) == dataset.targets_M[rows]).double().numpy()
    groups = metric_groups(dataset.manifest, dataset.groups)
    if groups.group_M.dim() == 2:
        members = [groups.group_M[rows, g].numpy() for g in range(len(groups))]
    else:
        members = [(groups.group_M[rows] == g).numpy() for g in range(len(groups))]
    accuracies = [right_N[member_N].mean() for member_N in members if member_N.any()]
    return {
        "acc_avg": right_N.mean(),
        "acc_wg": min(accuracies),
        "10th_percentile_acc": float(np.percentile(accuracies, 10)),
    }


def test_a_group_without_examples_is_nan_and_not_zero(root: Path):
    dataset = loaded("yelp", root)
    rows = np.flatnonzero((dataset.manifest["split"] == "test") & (dataset.manifest["year"] == "2013"))
    assert dataset.official is not None
    found = dataset.official(torch.randn(len(rows), 5), rows)
    assert np.isnan(found["acc_year:2014"]) and found["count_year:2014"] == 0
    assert found["acc_year:2013"] == found["acc_avg"] == found["acc_wg"]


# --- unlabeled texts -------------------------------------------------------------------------------


def test_unlabeled_texts_are_in_no_split_unless_asked_for(root: Path):
    dataset = loaded("amazon", root)
    assert dataset.manifest["split"].notna().all()
    assert not {"A008", "A009"} & set(dataset.domains)


@pytest.mark.parametrize(
    ("name", "split", "domains", "count"),
    [
        ("amazon", "test", {"A008"}, 10),
        ("amazon", "extra", {"A009"}, 10),
        ("civilcomments", "extra", {"unknown"}, 9),
    ],
)
def test_unlabeled_texts_follow_the_labeled_ones(
    name: str, split: str, domains: set[str], count: int, root: Path
):
    alone, dataset = loaded(name, root), loaded(name, root, unlabeled=split)
    rows = np.flatnonzero(dataset.manifest["split"] == "unlabeled")
    assert rows.tolist() == list(range(len(alone.manifest), len(alone.manifest) + count))
    assert set(dataset.manifest["domain"][rows]) == domains
    assert (dataset.targets_M[rows] == -1).all() and (dataset.targets_M[: rows[0]] >= 0).all()

    further = open_wilds(name, root, unlabeled=True)
    texts = np.asarray(getattr(further, "_text_array", None) or further._input_array, dtype=object)
    of_split = texts[further.split_array == further.split_dict[f"{split}_unlabeled"]]
    assert dataset.reader.text_M[rows].tolist() == of_split.tolist()  # type: ignore[attr-defined]
    assert dataset.reader(torch.tensor([0, int(rows[0])]))["input_ids"].shape[0] == 2  # one batch of both


def test_the_official_scores_do_not_change_with_unlabeled_texts(root: Path):
    alone, dataset = loaded("amazon", root), loaded("amazon", root, unlabeled="extra")
    rows = np.flatnonzero(alone.manifest["split"] == "test")
    logits_NC = torch.randn(len(rows), 5)
    assert alone.official is not None and dataset.official is not None
    assert dataset.official(logits_NC, rows) == pytest.approx(alone.official(logits_NC, rows), nan_ok=True)


def test_unlabeled_texts_that_the_benchmark_does_not_have_are_refused(root: Path):
    with pytest.raises(UsageError, match=r"no unlabeled examples 'val'; data.unlabeled may be extra"):
        loaded("civilcomments", root, unlabeled="val")
    with pytest.raises(UsageError, match="wilds:yelp"):
        loaded("yelp", root, unlabeled="extra")


# --- bad input -------------------------------------------------------------------------------------


def test_a_comment_without_text_names_its_row(tmp_path: Path):
    lines = file_of("civilcomments", tmp_path)
    table = lines.read_text().split("\n")
    column = table[5].split(",")
    lines.write_text("\n".join([*table[:5], ",".join([column[0], "", *column[2:]]), *table[6:]]))
    with pytest.raises(UsageError, match=r"row 3 of wilds:civilcomments has no text but nan \(1 such rows\)"):
        loaded("civilcomments", tmp_path)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (",train,,", r"row 1 of wilds:civilcomments has the toxicity 'nan' \(1 such rows\)"),
        (",dev,0.7,", r"row 1 of wilds:civilcomments has the split 'dev' \(1 such rows\)"),
    ],
)
def test_a_comment_without_a_label_or_a_split_names_its_row(now: str, message: str, tmp_path: Path):
    edited("civilcomments", tmp_path, lambda text: text.replace(",train,0.7,", now, 1))
    with pytest.raises(UsageError, match=message):
        loaded("civilcomments", tmp_path)


@pytest.mark.parametrize("name", SPECS)
def test_a_file_in_another_encoding_names_its_line(name: str, tmp_path: Path):
    file = file_of(name, tmp_path)
    file.write_bytes(file.read_bytes().replace("Ça".encode(), b"\xc7a"))
    with pytest.raises(
        UsageError, match=rf"line 2 of .*{file.name} is not UTF-8 \(byte 0xc7\); save the file"
    ):
        loaded(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "column"), [("civilcomments", "toxicity"), ("amazon", "reviewText"), ("yelp", "stars")]
)
def test_a_missing_column_is_named(name: str, column: str, tmp_path: Path):
    edited(name, tmp_path, lambda text: text.replace(column, "another", 1))
    with pytest.raises(UsageError, match=rf"wilds:{name} in .* cannot be read: .*{column}"):
        loaded(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("civilcomments", "is not complete in .*there is no folder civilcomments_v1.0"),
        ("amazon", "is not complete in .*there is no folder amazon_v2.1"),
        ("yelp", "Please download it manually.*datasets check wilds:yelp"),
    ],
)
def test_missing_files_are_named(name: str, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        loaded(name, tmp_path)
    with pytest.raises(UsageError, match=rf"no folder {tmp_path / 'no'}, where wilds:{name} is expected"):
        loaded(name, tmp_path / "no")


@pytest.mark.parametrize("name", ["civilcomments", "amazon", "yelp"])
def test_a_split_scheme_that_is_not_there_is_refused(name: str, root: Path):
    with pytest.raises(UsageError, match="colour"):
        loaded(name, root, split_scheme="colour")


def test_stars_out_of_range_name_their_row(tmp_path: Path):
    file = file_of("yelp", tmp_path)
    table = pd.read_csv(file, keep_default_na=False)
    table.loc[7, "stars"] = 6
    table.to_csv(file, index=False, quoting=2)
    with pytest.raises(UsageError, match=r"row 7 of wilds:yelp has the label -1, and its classes are 0 to 4"):
        loaded("yelp", tmp_path)
