"""Every metric in every slice, against scikit-learn and scipy; what an interval of the worst slice covers."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch
from metrics_cases import DOMAINS, GROUPS, N, predictions

from dgharness.metrics.bootstrap import share_draws, worst_share_interval
from dgharness.metrics.every import every_metric
from dgharness.metrics.regression import score_regression
from dgharness.metrics.scores import score
from dgharness.predictions import Predictions

NAN = float("nan")


def number(table: pd.DataFrame, kind: str, name: str, metric: str) -> float:
    (value,) = table.query("slice == @kind and name == @name and metric == @metric")["value"]
    return float(value)


def cut(found: Predictions) -> Iterator[tuple[str, str, Predictions]]:
    """(kind, name, examples) of every slice that has examples."""
    yield "all", "", found
    for k, name in enumerate(DOMAINS[:3]):
        yield "domain", name, found.where(found.domain_N == k)
    for k, name in enumerate(GROUPS[:3]):
        member = found.group == k if found.group.dim() == 1 else found.group[:, k]
        yield "group", name, found.where(member)


def reference_of_classes(found: Predictions) -> dict[str, float]:
    y, p = found.targets.numpy(), found.outputs_NC.double().softmax(1).numpy()
    # Arg-max of what is tied: the first, as torch takes it of log-probabilities.
    predicted = found.outputs_NC.log_softmax(1).argmax(1).numpy()
    present, n_classes = np.unique(y), p.shape[1]
    options = {"labels": present, "average": "macro", "zero_division": 0}
    recall = sk.recall_score(y, predicted, labels=present, average=None)
    precision = sk.precision_score(y, predicted, labels=present, average=None, zero_division=0)
    pairs = [abs(one - other) for k, one in enumerate(recall) for other in recall[:k]]
    rest, rank = range(1, 2) if n_classes == 2 else range(n_classes), ranking(p)
    apart = [c for c in rest if 0 < (y == c).sum() < len(y)]
    brier = (p - np.eye(n_classes)[y]) ** 2
    expected = {
        "acc": sk.accuracy_score(y, predicted),
        "loss": sk.log_loss(y, p, labels=range(n_classes)),
        "balanced_acc": recall.mean(),
        "precision_macro": sk.precision_score(y, predicted, **options),
        "recall_macro": sk.recall_score(y, predicted, **options),
        "f1_macro": sk.f1_score(y, predicted, **options),
        "worst_class_precision": precision.min(),
        "worst_class_f1": sk.f1_score(y, predicted, labels=present, average=None, zero_division=0).min(),
        "class_difference": sum(pairs),
        "auroc": np.mean([sk.roc_auc_score(y == c, rank[:, c]) for c in apart]) if apart else NAN,
        "auprc": np.mean(
            [sk.average_precision_score(y == c, rank[:, c]) for c in rest if (y == c).any()] or NAN
        ),
        "brier": brier[:, 1].mean() if n_classes == 2 else brier.sum(1).mean(),
        "ece": gap(p.max(1), predicted == y, np.ceil(p.max(1) * 15).clip(1, 15)),
    }
    if n_classes == 2:
        in_bin = np.digitize(p[:, 1], np.linspace(0, 1, 11)[1:-1])  # closed on the left, as np.histogram
        expected |= {
            "ece_binary": gap(p[:, 1], y, in_bin),
            "tpr": np.mean(predicted[y == 1]) if (y == 1).any() else NAN,
            "fpr": np.mean(predicted[y == 0]) if (y == 0).any() else NAN,
            "prevalence": y.mean(),
        }
    return expected


def ranking(p: np.ndarray) -> np.ndarray:
    """The order of the probabilities, where those that differ by rounding alone are equal."""
    return np.log(p).round(9)


def gap(p: np.ndarray, outcome: np.ndarray, in_bin: np.ndarray) -> float:
    kept = [in_bin == b for b in np.unique(in_bin)]
    return sum(k.mean() * abs(outcome[k].mean() - p[k].mean()) for k in kept)


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_every_metric_of_every_slice_is_that_of_scikit_learn(classes):
    found = predictions(outputs=classes)
    table = every_metric(found)
    for kind, name, part in cut(found):
        expected = reference_of_classes(part)
        got = {metric: number(table, kind, name, metric) for metric in expected}
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True), (kind, name)


@pytest.mark.parametrize("classes", [2, 4])
def test_every_metric_of_every_class_is_that_of_scikit_learn(classes):
    found = predictions(outputs=classes)
    y, predicted = found.targets.numpy(), found.outputs_NC.log_softmax(1).argmax(1).numpy()
    p, table = found.outputs_NC.double().softmax(1).numpy(), every_metric(found)
    rank = ranking(p)
    report = sk.classification_report(y, predicted, target_names=found.classes, output_dict=True)
    for c, name in enumerate(found.classes):
        rows = table.query("slice == 'class' and name == @name").set_index("metric")
        expected = {
            "acc": report[name]["recall"],
            "recall": report[name]["recall"],
            "precision": report[name]["precision"],
            "f1": report[name]["f1-score"],
            "auroc": sk.roc_auc_score(y == c, rank[:, c]),
            "auprc": sk.average_precision_score(y == c, rank[:, c]),
            "loss": sk.log_loss(y[y == c], p[y == c], labels=range(classes)),
        }
        assert rows["value"].to_dict() == pytest.approx(expected, rel=1e-6)
        assert set(rows["count"]) == {report[name]["support"]}


def test_numbers_are_those_of_scipy_in_every_slice_with_unknown_targets_left_out():
    found = predictions("regression", outputs=1)
    table = every_metric(found)
    for kind, name, part in cut(found):
        known = ~part.targets.isnan()
        y, predicted = part.targets[known].numpy(), part.outputs_NC[known, 0].numpy()
        expected = {
            "mse": sk.mean_squared_error(y, predicted),
            "mae": sk.mean_absolute_error(y, predicted),
            "pearson": scipy.stats.pearsonr(y, predicted)[0],
            "spearman": scipy.stats.spearmanr(y, predicted)[0],
        }
        got = {metric: number(table, kind, name, metric) for metric in expected}
        assert got == pytest.approx(expected, rel=1e-6), (kind, name)


@pytest.mark.parametrize("constant", ["outputs_NC", "targets"])
def test_what_does_not_vary_has_no_correlation(constant):
    found = predictions("regression", outputs=1)
    getattr(found, constant)[found.domain_N == 1] = 0.1
    table = every_metric(found)
    for metric in ("pearson", "spearman"):
        assert math.isnan(number(table, "domain", "b", metric))
        assert not math.isnan(number(table, "domain", "a", metric))


def test_labels_have_the_average_precision_of_scikit_learn_over_known_targets():
    found = predictions("multilabel", outputs=4)
    table = every_metric(found)
    for kind, name, part in cut(found):
        known = ~part.targets.isnan().numpy()
        each = [
            sk.average_precision_score(part.targets[k, label], part.outputs_NC[k, label])
            for label, k in enumerate(known.T)
        ]
        assert number(table, kind, name, "ap_macro") == pytest.approx(np.mean(each))
        if kind == "all":
            found_T = [number(table, "class", str(label), "auprc") for label in range(4)]
            assert found_T == pytest.approx(each)


def test_a_task_of_another_kind_is_as_right_as_its_own_judge_says():
    found = dataclasses.replace(predictions("multilabel", outputs=4), task="tokens")
    table = every_metric(found, bootstrap=50)
    assert number(table, "all", "", "acc") == pytest.approx(float(found.right_N.nanmean()))
    assert set(table["metric"]) & {"ap_macro", "ece", "balanced_acc"} == set()


def test_overlapping_groups_are_measured_each_by_itself():
    member_NG = torch.rand(N, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    member_NG[:, 3] = False
    found = predictions(group=member_NG, train_count_G=None)
    table = every_metric(found, bootstrap=100)
    for slice_, name, part in cut(found):
        alone = every_metric(part).query("slice == 'all'").set_index("metric")["value"].to_dict()
        rows = table[(table["slice"] == slice_) & (table["name"] == name)]
        got = rows.set_index("metric")["value"].to_dict()
        assert got == pytest.approx(alone, nan_ok=True)
    shown = table.query("metric == 'acc_group_mean'").iloc[0]
    assert shown["value"] > 0 and math.isnan(shown["low"])  # groups that share examples vary together


def test_an_empty_group_is_nan_with_count_zero_and_a_domain_that_is_not_there_has_no_row():
    for task in ("classification", "regression", "multilabel"):
        table = every_metric(predictions(task), bootstrap=20)
        empty = table.query("slice == 'group' and name == 'empty'")
        assert len(empty) and empty[["value", "low", "high"]].isna().all(axis=None)
        assert (empty["count"] == 0).all()
        assert "not here" not in set(table["name"])


def test_nothing_at_all_is_nan():
    for task in ("classification", "regression", "multilabel"):
        table = every_metric(predictions(task, n=0), bootstrap=20)
        assert table["value"].isna().all() and (table["count"] == 0).all()


def test_nan_outputs_leave_no_number_that_they_enter():
    found = predictions(outputs=3)
    found.outputs_NC[found.domain_N == 1] = torch.nan
    table = every_metric(found, bootstrap=20)
    assert table.query("slice == 'all' and metric != 'prevalence'")["value"].isna().all()
    assert table.query("slice == 'domain' and name == 'b'")["value"].isna().all()
    alone = every_metric(found.where(found.domain_N == 0)).query("slice == 'all'")["value"].to_list()
    assert table.query("slice == 'domain' and name == 'a'")["value"].to_list() == pytest.approx(alone)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_one_nan_output_leaves_neither_averages_nor_a_worst_slice_that_it_is_in(task):
    found = predictions(task, outputs=3)
    found.outputs_NC[int((found.group == 0).nonzero()[0])] = torch.nan
    summaries = every_metric(found, bootstrap=20).query("slice in ('average', 'worst')")
    assert len(summaries) >= 5 and summaries[["value", "low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_the_order_of_the_examples_does_not_matter(task):
    found = predictions(task)
    shuffled = found.where(torch.randperm(N, generator=torch.Generator().manual_seed(0)))
    one, other = (every_metric(part).sort_values(["slice", "metric", "name"]) for part in (found, shuffled))
    assert one["value"].to_list() == pytest.approx(other["value"].to_list(), nan_ok=True)


def test_accuracies_of_a_partition_sum_up_to_the_average():
    table = every_metric(predictions()).query("metric == 'acc'")
    for kind in ("domain", "class"):
        rows = table[table["slice"] == kind]
        assert np.average(rows["value"], weights=rows["count"]) == pytest.approx(
            number(table, "all", "", "acc")
        )
        assert rows["count"].sum() == N


@pytest.mark.parametrize("least", [1, 70])
def test_averages_and_worst_slices_are_those_that_are_logged(least):
    found = predictions(min_group_size=least)
    slices = (found.domain_N, found.domains, found.group, found.groups)
    scores = score(
        found.outputs_NC,
        found.targets,
        *slices,
        class_names=found.classes,
        min_group_size=least,
        train_count_G=found.train_count_G,
    )
    flat, table = scores.flat("test"), every_metric(found)
    summaries = table.query("slice in ('average', 'worst')").set_index("metric")["value"].to_dict()
    overall = table.query("slice == 'all'").set_index("metric")["value"].to_dict()
    summaries |= {"nll": overall.pop("loss"), **overall}
    assert summaries.pop("acc") == summaries["acc_avg"] and len(summaries) == 19
    for metric, value in summaries.items():
        assert value == pytest.approx(flat[f"test/{metric}"], nan_ok=True), metric
    (worst,) = table.query("metric == 'wga'").to_dict("records")
    assert (worst["name"], worst["count"]) == (scores.wga.name, scores.wga.count)


def test_worst_errors_are_those_that_are_logged():
    found = predictions("regression")
    slices = (found.domain_N, found.domains, found.group, found.groups)
    flat = score_regression(found.outputs_NC, found.targets, *slices).flat("test")
    table = every_metric(found, bootstrap=200)
    for _, row in table.query("slice in ('average', 'worst') and metric != 'mae_avg'").iterrows():
        assert row["value"] == pytest.approx(flat[f"test/{row['metric']}"])
        assert row["low"] < row["value"] < row["high"]


def test_the_adjusted_average_is_that_of_wilds_for_waterbirds():
    stream = np.random.default_rng(0)
    y, place, right = (stream.integers(0, 2, 400) for _ in range(3))
    counts = torch.tensor([3498, 184, 56, 1057])  # land on land, land on water, water on land, on water
    # As WILDS: the sum over groups of accuracy times training count, over the training size.
    group = 2 * y + place
    expected = sum(right[group == g].mean() * int(counts[g]) for g in range(4)) / 4795
    outputs_NC = torch.nn.functional.one_hot(torch.from_numpy(np.where(right, y, 1 - y)), 2).float()
    found = predictions(
        outputs=2, n=400, outputs_NC=outputs_NC, targets=torch.from_numpy(y),
        group=torch.from_numpy(group), train_count_G=counts,
    )  # fmt: skip
    assert number(every_metric(found), "average", "", "acc_adjusted") == pytest.approx(expected)


def test_intervals_are_the_same_for_the_same_seed_and_hold_the_value():
    one, again, other = (every_metric(predictions(), bootstrap=300, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one["low"].equals(other["low"])
    rows = one.dropna(subset=["low", "value"])
    assert {"all", "domain", "group", "class", "average", "worst"} == set(rows["slice"])
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert every_metric(predictions())[["low", "high"]].isna().all(axis=None)


def test_the_interval_of_an_accuracy_is_about_that_of_the_binomial():
    drawn_BK = share_draws(torch.tensor([80.0]), torch.tensor([100]), 20000, [0])
    low, high = np.quantile(drawn_BK, [0.025, 0.975])
    exact = scipy.stats.binomtest(80, 100).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.01)


@pytest.mark.parametrize(("accuracies", "n"), [([0.8] * 20, 30), ([0.5, 0.8, 0.9], 30), ([0.95] * 20, 100)])
def test_the_interval_of_the_worst_slice_covers_its_true_accuracy(accuracies, n):
    truth, counts = torch.tensor(accuracies), torch.full((len(accuracies),), n)
    draw, rounds, covered, by_least = torch.Generator().manual_seed(0), 150, 0, 0
    for seed in range(rounds):
        right_K = torch.binomial(counts.float(), truth, generator=draw)
        drawn_BK = share_draws(right_K, counts, 400, [seed])
        low, high = worst_share_interval(drawn_BK, right_K / n)
        covered += low <= min(accuracies) <= high
        ends = drawn_BK.amin(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        by_least += bool(ends[0] <= min(accuracies) <= ends[1])
    assert covered >= 0.93 * rounds  # 95 % within what 150 rounds can tell
    if len(set(accuracies)) == 1:  # the smallest of each draw never reaches so high
        assert by_least < 0.1 * rounds


def test_a_group_that_is_all_wrong_has_an_interval_that_says_how_little_is_known():
    found = predictions(outputs=2, group=torch.tensor([0] * 3 + [1] * (N - 3)))
    found.outputs_NC[:3] = torch.nn.functional.one_hot(1 - found.targets[:3], 2).float()
    (worst,) = every_metric(found, bootstrap=2000).query("metric == 'wga'").to_dict("records")
    assert (worst["name"], worst["value"], worst["count"], worst["low"]) == ("g0", 0, 3, 0)
    assert worst["high"] > 0.4


def test_no_warning_is_given_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every_metric(predictions(), bootstrap=10)
