"""The protocols: DomainBed's split lists, the dataset's own split, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest

from dgharness.data.colored_digits import colored_digits
from dgharness.data.coloring import ColoringOptions
from dgharness.data.protocols import PROTOCOLS, default_targets, leave_one_domain_out, official
from dgharness.errors import UsageError


def domainbed_seed(*arguments):
    return int(hashlib.md5(str(arguments).encode("utf-8")).hexdigest(), 16) % (2**31)


def domainbed_keys(n, size, seed):
    """The two key lists of DomainBed's split of ``size`` examples, ``n`` of them first."""
    keys = list(range(size))
    np.random.RandomState(seed).shuffle(keys)
    return keys[:n], keys[n:]


def domainbed_split(size, number, trial_seed, is_target):
    """(in, out) positions of domain ``number``, written out as DomainBed's training script goes."""
    out, inner = domainbed_keys(int(size * 0.2), size, domainbed_seed(trial_seed, number))
    if is_target:
        _, again = domainbed_keys(0, len(inner), domainbed_seed(trial_seed, number))
        inner = [inner[key] for key in again]
    return inner, out


@pytest.mark.parametrize("trial_seed", [0, 1, 2])
@pytest.mark.parametrize("targets", [["c"], ["a", "d"]])
def test_the_splits_are_domainbeds_lists(table, trial_seed, targets):
    sizes = {"a": 57, "b": 101, "c": 40, "d": 23}
    dataset = table(**sizes)
    splits = leave_one_domain_out(dataset, targets, trial_seed)
    for number, (name, size) in enumerate(sizes.items()):
        inner, out = domainbed_split(size, number, trial_seed, name in targets)
        first_row = dataset.rows_of(name)[0]
        kept, apart = ("test", "test_holdout") if name in targets else ("train", "val")
        assert (splits.rows[kept][name] - first_row).tolist() == inner
        assert (splits.rows[apart][name] - first_row).tolist() == out


def test_domainbeds_lists_hold_at_the_sizes_of_a_real_run():
    dataset = colored_digits.load(None, None, 0, ColoringOptions())
    splits = leave_one_domain_out(dataset, ["-90%"], 5)
    inner, out = domainbed_split(599, 0, 5, False)
    assert splits.rows["train"]["+90%"].tolist() == inner
    assert splits.rows["val"]["+90%"].tolist() == out
    assert (splits.rows["test"]["-90%"] - 1198).tolist() == domainbed_split(599, 2, 5, True)[0]


def test_every_row_is_in_exactly_one_split(table):
    splits = leave_one_domain_out(table(a=31, b=22, c=50), ["b"], 0)
    rows = np.concatenate([part for split in splits.rows.values() for part in split.values()])
    assert sorted(rows) == list(range(103))
    assert (splits.train_domains, splits.targets) == (("a", "c"), ("b",))


def test_the_order_in_which_targets_are_named_does_not_matter(table):
    dataset = table(a=30, b=30, c=30)
    one, other = (leave_one_domain_out(dataset, names, 0) for names in (["c", "a"], ["a", "c"]))
    assert one.targets == ("a", "c") and one.digest == other.digest


def test_the_digests_tell_seeds_targets_and_splits_apart(table):
    dataset = table(a=30, b=30, c=30)
    splits = [leave_one_domain_out(dataset, [name], seed) for name in "bc" for seed in (0, 1)]
    assert len({each.digest for each in splits}) == 4
    assert len(splits[0].digests) == len(set(splits[0].digests.values())) == 4
    assert all(len(digest) == 16 for digest in [splits[0].digest, *splits[0].digests.values()])
    assert splits[0].digests["test"] != splits[1].digests["test"]


def test_another_holdout_keeps_another_part_apart(table):
    splits = leave_one_domain_out(table(a=40, b=40), ["b"], 0, holdout=0.5)
    assert len(splits.rows["train"]["a"]) == len(splits.rows["test_holdout"]["b"]) == 20


@pytest.mark.parametrize(
    ("targets", "holdout", "message"),
    [
        (["sketchh"], 0.2, "table has no domain 'sketchh'; did you mean 'sketch'"),
        (["art", "sketch"], 0.2, "no domain of table is left for training"),
        (["art", "art"], 0.2, "a target is named twice: art, art"),
        ([], 0.2, "no target named; hold out at least one of art, sketch"),
        (["art"], 1.0, r"protocol\.holdout=1\.0 must lie between 0 and 1"),
        (["art"], 0.1, "domain 'sketch' of table has 9 examples, too few"),
    ],
)
def test_mistakes_are_named(table, targets, holdout, message):
    with pytest.raises(UsageError, match=message):
        leave_one_domain_out(table(art=30, sketch=9), targets, 0, holdout)


