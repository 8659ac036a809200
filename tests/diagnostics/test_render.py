"""A diagnosis in a terminal: numbers that a person reads, and none that is not so."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.render import as_csv, as_text


def text_of(**columns):
    """The cells of a table as a terminal shows them, heads first."""
    text = as_text(Diagnosis("x", "Numbers", "Caption.", pd.DataFrame(columns)), "d")
    head, _, *lines = text.splitlines()[1:-2]
    return [re.split(r"\s{2,}", line.strip()) for line in (head, *lines)]


def test_errors_stand_beside_their_numbers_and_a_column_has_as_many_decimals():
    columns = {
        "part": ["a", "b"],
        "all_examples": [1914.67, 12.0],
        "risk": [0.25, -0.0004],
        "s.e. of risk": [0.0123, np.nan],
        "distance": [3.0, 0.00001],
    }
    assert text_of(**columns) == [
        ["part", "all examples", "risk ± s.e.", "distance"],
        ["a", "1915", "0.2500 ± 0.0123", "3"],
        ["b", "12", "-0.0004", "1e-05"],
    ]
    assert "s.e. of risk" in as_csv(Diagnosis("x", "Numbers", "Caption.", pd.DataFrame(columns)))


def test_counts_have_no_decimals_even_where_one_is_missing():
    assert text_of(n=[3.0, 2.0, np.nan], many=[2e7, 12.0, 0.0]) == [
        ["n", "many"],
        ["3", "20000000"],
        ["2", "12"],
        ["n/a", "0"],
    ]


def test_a_share_of_one_has_the_decimals_of_the_shares_below_it():
    assert text_of(v=[1.0, 0.0143], all_of_them=[1.0, 1.0])[1:] == [["1.000", "1"], ["0.014", "1"]]


def test_no_number_but_zero_is_shown_as_zero():
    assert text_of(v=[1.05, 0.0049, 0.0]) == [["v"], ["1.050"], ["0.005"], ["0.000"]]
    assert text_of(v=[2.17e-6, 1.0e-9]) == [["v"], ["2.17e-06"], ["1e-09"]]
    assert text_of(v=[1e30, -0.0]) == [["v"], ["1e+30"], ["0"]]


def test_errors_are_neither_lost_nor_made_of_rounding():
    noise = {"v": [50.0, 60.0], "s.e. of v": [0.004, 1e-17]}
    assert text_of(**noise)[1:] == [["50.00 ± <0.01"], ["60.00 ± 0.00"]]
    small = {"v": [0.5, 0.7], "s.e. of v": [1e-6, 0.01]}
    assert text_of(**small)[1:] == [["0.500 ± <0.001"], ["0.700 ± 0.010"]]
    of_zero = {"v": [0.0, 0.0], "s.e. of v": [0.05, 1e-5]}
    assert text_of(**of_zero)[1:] == [["0.00 ± 0.05"], ["0.00 ± <0.01"]]


def test_a_row_of_another_quantity_keeps_its_own_digits():
    table = pd.DataFrame({"quantity": ["runs", "R²"], "raw": [99, 0.9523], "probit": [99, 1.0]}, dtype=object)
    assert text_of(**table)[1:] == [["runs", "99", "99"], ["R²", "0.952", "1"]]


def test_names_that_users_gave_stay_as_they_are():
    table = pd.DataFrame({"idd_js to my_art": [0.5], "class_imbalance": [0.5]})
    text = as_text(Diagnosis("x", "Numbers", "Caption.", table), "d")
    assert "my_art" in text and "class_imbalance" not in text
