"""docs/datasets.md is what the code says, and every test that it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgharness import registry

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "datasets.md"


@pytest.mark.slow
def test_the_page_is_what_the_code_says(tmp_path: Path):
    for module in ("transformers", "torch_geometric", "pyBigWig"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, str(PROJECT / "docs" / "generate_datasets.py"), "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(PROJECT / "tests" / "data")},
    )
    assert done.returncode == 0, done.stderr


def test_every_built_in_dataset_has_a_row():
    rows = set(re.findall(r"^\| `([^`]+)`", PAGE.read_text(), re.MULTILINE))
    built_in = [entry.name for entry in registry.entries("datasets") if entry.source == "built-in"]
    missing = [
        name for name in built_in if not any(row == name or row.startswith(f"{name}:") for row in rows)
    ]
    assert not missing


def test_every_test_that_it_names_exists():
    named = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", PAGE.read_text())
    assert named
    for test, file in named:
        assert f"def {test}(" in (PROJECT / file).read_text(), f"{file} has no {test}"
