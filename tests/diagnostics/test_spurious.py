"""Strength of spurious correlations: against scikit-learn, closed forms, and data of known correlation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import matthews_corrcoef, normalized_mutual_info_score

from dgharness.config import DataConfig
from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.protocols import Splits, leave_one_domain_out
from dgharness.data.tasks import classification
from dgharness.diagnostics.spurious import majority_rule, phi, rule_accuracy, strengths
from dgharness.training.prepare import load_dataset


def of_table(columns, classes=("n", "p")):
    manifest = pd.DataFrame(columns)
    for name in manifest:
        manifest[name] = manifest[name].astype("category")
    reader = InMemory(torch.zeros(len(manifest), 1))
    return Dataset("table", manifest, reader, classification(len(classes)), (1,))


@pytest.fixture
def colored():
    dataset = load_dataset(DataConfig(name="colored-digits"), "", 0)
    return dataset, leave_one_domain_out(dataset, ["-90%"], 0)


def row(table, attribute, part, domain=None):
    found = table[(table["attribute"] == attribute) & (table["part"] == part)]
    found = found if domain is None else found[found["domain"] == domain]
    assert len(found) == 1
    return found.iloc[0]


def test_the_correlation_is_normalised_mutual_information(colored):
    dataset, splits = colored
    table = strengths(dataset, splits)
    rows = np.concatenate(list(splits.rows["train"].values()))
    y, color = (dataset.manifest[name].cat.codes.to_numpy()[rows] for name in ("y", "color"))
    pooled = row(table, "color", "train")
    assert pooled["spurious_correlation"] == pytest.approx(normalized_mutual_info_score(color, y))
    assert pooled["phi"] == pytest.approx(matthews_corrcoef(color, y))
    assert pooled["examples"] == len(rows)


def test_colour_is_right_as_often_as_it_was_drawn_and_turns_round_in_the_target(colored):
    table = strengths(*colored)
    shares = {
        domain: row(table, "color", part, domain)["rule_accuracy"]
        for part, domain in (("train domain", "+90%"), ("train domain", "+80%"), ("target", "-90%"))
    }
    # 480 digits each: three standard errors of a share of 0.9 are 0.041, of 0.8 they are 0.055.
    assert shares == {
        "+90%": pytest.approx(0.9, abs=0.041),
        "+80%": pytest.approx(0.8, abs=0.055),
        "-90%": pytest.approx(0.1, abs=0.041),
    }
    assert row(table, "color", "target")["phi"] < 0 < row(table, "color", "train")["phi"]


def test_a_value_that_training_lacks_counts_as_unseen():
    dataset = of_table(
        {"y": list("npnpnp"), "place": list("aabbcc"), "domain": ["d", "d", "d", "t", "t", "t"]}
    )
    rows = {"d": np.array([0, 1, 2])}
    table = strengths(dataset, Splits({"train": rows, "test": {"t": np.array([3, 4, 5])}}))
    target = row(table, "place", "target")
    assert target["unseen"] == pytest.approx(2 / 3)
    # Of the target only the example in place b has a rule, which says n; it is p.
    assert target["rule_accuracy"] == 0
    assert np.isnan(row(table, "place", "train")["unseen"])


def test_without_attributes_the_domain_is_still_looked_at():
    dataset = of_table({"y": list("npnn"), "domain": list("abab")})
    splits = Splits({"train": {"a": np.array([0, 2]), "b": np.array([1])}, "test": {"b": np.array([3])}})
    table = strengths(dataset, splits)
    assert table["attribute"].tolist() == ["domain"]
    assert row(table, "domain", "train")["spurious_correlation"] == pytest.approx(1)


def test_an_attribute_of_a_single_value_has_no_correlation_rather_than_none():
    dataset = of_table({"y": list("npnp"), "place": list("aaaa"), "domain": list("ddtt")})
    splits = Splits({"train": {"d": np.array([0, 1])}, "test": {"t": np.array([2, 3])}})
    pooled = row(strengths(dataset, splits), "place", "train")
    assert np.isnan(pooled["spurious_correlation"]) and np.isnan(pooled["phi"])


def test_unknown_values_and_labels_are_left_out_of_the_rule():
    a, y = np.array([0, 0, 0, -1, 1, 1]), np.array([2, 2, 1, 0, -1, 0])
    rule = majority_rule(a, y, 3)
    assert rule.tolist() == [2, 0, -1]
    assert rule_accuracy(rule, a, y) == pytest.approx(3 / 4)
    assert rule_accuracy(rule, np.array([2]), np.array([0])) is None
    assert phi(np.array([0, 1, 2]), np.array([0, 1, 0])) is None
