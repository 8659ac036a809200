"""Writes docs/algorithms.md from the code: ``python docs/generate_algorithms.py`` (or ``make docs``).

What a method says of itself comes from its docstring and its hyperparameters, what it costs from
benchmarks/results/cost.json, which ``python benchmarks/cost.py --to benchmarks/results/cost.json`` measures.
With --check nothing is written, and a page that is not what the code says ends with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgharness import registry
from dgharness.errors import UsageError

DOCS = Path(__file__).parent
PAGE = DOCS / "algorithms.md"
COST = DOCS.parent / "benchmarks" / "results" / "cost.json"

FAMILIES = {
    "Baselines and worst case": "erm group-dro",
    "Invariant risk": (
        "irmv1 irmv2 birm sparse-irm irm-games vrex mm-rex irmx pair eqrm fishr iga and-mask "
        "ib-erm ib-irm cil"
    ),
    "Matching distributions": (
        "coral mmd mk-mmd causirl-coral causirl-mmd sinkhorn cod support-alignment nci "
        "dann cdann dann-grl cdann-grl"
    ),
    "Heads and representations": "drm nw-head ridg center-loss par smos ddg",
    "Meta-learning and distillation": "meta-dmoe",
}
OTHER = "Others"
TRUST = {
    "core": "numerically equal to a reference, and a published number was reproduced here",
    "verified": "tested against the formula, and against the reference where there is one",
    "unverified": "reconstructed from incomplete sources",
}
HEAD = """\
# Algorithms

<!-- Generated from the code by make docs; edit the methods and not this page. -->

Every algorithm that comes with `dgharness`, as `dgharness algorithms` lists them and
`dgharness algorithms show NAME` shows them. A hyperparameter is set with `--set hp.NAME=VALUE`; what has a
search space is drawn from it by `--hparams-seed` above 0 and by `sweep --hparams N`. Learning rate, weight
decay, batch size and dropout are settings of the run and not of a method.

The rung says what kind of program a method is ([add an algorithm](add-an-algorithm.md)): 1, a penalty on
the mean risk; 2, an objective, perhaps with parameters or a memory; 3, an algorithm with networks,
optimizers or an update of its own.
"""
BANNER = """\
> **These are reconstructions.** The papers' text or code was not at hand in full, so a detail may differ
> from what was published; each says what it follows. `dgharness algorithms` lists them with `--unverified`
> only, a sweep of `all` leaves them out, and a report that holds one says so. Their numbers do not speak
> for the papers.
"""
OWN = """\
## Your own, and DomainBed's

A method of yours is one file ([add an algorithm](add-an-algorithm.md)), tried out with
`--plugin FILE.py:NAME`. An algorithm class written for DomainBed, or for a fork of it (SWAD, MIRO and their
like), runs as it is:

```sh
dgharness train --algorithm domainbed:my_algorithms.py:MyAlgorithm --set hp.my_weight=0.1
dgharness sweep -a domainbed:my_algorithms.py:ERM,domainbed:my_algorithms.py:MyAlgorithm
```

