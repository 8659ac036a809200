"""Groups: a partition in training, overlapping where the metrics ask for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dgharness.data.groups import grouping, metric_groups
from dgharness.errors import UsageError
from dgharness.metrics.scores import score


@pytest.fixture
def comments() -> pd.DataFrame:
    stream = np.random.default_rng(0)

    def column() -> pd.Categorical:
        return pd.Categorical.from_codes(stream.integers(0, 2, 200), pd.Index(["0", "1"]))

    return pd.DataFrame({name: column() for name in ("y", "male", "female", "black")})


def test_an_example_counts_in_every_overlapping_group_that_it_belongs_to(comments: pd.DataFrame):
    groups = metric_groups(comments, ["male+female+black", "y"])
    assert groups.names == (*("male,y=0", "male,y=1", "female,y=0", "female,y=1", "black,y=0", "black,y=1"),)
    for number, name in enumerate(groups.names):
        identity, _, label = name.partition(",y=")
        members = (comments[identity] == "1") & (comments["y"] == label)
        assert groups.group_M[:, number].tolist() == members.tolist()
        assert groups.counts_G[number] == members.sum()


def test_without_overlap_the_metrics_have_the_partition_of_training(comments: pd.DataFrame):
    apart, trained = metric_groups(comments, ["y", "male"]), grouping(comments, ["y", "male"])
    assert apart.names == trained.names and torch.equal(apart.group_M, trained.group_M)
    assert apart.counts_G.sum() == len(comments)


def test_accuracies_of_overlapping_groups_are_those_counted_one_by_one(comments: pd.DataFrame):
    groups = metric_groups(comments, ["y", "male+female+black"])
    targets_N = torch.from_numpy(comments["y"].cat.codes.to_numpy(np.int64, copy=True))
    logits_NC = torch.randn(len(comments), 2, generator=torch.Generator().manual_seed(0))
    scores = score(logits_NC, targets_N, torch.zeros_like(targets_N), ["all"], groups.group_M, groups.names)
    correct_N = (logits_NC.argmax(-1) == targets_N).double()
    expected = [correct_N[groups.group_M[:, g]].mean().item() for g in range(len(groups))]
    torch.testing.assert_close(scores.groups.acc_K.tolist(), expected)
    assert scores.wga.acc == pytest.approx(min(expected))
    assert scores.groups.count_K.sum() > len(comments)


def test_an_empty_overlapping_group_is_nan_and_never_the_worst(comments: pd.DataFrame):
    comments["white"] = pd.Categorical(["0"] * len(comments), ["0", "1"])
    groups = metric_groups(comments, ["male+white"])
    targets_N = torch.zeros(len(comments), dtype=torch.long)
    scores = score(torch.eye(2)[targets_N], targets_N, targets_N, ["all"], groups.group_M, groups.names)
    assert scores.groups.acc_K[1].isnan() and scores.groups.count_K[1] == 0
    assert scores.wga.name == "male"


@pytest.mark.parametrize("yes", ["1", "1.0", "True", "yes"])
@pytest.mark.parametrize("turned", [False, True])
def test_members_are_those_of_whom_the_column_says_yes_whatever_the_order_of_its_categories(yes, turned):
    no = {"1": "0", "1.0": "0.0", "True": "False", "yes": "no"}[yes]
    levels = [yes, no] if turned else [no, yes]
    table = pd.DataFrame({"male": pd.Categorical([yes, no, None, yes], levels)})
    assert metric_groups(table, ["male+male"]).group_M[:, 0].tolist() == [True, False, False, True]


@pytest.mark.parametrize("values", [["0"], ["False"], ["no"], [None]])
def test_nobody_belongs_where_a_column_says_no_or_nothing(values):
    table = pd.DataFrame({"male": pd.Categorical(["0", "1"]), "black": pd.Categorical(values * 2)})
    assert metric_groups(table, ["male+black"]).group_M.int().tolist() == [[0, 0], [1, 0]]


def test_of_other_words_the_last_category_is_the_group():
    table = pd.DataFrame({"a": pd.Categorical(["apart", "member"]), "b": pd.Categorical(["x", "x"])})
    assert metric_groups(table, ["a+b"]).group_M.int().tolist() == [[0, 1], [1, 1]]


def test_algorithms_get_no_overlapping_groups(comments: pd.DataFrame):
    with pytest.raises(UsageError, match="cannot group by 'male\\+female'"):
        grouping(comments, ["male+female"])
