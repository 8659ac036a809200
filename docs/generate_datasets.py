"""Writes docs/datasets.md from the code: ``make docs``.

What a dataset says of itself comes from its docstring and from loading it: every dataset is loaded from a
tiny copy of its official layout (tests/data/layouts, so PYTHONPATH=tests/data), the one that the tests named
on the page load. With --check nothing is written, and a page that is not what the code says ends with 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generate_algorithms import table
from layouts import Layout, layouts

from dgharness import registry
from dgharness.config import compose
from dgharness.training.prepare import load_dataset

PAGE = Path(__file__).parent / "datasets.md"
FAMILIES = {
    "WILDS": "wilds:",
    "DomainBed": "domainbed:",
    "Subpopulations": "subpop:",
    "Generated, with a dial": "synthetic:",
    "Robustness suites": "corrupted cifar- imagenet-",
    "Your own": "csv parquet folder",
    "Digits": "",
}
EXTRAS = {"transformers": "text", "torch_geometric": "graph", "pyBigWig": "genomics"}
HEAD = """\
# Datasets

<!-- Generated from the code by make docs; edit the datasets and not this page. -->

Every dataset that comes with `dgharness`, as `dgharness datasets` lists them. Nothing is ever downloaded
behind your back: `dgharness datasets check NAME --root DIR` says which files are expected where, what is
missing, and what is wrong with what is there. The data root is `--data-root DIR`, else `DGHARNESS_DATA`,
else `./data`.

Each row of the tables is held to tests that run on a tiny copy of the official layout, through the code
that reads the real files, in [tests/data/test_every_dataset.py](../tests/data/test_every_dataset.py):

- **loads**: `test_it_loads[NAME]`: manifest, inputs and labels; twice the same digest;
- **splits**: `test_it_splits[NAME]`: its own protocol, and leave-one-domain-out where it has two domains;
- **trains**: `test_it_trains_and_is_scored_by_its_official_metric[NAME]`: five updates, to a finished run;
- **official metric**: that run logs `test/official/METRIC`; where a test is named, it holds the number to
  the original evaluation or to a recomputation in float64. "none" is a dataset whose benchmark has no
  evaluation of its own: the accuracy of the harness is what it asks for.

They prove that the code reads, splits, trains and scores what has this layout; they do not prove a published
number. The same data under another protocol is another name, and reports never put two names in one column.
"""


def facts(name: str, layout: Layout, folder: Path) -> dict[str, Any]:
    """What there is to say about one dataset, once it was loaded from its tiny copy."""
    root = folder / name.replace(":", "-")
    root.mkdir()
    layout.write(root)
    argument = f":{layout.argument.format(root=root)}" if layout.argument else ""
    dataset = load_dataset(
        compose(sets=[*layout.sets, f"data.name={name}{argument}"]).data, str(root), trial_seed=0
    )
    entry = registry.entry("datasets", name)
    spec = registry.load("datasets", name)
    return {
        "name": name,
        "written": f"{name}:{spec.argument}" if spec.argument else name,
        "summary": entry.summary,
        "layout": spec.layout,
        "task": dataset.task.name,
        "model": dataset.defaults.model,
        "protocol": dataset.defaults.protocol,
        "official": dataset.official_metric,
        "replicates": dataset.replicates,
        "proof": layout.proof,
        "extra": ", ".join(f"[{EXTRAS[module]}]" for module in layout.needs if module in EXTRAS),
    }


def family_of(name: str) -> str:
    return next(
        family
        for family, prefixes in FAMILIES.items()
        if not prefixes or any(name.startswith(prefix) for prefix in prefixes.split())
    )


def row(found: Mapping[str, Any]) -> list[str]:
    official = f"`{found['official']}`" if found["official"] else "none"
    if found["proof"]:
        file, _, test = found["proof"].partition("::")
        official += f" ([{test.partition('[')[0]}](../tests/data/{file}))"
    if found["replicates"]:
        official += f", {found['replicates']} replicates"
    return [
        f"`{found['written']}`",
        found["summary"],
        found["task"],
        found["protocol"],
        found["model"],
        "yes",
        "yes",
        "yes",
        official,
        found["extra"],
    ]


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    header = ["dataset", "what it is", "task", "protocol", "model", "loads", "splits", "trains"]
    header += ["official metric", "extra"]
    parts = [HEAD]
    for family in FAMILIES:
        members = [each for each in found if family_of(each["name"]) == family]
        if members:
            parts += [f"## {family}\n", table(header, [row(each) for each in members])]
    parts += ["## Where the files belong\n"]
    parts += [
        f"### {each['name']}\n\n```text\n{each['layout'].strip()}\n```\n" for each in found if each["layout"]
    ]
    return "\n".join(parts)


def generate() -> str:
    """The page as the code and the layouts say it."""
    known = layouts()
    names = [entry.name for entry in registry.entries("datasets") if entry.source == "built-in"]
    if missing := [name for name in names if name not in known]:
        sys.exit(f"no layout in tests/data/layouts for {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        return page([facts(name, known[name], Path(folder)) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is old")
    args = parser.parse_args()
    text = generate()
    if not args.check:
        PAGE.write_text(text)
        print(f"written: {PAGE}")
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit(f"{PAGE} is not what the code says; write it anew with make docs")


if __name__ == "__main__":
    main()
