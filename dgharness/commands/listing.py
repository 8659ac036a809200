"""Lists and pages about registered parts, for the command line."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from dgharness import registry

BESIDE = ("tta", "annotators")  # shown like algorithms
RUNGS = {1: "a penalty", 2: "an objective", 3: "an algorithm with its own update"}


def list_entries(group: str, pattern: str, unverified: bool, plugins: Sequence[str], as_json: bool) -> None:
    """One line per entry; broken ones with the reason."""
    for plugin in plugins:
        registry.add_plugin(plugin)
    entries = registry.entries(group, include_unverified=unverified, pattern=pattern)
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
        return
    if not entries:
        print(f"no {registry.NOUNS[group]} matches {pattern!r}", file=sys.stderr)
    width = max((len(entry.name) for entry in entries), default=0)
    tiers = max((len(entry.trust) for entry in entries), default=0)
    for entry in entries:
        aliases = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
        about = _plain(entry.name, entry.summary) if entry.status == "ok" else entry.status
        source = "" if entry.source == "built-in" else f"  [{entry.source}]"
        tier = f"{entry.trust:<{tiers}}  " if tiers else ""
        print(f"{entry.name:<{width}}  {tier}{about}{aliases}{source}".rstrip())
    more = 0 if unverified else len(registry.entries(group, include_unverified=True, pattern=pattern))
    if more > len(entries):
        print(f"{more - len(entries)} more are unverified; --unverified lists them too", file=sys.stderr)
    if group == "algorithms" and pattern == "*":
        beside = [f"{registry.NOUNS[other]}s: {', '.join(sorted(_registered(other)))}" for other in BESIDE]
        print("; ".join(beside), file=sys.stderr)


def _registered(group: str) -> set[str]:
    return {entry.name for entry in registry.entries(group, include_unverified=True)}


def show_entry(group: str, name: str, plugins: Sequence[str], as_json: bool) -> None:
    """Everything about one entry."""
    for plugin in plugins:
        registry.add_plugin(plugin)
    if group == "algorithms" and name not in _registered(group):
        group = next((other for other in BESIDE if name in _registered(other)), group)
    facts = registry.show(group, name)
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    _print_row(f"{facts['name']}:", _plain(facts["name"], facts["summary"]))
    rung = facts.get("rung")
    rows = [
        ("paper", facts.get("paper")),
        ("equation", facts.get("equation")),
        ("agrees with", facts.get("agrees_with")),
        ("needs", facts.get("needs")),
        ("rung", rung and f"{rung} of 3, {RUNGS[rung]}"),
        ("default TTA", facts.get("tta")),
        ("trust tier", facts.get("trust")),
        ("source", f"{facts['source']}, {facts['module']}:{facts['attr']}"),
        ("also called", ", ".join(facts.get("aliases") or ())),
    ]
    for label, value in rows:
        if value not in (None, "", "none"):
            _print_row(label, str(value))
    _print_fields("options" if group == "datasets" else "hyperparameters", facts.get("hyperparameters") or [])


def show_dataset(
    name: str, data_root: str, as_json: bool, sets: Sequence[str] = (), plugins: Sequence[str] = ()
) -> None:
    """Options of a dataset, and its examples by domain, class and group."""
    from dgharness.commands.checking import looked_at
    from dgharness.data.groups import metric_groups
    from dgharness.data.shift import described, shift_measures
    from dgharness.step import TokenShape
    from dgharness.training.prepare import load_dataset

    for plugin in plugins:
        registry.add_plugin(plugin)
    spec_name, argument = registry.split_argument("datasets", name)
    if registry.load("datasets", spec_name).argument and not argument:
        show_entry("datasets", spec_name, [], as_json)  # what it is; its examples lie at a path
        return
    config = looked_at(name, data_root, sets)
    dataset = load_dataset(config.data, config.execution.data_root, config.trial_seed)
    shape = dataset.input_shape
    tokens = shape.length if isinstance(shape, TokenShape) else 0
    groups = metric_groups(dataset.manifest, dataset.groups)
    columns = {"domains": "domain", "splits": "split", "classes": "y"}
    if dataset.task.name == "regression":
        del columns["classes"]
    counts: dict[str, dict[Any, int]] = {
        **{
            part: dataset.manifest[column].value_counts(sort=False).to_dict()
            for part, column in columns.items()
            if column in dataset.manifest
        },
        "groups": {group: count for group, count in zip(groups.names, groups.counts_G.tolist(), strict=True)},
    }
    about = registry.entry("datasets", spec_name)
    facts: dict[str, Any] = {
        "name": dataset.name,
        "summary": _plain(about.name, about.summary),
        "paper": about.paper,
        "protocol": dataset.defaults.protocol,
        "toy": dataset.toy,
        "examples": len(dataset.manifest),
        "input": [tokens] if tokens else list(shape),
        "digest": dataset.digest,
        **({"targets": _numbers(dataset.targets_M)} if "classes" not in columns else {}),
        **{part: {str(key): int(value) for key, value in table.items()} for part, table in counts.items()},
        "shift": shift_measures(dataset),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print(f"{dataset.name}{' (a toy)' if dataset.toy else ''}: {len(dataset.manifest)} examples")
    for label in ("summary", "paper", "protocol"):
        if facts[label]:
            _print_row(label, facts[label])
    _print_row("input", f"at most {tokens} tokens" if tokens else " x ".join(map(str, shape)))
    _print_row("digest", dataset.digest)
    if "targets" in facts:
        _print_row("targets", "numbers, " + ", ".join(f"{k} {v:.3g}" for k, v in facts["targets"].items()))
    for part in counts:
        _print_row(part, " · ".join(f"{key} {value}" for key, value in facts[part].items()))
    for line in described(facts["shift"]):
        _print_row("shift", line)
    _print_fields("options", registry.show("datasets", spec_name).get("hyperparameters") or [])


def _numbers(targets_M: Any) -> dict[str, float]:
    known = targets_M[~targets_M.isnan()].double()
    return {"mean": known.mean().item(), "standard deviation": known.std().item()}


def print_config(algorithm: str, preset: str) -> None:
    """The settings with their values and help, as YAML; a line that is commented out changes nothing.

    What a random draw would fill in, and what a dataset or an algorithm gives a default of its own, is
    commented out: written out it would count as given.
    """
    from pydantic import BaseModel

    from dgharness.config import PROFILE, RunConfig, compose
    from dgharness.hparams import fields
    from dgharness.preset import preset_tree, presets

    published = preset_tree(preset) if preset else {}
    name = registry.canonical("algorithms", algorithm or published.get("algorithm", "erm"))
    own = registry.load("algorithms", name).hparams
    config = compose(preset=preset, flags={"algorithm": name})
    options = registry.load("datasets", registry.split_argument("datasets", config.data.name)[0]).options
    print("# dgharness train --config FILE; uncomment a line to change it")
    for line in textwrap.wrap(f"presets: {', '.join(presets())}", 108):
        print(f"# {line}")
    if about := published.get("about"):
        print(textwrap.fill(str(about), 110, initial_indent="# ", subsequent_indent="# "))
    for record in fields(RunConfig):
        section = record["name"]
        value = getattr(config, section)
        if section == "hp":
            print("hp:")
            for field in fields(own):
                _yaml_line("  # ", field, config.hp.get(field["name"], field["default"]))
        elif isinstance(value, BaseModel):
            print(f"{section}:")
            for field in fields(type(value)):
                indent = "  # " if (section, field["name"]) in PROFILE else "  "
                _yaml_line(indent, field | _names(section, field["name"]), getattr(value, field["name"]))
            extra = dict(value.model_extra or {})
            for field in fields(options) if section == "data" else []:
                given = field["name"] in extra
                _yaml_line("  " if given else "  # ", field, extra.pop(field["name"], field["default"]))
            for key, item in extra.items():
                print(f"  {key}: {json.dumps(item)}")
        else:
            _yaml_line("", record, value)


# The settings that name a registered part, and the group that it is registered in.
PARTS = {
    ("data", "name"): "datasets",
    ("model", "name"): "models",
    ("annotator", "name"): "annotators",
    ("tta", "name"): "tta",
    ("selection", "rules"): "selection",
}


def _names(section: str, key: str) -> dict[str, Any]:
    if (section, key) not in PARTS:
        return {}
    off = ["none"] if section in ("annotator", "tta") else []
    return {"known": off + [entry.name for entry in registry.entries(PARTS[section, key])]}


def _allowed(field: dict[str, Any]) -> str:
    """What a field of a few fixed values may be, whether or not a draw would take it.

    >>> _allowed({"type": "typing.Literal['fixed', 'variable']", "space": None})
    'one of fixed, variable'
    >>> _allowed({"type": "typing.Literal['a', 'b', 'c']", "space": "one of a, b"})
    'one of a, b, c; drawn: one of a, b'
    >>> _allowed({"type": "float", "space": "log-uniform [0.1, 1]"})
    'log-uniform [0.1, 1]'
    """
    known, space = field.get("known"), field["space"]
    if fixed := re.fullmatch(r"typing\.Literal\[(.*)\]", str(field["type"])):
        known = ast.literal_eval(f"({fixed[1]},)")
    if not known:
        return space or ""
    any_or_one = "any" if str(field["type"]).startswith("tuple") else "one"
    allowed = f"{any_or_one} of {', '.join(str(value) for value in known if value != '')}"
    return allowed if space in (None, allowed) else f"{allowed}; drawn: {space}"


def _yaml_line(indent: str, field: dict[str, Any], value: Any) -> None:
    allowed = _allowed(field)
    space = f" [{allowed}]" if allowed else ""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
    note = f"{field['help']}{space}".strip()
    print(f"{indent}{field['name']}: {text}" + (f"  # {note}" if note else ""))


def _plain(name: str, summary: str) -> str:
    """A summary for the terminal: without the markup, and without the name that stands beside it.

    >>> _plain("folder", "``folder:PATH``: photographs in folders.")
    'folder:PATH, photographs in folders.'
    >>> _plain("erm", "``erm``: the mean risk.")
    'the mean risk.'
    """
    text = summary.replace("``", "").removeprefix(f"{name}: ")
    return re.sub(rf"^({re.escape(name)}:\S+): ", r"\1, ", text)


def _print_row(label: str, text: str) -> None:
    """A label and its text, which hangs from column 14 if it needs several lines."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    print(
        textwrap.fill(
            text,
            width,
            initial_indent=f"{label:<12} ",
            subsequent_indent=" " * 13,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _print_fields(title: str, fields: Sequence[dict[str, Any]]) -> None:
    if not fields:
        return
    print(title)
    width = max(len(field["name"]) for field in fields)
    for field in fields:
        default = "unset" if field["default"] is None else json.dumps(field["default"], default=str)
        allowed = _allowed(field)
        space = f", {allowed}" if allowed else ""
        structural = ", structural" if field["structural"] else ""
        print(f"  {field['name']:<{width}}  {default}{space}{structural}")
        if field["help"]:
            print(f"  {'':<{width}}  {field['help']}")