A module does as well, as in `domainbed:package.module:Class`. Learning rate, weight decay and batch size
reach the class from the settings of the run, any other entry of its `hparams` from `hp.NAME`, beside
DomainBed's common ones. It brings a network of its own, and so stands in a table with others that do.
Checkpoints hold its `state_dict`, its optimizers and schedulers, and the numbers, strings and tensors among
its attributes; NumPy arrays, iterators and all else are not saved, and a class that trains on with them
does not resume exactly.
"""


def entries(group: str, skip_broken: bool = False) -> list[dict[str, Any]]:
    """Everything about the built-in entries of a group. A UsageError names every one that is broken."""
    found, broken = [], []
    for entry in registry.entries(group, include_unverified=True):
        if entry.source != "built-in":
            continue
        try:
            found.append(registry.show(group, entry.name))
        except UsageError as error:
            broken.append(str(error))
    if broken and not skip_broken:
        raise UsageError(f"the page cannot be written: {'; '.join(broken)}")
    return found


def page(
    algorithms: Sequence[Mapping[str, Any]],
    others: Mapping[str, Sequence[Mapping[str, Any]]],
    costs: Mapping[str, Any],
) -> str:
    """The whole page."""
    by_family: dict[str, list[Mapping[str, Any]]] = {}
    for facts in algorithms:
        by_family.setdefault(family_of(facts["name"]), []).append(facts)
    ordered = [(name, by_family[name]) for name in (*FAMILIES, OTHER) if name in by_family]
    trusted = [(name, [f for f in facts if f["trust"] != "unverified"]) for name, facts in ordered]
    unverified = [facts for _, members in ordered for facts in members if facts["trust"] == "unverified"]
    parts = [HEAD, "## Overview\n", overview(ordered, costs["cost"]), cost_note(costs), trust_note()]
    for name, members in trusted:
        if members:
            parts += [f"## {name}\n", *(section(facts, costs["cost"]) for facts in members)]
    if unverified:
        parts += ["## Unverified\n", BANNER, *(section(facts, costs["cost"]) for facts in unverified)]
    for title, members in others.items():
        if members:
            parts += [f"## {title}\n", *(section(facts, {}) for facts in members)]
    return "\n".join([*parts, OWN])


def family_of(name: str) -> str:
    return next((family for family, names in FAMILIES.items() if name in names.split()), OTHER)


def overview(families: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], costs: Mapping[str, float]) -> str:
    """One row per algorithm."""
    rows = []
    for family, members in families:
        for facts in members:
            name, tier = facts["name"], facts["trust"]
            link = f"[`{name}`](#{name})"
            rows.append([link, family, str(facts["rung"]), tier, cost(name, costs), facts["summary"]])
    header = ["algorithm", "family", "rung", "trust", "cost / ERM", "what it does"]
    return table(header, rows)


def cost(name: str, costs: Mapping[str, float]) -> str:
    return f"{costs[name]:.2f}" if name in costs else "not measured"


def cost_note(costs: Mapping[str, Any]) -> str:
    return (
        "The cost is that of one update relative to one of ERM's, all measured in one run of "
        f"`benchmarks/cost.py` ({costs['measured']}). It depends on the model: what works on features or "
        "outputs weighs less the larger the network is. Where players take turns, it is the turns' mean.\n"
    )


def trust_note() -> str:
    tiers = "; ".join(f"*{tier}*, {meaning}" for tier, meaning in TRUST.items())
    return f"Trust: {tiers}.\n"


def section(facts: Mapping[str, Any], costs: Mapping[str, float]) -> str:
    """Everything about one entry."""
    lines = [f"### {facts['name']}\n", f"{facts['summary']}\n"]
    rows = [
        ("paper", facts["paper"]),
        ("equation", f"`{facts['equation']}`" if facts["equation"] else ""),
        ("agrees with", facts["agrees_with"]),
        ("needs", facts["needs"]),
        ("rung, trust", f"{facts['rung']}, {facts['trust']}" if facts["rung"] else facts["trust"]),
        ("cost / ERM", cost(facts["name"], costs) if costs else ""),
        ("also called", ", ".join(f"`{alias}`" for alias in facts["aliases"])),
        ("default TTA method", f"`{facts['tta']}`" if facts["tta"] else ""),
    ]
    lines += [f"- **{label}**: {value}" for label, value in rows if value]
    if fields := facts["hyperparameters"]:
        header = ["hyperparameter", "default", "search space", "what it is"]
        lines += ["", table(header, [list(hyperparameter(field)) for field in fields]).rstrip("\n")]
    return "\n".join(lines) + "\n"


def hyperparameter(field: Mapping[str, Any]) -> Iterator[str]:
    yield f"`{field['name']}`"
    yield "unset" if field["default"] is None else f"`{json.dumps(field['default'], default=str)}`"
    yield field["space"] or ""
    yield field["help"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def generate(skip_broken: bool = False) -> str:
    """The page as the code and the measured costs say it."""
    others = {"Test-time methods": "tta", "Annotators": "annotators"}
    return page(
        entries("algorithms", skip_broken),
        {title: entries(group, skip_broken) for title, group in others.items()},
        json.loads(COST.read_text()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is old")
    parser.add_argument("--skip-broken", action="store_true", help="leave out what cannot be loaded")
    args = parser.parse_args()
    try:
        text = generate(args.skip_broken)
    except UsageError as error:
        sys.exit(f"error: {error}")
    if not args.check:
        PAGE.write_text(text)
        print(f"written: {PAGE}")
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit(f"{PAGE} is not what the code says; write it anew with make docs")


if __name__ == "__main__":
    main()
