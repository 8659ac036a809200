"""The four kinds of subpopulation shift as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import normalized_mutual_info_score

from dgharness.commands.listing import show_dataset
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import OFFICIAL
from dgharness.data.shift import described, imbalance, shift_measures, spurious_correlation
from dgharness.data.tasks import regression

WATERBIRDS = {"land": (3498, 56), "water": (184, 1057)}  # land birds and water birds of its training split


@pytest.fixture
def with_columns(table: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """A dataset of one domain with these columns, lists of values."""

    def make(**columns: list[str]) -> Dataset:
        size = len(next(iter(columns.values())))
        base = table(all=size)
        plain = base.manifest.drop(columns=["time", "colour"])
        categories = {name: pd.Categorical(values) for name, values in columns.items() if name != "split"}
        if "split" in columns:
            categories["split"] = pd.Categorical(columns["split"], OFFICIAL)
        return replace(base, manifest=plain.assign(**categories))

    return make


def test_spurious_correlation_is_normalised_mutual_information():
    stream = np.random.default_rng(0)
    y = stream.integers(0, 4, 500)
    a = np.where(stream.random(500) < 0.6, y, stream.integers(0, 3, 500))
    assert spurious_correlation(a, y) == pytest.approx(normalized_mutual_info_score(y, a), abs=1e-12)
    assert spurious_correlation(y, a) == pytest.approx(spurious_correlation(a, y), abs=1e-12)


def test_rows_where_one_of_the_two_is_unknown_count_nowhere():
    known = spurious_correlation(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert spurious_correlation(np.array([0, 0, 1, -1, 1]), np.array([0, 1, 1, 0, -1])) == known
    assert spurious_correlation(np.array([-1, -1]), np.array([0, 1])) is None


def test_imbalance_is_zero_at_balance_and_grows_to_one():
    assert imbalance(np.arange(6)) == pytest.approx(0, abs=1e-12)
    shares = [imbalance(np.array([0] * count + [1])) for count in (1, 10, 100, 10_000)]
    assert shares == sorted(shares) and shares[-1] > 0.99
    assert imbalance(np.zeros(5, dtype=int)) is None


def test_the_training_split_of_waterbirds(with_columns):
    rows = [
        (bird, place)
        for place, counts in WATERBIRDS.items()
        for bird, count in zip(("land", "water"), counts, strict=True)
        for _ in range(count)
    ]
    measures = shift_measures(with_columns(y=[y for y, _ in rows], place=[place for _, place in rows]))
    share = np.array([3682, 1113]) / 4795
    assert measures["class_imbalance"] == pytest.approx(1 + (share * np.log2(share)).sum())
    y, place = (np.array([row[i] for row in rows]) for i in (0, 1))
    found = measures["attributes"]["place"]
    assert found["spurious_correlation"] == pytest.approx(normalized_mutual_info_score(y, place))
    assert found["attribute_imbalance"] == pytest.approx(1 - 0.8250, abs=1e-4)


def test_a_value_that_training_has_with_other_classes_alone_is_unseen_with_its_class(with_columns):
    dataset = with_columns(
        y=["0", "1", "1", "0", "0", "1", "0"],
        place=["a", "b", "a", "b", "a", "b", None],
        split=["train"] * 3 + ["test"] * 4,
    )
    found = shift_measures(dataset)["attributes"]["place"]
    assert found["attribute_generalization"] == 0 and found["unseen"] == []
    assert found["unseen_with_class"] == pytest.approx(1 / 3)
    assert "unseen with class 0.333" in described(shift_measures(dataset))[1]


def test_only_training_examples_are_measured_and_values_new_at_test_are_named(with_columns):
    dataset = with_columns(
        y=["0", "1", "0", "1", "0", "0", "0"],
        place=["a", "b", "a", "b", "c", "a", "d"],
        split=["train"] * 4 + ["test"] * 2 + ["val"],
    )
    measures = shift_measures(dataset)
    assert measures["class_imbalance"] == 0
    assert measures["attributes"]["place"] == {
        "spurious_correlation": pytest.approx(1.0),
        "attribute_imbalance": 0,
        "attribute_generalization": 0.5,
        "unseen": ["c"],
        "unseen_with_class": 0.5,
    }
    assert shift_measures(dataset, split="test")["attributes"]["place"]["unseen"] == []


def test_a_value_that_nobody_noted_in_training_is_not_new_at_test(with_columns):
    dataset = with_columns(y=["0", "1"], place=[None, "a"], split=["train", "test"])
    assert shift_measures(dataset)["attributes"]["place"]["attribute_generalization"] is None


def test_without_a_split_every_example_counts_and_nothing_is_said_of_a_test(with_columns):
    found = shift_measures(with_columns(y=["0", "0", "1"], place=["a", "b", "a"]))
    assert "unseen" not in found["attributes"]["place"]


def test_without_attributes_or_classes_there_is_nothing_to_measure(with_columns):
    assert shift_measures(with_columns(y=["0", "1"])) == {}
    numbers = replace(with_columns(y=["0", "1"], place=["a", "b"]), task=regression())
    assert shift_measures(numbers) == {}


def test_many_new_values_are_counted():
    found = {"attribute_generalization": 1.0, "unseen": list("abcde")}
    line = described({"class_imbalance": 0.0, "attributes": {"breed": found}})[1]
    assert line == "breed: attribute generalization 1, unseen in training a, b, c and 2 more"


def test_datasets_show_tells_the_shift(capsys):
    show_dataset("colored-digits", "", as_json=False)
    assert "color: spurious correlation 0.0207, attribute imbalance" in capsys.readouterr().out
    show_dataset("colored-digits", "", as_json=True)
    shift = json.loads(capsys.readouterr().out)["shift"]
    assert shift["attributes"]["color"]["spurious_correlation"] == pytest.approx(0.0207, abs=1e-4)
    assert 0 < shift["class_imbalance"] < 1e-3
