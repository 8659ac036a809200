"""docs/algorithms.md is what the code says, and says what a reader needs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from dgharness import registry
from dgharness.errors import UsageError

DOCS = Path(__file__).parents[1] / "docs"
BUILT_IN = [
    entry for entry in registry.entries("algorithms", include_unverified=True) if entry.source == "built-in"
]
COSTS = {"measured": "somewhere", "cost": {"erm": 1.0, "irmv1": 1.04}}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_algorithms", DOCS / "generate_algorithms.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(of: str, **changed: object) -> dict[str, object]:
    return {**registry.show("algorithms", of), **changed}


def test_the_page_is_what_the_code_says(generator: ModuleType) -> None:
    assert (DOCS / "algorithms.md").read_text() == generator.generate(), "write it anew with make docs"


def test_every_algorithm_was_measured(generator: ModuleType) -> None:
    measured = json.loads(generator.COST.read_text())["cost"]
    assert {entry.name for entry in BUILT_IN} == set(measured), "run benchmarks/cost.py --to " + str(
        generator.COST
    )
    assert measured["erm"] == 1 and all(cost > 0.5 for cost in measured.values())


def test_an_algorithm_is_described_by_its_docstring_and_its_hyperparameters(generator: ModuleType) -> None:
    text = generator.section(facts("irmv1"), COSTS["cost"])
    assert text.startswith("### irmv1\n\nAsks that scaling the logits")
    for part in (
        "**paper**: Arjovsky",
        "**equation**: `min_Phi",
        "**agrees with**: DomainBed's IRM",
        "**needs**",
    ):
        assert f"- {part}" in text
    assert "- **rung, trust**: 1, core" in text and "- **cost / ERM**: 1.04" in text
    assert re.search(r"\| `weight` \| `100.0` \| log-uniform \[0\.1, 100000\] \| Weight of the penalty", text)


def test_reconstructions_stand_apart_under_a_banner(generator: ModuleType) -> None:
    made = [facts("erm"), facts("irmv1"), facts("vrex", name="doubtful", trust="unverified")]
    text = generator.page(made, {}, COSTS)
    apart = text.index("## Unverified")
    assert text.index("### irmv1") < apart < text.index(generator.BANNER) < text.index("### doubtful")
    assert re.search(r"\| \[`doubtful`\]\(#doubtful\) \| Others \| 1 \| unverified \| not measured \|", text)
    without = generator.page(made[:2], {}, COSTS)
    assert "## Unverified" not in without


def test_a_bar_in_a_cell_does_not_end_it(generator: ModuleType) -> None:
    assert generator.table(["a"], [["|x|"]]) == "| a |\n| --- |\n| \\|x\\| |\n"


def test_the_same_code_gives_the_same_page(generator: ModuleType) -> None:
    made = [facts("vrex"), facts("erm"), facts("coral")]
    assert generator.page(made, {}, COSTS) == generator.page(made, {}, COSTS)


def test_every_broken_entry_is_named(generator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def show(group: str, name: str) -> dict[str, object]:
        if name in ("coral", "vrex"):
            raise UsageError(f"algorithm {name!r} (built-in) cannot be used: it is broken")
        return {"name": name}

    monkeypatch.setattr(registry, "show", show)
    with pytest.raises(UsageError, match=r"cannot be written: algorithm 'coral' .*; algorithm 'vrex' "):
        generator.entries("algorithms")
    left = [found["name"] for found in generator.entries("algorithms", skip_broken=True)]
    assert "erm" in left and "vrex" not in left


def test_every_family_names_algorithms_that_there_are(generator: ModuleType) -> None:
    named = " ".join(generator.FAMILIES.values()).split()
    assert len(named) == len(set(named)) and set(named) <= {entry.name for entry in BUILT_IN}


def test_a_core_algorithm_has_a_published_number_that_was_reproduced_here():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for table in (DOCS.parent / "benchmarks" / "results").glob("*.md")
        for line in table.read_text().splitlines()
        if line.startswith("|")
    ]
    core = {entry.name for entry in BUILT_IN if entry.trust == "core"}
    assert core and core <= {cell for row in rows if "yes" in row for cell in row}
