"""SubpopBench's own evaluation, against scikit-learn and against the harness' metrics."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts.subpop import LAYOUTS, loaded
from sklearn import metrics

from dgharness.data.dataset import Dataset
from dgharness.data.groups import grouping
from dgharness.data.subpop.official import NAMES, evaluate
from dgharness.metrics.scores import score


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Writes the layout of a dataset where there is none, and loads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return partial(loaded, tmp_path)


def ece_of(p: np.ndarray, outcome: np.ndarray) -> float:
    edges = np.linspace(0, 1, 11)
    gap = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & ((p < high) | ((high == 1) & (p == 1)))
        if inside.any():
            gap += inside.mean() * abs(p[inside].mean() - outcome[inside].mean())
    return gap


@pytest.mark.parametrize("classes", [2, 3, 17])
def test_the_official_numbers_are_those_of_scikit_learn(classes):
    stream = np.random.default_rng(classes)
    y, a = stream.integers(0, classes, 900), stream.choice([0, 2], 900)  # no example has the value 1
    group = 3 * y + a
    logits = torch.from_numpy(stream.normal(size=(900, classes)) + 2 * np.eye(classes)[y]).float()
    p = logits.double().softmax(-1).numpy()
    predicted = (p[:, 1] >= 0.5).astype(int) if classes == 2 else p.argmax(1)
    report = metrics.classification_report(y, predicted, output_dict=True, zero_division=0.0)
    by_class = [report[str(c)] for c in range(classes)]
    by_group = [metrics.accuracy_score(y[group == g], predicted[group == g]) for g in np.unique(group)]
    confidence, outcome = (p[:, 1], y) if classes == 2 else (p.max(1), predicted == y)
    expected = {
        "accuracy": report["accuracy"],
        "worst_group_accuracy": min(by_group),
        "adjusted_accuracy": np.mean(by_group),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "worst_class_accuracy": min(of["recall"] for of in by_class),
        "precision_avg": report["macro avg"]["precision"],
        "precision_worst": min(of["precision"] for of in by_class),
        "f1_avg": report["macro avg"]["f1-score"],
        "f1_worst": min(of["f1-score"] for of in by_class),
        "auroc": metrics.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
        "auroc_worst_attribute": min(
            metrics.roc_auc_score(
                y[a == v], p[a == v][:, 1] if classes == 2 else p[a == v], multi_class="ovr"
            )
            for v in np.unique(a)
        ),
        "ece": ece_of(confidence, outcome),
    }
    assert tuple(expected) == NAMES
    assert evaluate(logits, y, group, values=3) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_predicted_and_does_not_occur_counts_in_the_averages_alone():
    logits = torch.eye(3)[[0, 1, 2, 1]] * 5
    y = np.array([0, 1, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = metrics.classification_report(y, [0, 1, 2, 1], output_dict=True, zero_division=0.0)
    found = evaluate(logits, y, y)
    assert found["f1_avg"] == pytest.approx(report["macro avg"]["f1-score"])
    assert found["precision_worst"] == 1 and found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert np.isnan(found["auroc"])


def test_a_probability_of_one_half_is_class_1_and_unknown_groups_count_in_none():
    found = evaluate(torch.zeros(4, 2), np.array([1, 1, 0, 0]), np.array([0, 0, 5, -1]))
    assert found["accuracy"] == 0.5
    assert (found["worst_group_accuracy"], found["adjusted_accuracy"]) == (0.0, 0.5)


def test_a_network_that_diverged_has_no_numbers():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    assert all(np.isnan(value) for value in evaluate(logits, np.array([0, 1]), np.array([0, 1])).values())


@pytest.mark.parametrize("name", [name.removeprefix("subpop:") for name in LAYOUTS])
def test_worst_and_adjusted_are_the_worst_and_the_mean_of_the_harness_own_groups(name, load):
    dataset = load(name)
    rows = np.flatnonzero((dataset.manifest["split"] == "test").to_numpy())[:2000]
    groups, index = grouping(dataset.manifest, dataset.groups), torch.from_numpy(rows)
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(len(rows), dataset.task.outputs, generator=stream)
    assert dataset.official is not None and dataset.official_metric in NAMES
    official = dataset.official(logits, rows)
    harness = score(
        logits,
        dataset.targets_M[index],
        dataset.domain_M[index],
        dataset.domains,
        groups.group_M[index],
        groups.names,
    )
    assert official["worst_group_accuracy"] == pytest.approx(harness.wga.acc, abs=1e-6)
    assert official["adjusted_accuracy"] == pytest.approx(harness.acc_group_mean, abs=1e-6)
    assert official["accuracy"] == pytest.approx(harness.acc_avg, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("waterbirds", "worst_group_accuracy"),
        ("living17", "accuracy"),
        ("cxr-multisite", "auroc_worst_attribute"),
        ("mimic-notes", "auroc_worst_attribute"),
    ],
)
def test_each_dataset_is_judged_as_in_the_overall_table_of_subpopbench(name, metric, load):
    assert load(name).official_metric == metric
