"""Label shift: distances between distributions against scipy, and of known tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.protocols import Splits
from dgharness.data.tasks import classification, multilabel, regression
from dgharness.diagnostics.label_shift import jensen_shannon, kullback_leibler, label_shift, total_variation
from dgharness.diagnostics.trained import Trained
from dgharness.errors import NotApplicable
from dgharness.figures import as_png


def trained_on(y, domain, task, train, test):
    manifest = pd.DataFrame({"y": y, "domain": pd.Categorical(domain)})
    dataset = Dataset("table", manifest, InMemory(torch.zeros(len(manifest), 1)), task, (1,))
    splits = Splits({"train": train, "test": test})

    def unused(rows):
        raise AssertionError("labels need no network")

    return Trained("run", "last", dataset, splits, 0, None, unused, unused)


@pytest.fixture
def classes():
    y = pd.Categorical(list("aab" + "abb" + "cbb"), list("abc"))
    domain = list("111" + "222" + "333")
    train = {"1": np.arange(3), "2": np.arange(3, 6)}
    return trained_on(y, domain, classification(3), train, {"3": np.arange(6, 9)})


def test_distances_between_distributions_are_those_of_scipy():
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(5), size=2)
    assert kullback_leibler(p, q) == pytest.approx(entropy(p, q))
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q) ** 2)
    assert total_variation(p, q) == pytest.approx(np.abs(p - q).sum() / 2)
    assert jensen_shannon(p, p) == pytest.approx(0, abs=1e-15)


def test_every_domain_is_held_against_the_pooled_training_rows(classes):
    found = label_shift(classes)
    target = found.table.set_index("domain").loc["3"]
    assert target[["share a", "share b", "share c"]].tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert target["total_variation"] == pytest.approx(0.5)  # the pool is 1/2, 1/2, 0
    assert target["kullback_leibler"] == math.inf
    first = found.table.set_index("domain").loc["1"]
    assert first["total_variation"] == pytest.approx(1 / 6)
    assert found.metrics == {"label-shift/total_variation/3": pytest.approx(0.5)}
    assert any("classes that the training domains lack" in finding for finding in found.findings)
    assert as_png(found.figure())[:4] == b"\x89PNG"


def test_numbers_are_apart_by_the_wasserstein_distance_and_unknown_ones_are_left_out():
    y = np.array([0.0, 2.0, np.nan, 0.0, 2.0, 5.0, 7.0], dtype=np.float32)
    domain = list("1112233")
    train = {"1": np.arange(3), "2": np.arange(3, 5)}
    found = label_shift(trained_on(y, domain, regression(), train, {"3": np.arange(5, 7)}))
    table = found.table.set_index("domain")
    assert table.loc["1", "examples"] == 2
    assert table.loc["3", "wasserstein"] == pytest.approx(5)
    assert table.loc["3", "wasserstein_scaled"] == pytest.approx(5)  # the pool has standard deviation 1
    assert table.loc["1", "wasserstein"] == 0
    assert as_png(found.figure())[:4] == b"\x89PNG"


def test_several_labels_of_one_example_are_not_applicable(classes):
    with pytest.raises(NotApplicable, match="needs one class or number of each example"):
        label_shift(
            trained_on(
                classes.dataset.manifest["y"],
                list(classes.dataset.manifest["domain"]),
                multilabel(2),
                classes.splits.rows["train"],
                classes.splits.rows["test"],
            )
        )