def test_the_protocol_is_found_by_name():
    assert PROTOCOLS["leave-one-domain-out"] is leave_one_domain_out


@pytest.fixture
def split_table(table):
    """Makes a dataset whose rows of every domain are dealt to the given splits in turn; None is unknown."""

    def make(*splits, **sizes):
        dataset = table(**sizes)
        dealt = [splits[row % len(splits)] for size in sizes.values() for row in range(size)]
        dataset.manifest["split"] = pd.Categorical(dealt)
        return dataset

    return make


def test_the_official_split_is_taken_as_it_stands(split_table):
    dataset = split_table("test", "train", "val", "train", None, a=10, b=5)
    splits = official(dataset, ["a", "b"], trial_seed=3)
    rows = {split: {name: r.tolist() for name, r in found.items()} for split, found in splits.rows.items()}
    assert rows == {
        "train": {"a": [1, 3, 6, 8], "b": [11, 13]},
        "val": {"a": [2, 7], "b": [12]},
        "test": {"a": [0, 5], "b": [10]},
    }
    assert splits.digest == official(dataset, ["b", "a"], trial_seed=4).digest


def test_a_domain_is_where_its_rows_are_and_nothing_is_held_back(split_table):
    dataset = split_table("train", "val", "id_test", a=9, b=9, c=6)
    of_c = dataset.domain_M == 2
    dataset.manifest["split"] = np.where(of_c, "test", dataset.manifest["split"].astype(str))
    splits = official(dataset, default_targets("official", dataset), 0)
    assert (splits.train_domains, splits.targets) == (("a", "b"), ("c",))
    assert list(splits.rows) == ["train", "val", "test", "id_test"]


def test_the_split_is_no_attribute_for_methods(split_table):
    dataset = split_table("train", "val", "test", a=9)
    assert set(dataset.attributes_M) == {"time", "colour"}


@pytest.mark.parametrize(
    ("splits", "targets", "message"),
    [
        (
            ("train", "val", "test"),
            ["a"],
            "is tested on a, b by its official split, and the target given is a",
        ),
        (("train", "val"), ["a"], "has no row of test; the protocol official needs train, val and test"),
        (("test", "test"), ["a"], "has no row of train and none of val"),
        (("train", "valid", "test"), ["a"], "holds 'valid'; the protocol official knows train, val, test"),
    ],
)
def test_what_is_wrong_with_an_official_split_is_named(split_table, splits, targets, message):
    with pytest.raises(UsageError, match=message):
        official(split_table(*splits, a=9, b=9), targets, 0)


def test_without_a_split_column_there_is_nothing_official(table):
    with pytest.raises(UsageError, match="table has no split of its own"):
        official(table(a=9, b=9), ["a"], 0)


def test_targets_that_are_not_named_are_the_last_domain_or_the_official_ones(split_table):
    dataset = split_table("train", "val", "test", a=9, b=9)
    assert default_targets("leave-one-domain-out", dataset) == ("b",)
    assert default_targets("official", dataset) == ("a", "b")


@pytest.fixture
def partly_unlabeled(table):
    dataset = table(a=10, b=10, c=10)
    split = np.array(["train"] * 10 + ["val"] * 5 + ["test"] * 5 + ["unlabeled"] * 10)
    manifest = dataset.manifest.assign(split=split)
    manifest.loc[20:, "y"] = np.nan
    return dataclasses.replace(dataset, manifest=manifest)


def test_unlabeled_rows_are_a_split_of_their_own(partly_unlabeled):
    splits = official(partly_unlabeled, ["b"], 0)
    assert splits.rows["unlabeled"]["c"].tolist() == list(range(20, 30))
    assert splits.train_domains == ("a",) and splits.targets == ("b",)


def test_unlabeled_rows_take_no_part_in_leave_one_domain_out(partly_unlabeled):
    splits = leave_one_domain_out(partly_unlabeled, ["b"], 0)
    assert splits.train_domains == ("a",)
    assert all(rows.max() < 20 for of in splits.rows.values() for rows in of.values())


@pytest.mark.parametrize(
    ("examples", "said"), [(1, "has 1 example, .*; add examples$"), (2, "or raise protocol")]
)
def test_a_remedy_is_named_only_where_it_helps(table, examples, said):
    with pytest.raises(UsageError, match=said):
        leave_one_domain_out(table(a=9, b=9, solo=examples), ["a"], 0, holdout=0.2)
