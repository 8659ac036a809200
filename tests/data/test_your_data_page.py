"""docs/your-data.md: its commands do what the page says, on a table with the columns that it speaks of."""

from __future__ import annotations

import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dgharness.cli import app
from dgharness.config import compose
from dgharness.errors import UsageError
from dgharness.training.prepare import prepare

sys.path.insert(0, str(Path(__file__).parent))
from layouts.table import features

PAGE = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()


@pytest.fixture
def patients(tmp_path: Path, monkeypatch) -> pd.DataFrame:
    """The page's patients.csv and patients.parquet, where its commands look for them."""
    monkeypatch.chdir(tmp_path)
    table = features().assign(
        domain=[f"hospital {number}" for number in (1, 2, 3) * 40],
        hospital=["north", "south", "west"] * 40,
        died=np.arange(120) // 2 % 2,
    )
    table.drop(columns="split").to_csv("patients.csv", index=False)
    table.to_parquet("patients.parquet")
    return table


def settings(command: str) -> dict[str, list[str]]:
    """Options of a command and what they are given."""
    words = shlex.split(command)
    return {option: [b for a, b in pairwise(words) if a == option] for option in words}


@pytest.mark.parametrize("command", re.findall("dgharness train -d (?:csv|parquet):p.*", PAGE))
def test_a_command_about_a_table_runs(patients, command):
    given = settings(command)
    target = {"protocol": {"targets": given["--target"]}} if "--target" in given else {}
    prepared = prepare(compose(sets=[*given["--set"], f"data.name={given['-d'][0]}"], flags=target))
    assert prepared.splits.train_domains


def test_names_parted_by_commas_are_a_list(patients):
    config = compose(
        sets=[
            "data.name=csv:patients.csv",
            "data.groups=y, sex",
            "data.train_groups=y,domain",
            "data.features=x1,x3",
            "data.attributes=sex,died",
            "data.classes=healthy,ill,dead",
        ]
    )
    dataset = prepare(config).dataset
    assert (config.data.groups, config.data.train_groups) == (("y", "sex"), ("y", "domain"))
    assert dataset.input_shape == (2,) and {"sex", "died"} <= set(dataset.attributes_M)
    assert dataset.task.outputs == 3


def test_a_column_of_numbers_that_should_be_groups_is_told_how_to_be(patients):
    sets = ["data.name=csv:patients.csv", "data.groups=y,died"]
    with pytest.raises(UsageError, match=r"cannot group by 'died'; .* --set data\.attributes=died$"):
        prepare(compose(sets=sets))
    assert prepare(compose(sets=[*sets, "data.attributes=died"]))


def test_the_pages_own_dataset_is_checked_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"# three_winds\.py\n.*?(?=```)", PAGE, re.DOTALL)
    (tmp_path / "three_winds.py").write_text(code[0])
    for command in ("check", "show"):
        said = CliRunner().invoke(
            app, ["datasets", command, "three-winds", "--plugin", "three_winds.py:three_winds"]
        )
        assert (said.exit_code, "north" in said.output) == (0, True)


def test_the_name_of_a_target_may_hold_a_comma():
    assert compose(sets=["protocol.targets=Berlin, Mitte"]).protocol.targets == ("Berlin, Mitte",)


def test_a_column_whose_name_has_a_comma_is_named_in_a_list(patients):
    patients.rename(columns={"x1": "height, cm"}).to_csv("patients.csv", index=False)
    sets = [re.search('data.features=[^"`]*', PAGE)[0].replace("age", "x2"), "data.name=csv:patients.csv"]
    assert prepare(compose(sets=sets)).dataset.input_shape == (2,)
