"""Lists and pages about registered parts, for the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dgharness import registry


def list_entries(group: str, pattern: str, unverified: bool, plugins: Sequence[str], as_json: bool) -> None:
    """One line per entry; broken ones with the reason."""
    for plugin in plugins:
        registry.add_plugin(plugin)
    entries = registry.entries(group, include_unverified=unverified, pattern=pattern)
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
        return
    width = max((len(entry.name) for entry in entries), default=0)
    tiers = max((len(entry.trust) for entry in entries), default=0)
    for entry in entries:
        aliases = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
        about = entry.summary if entry.status == "ok" else entry.status
        source = "" if entry.source == "built-in" else f"  [{entry.source}]"
        print(f"{entry.name:<{width}}  {entry.trust:<{tiers}}  {about}{aliases}{source}".rstrip())


def show_entry(group: str, name: str, plugins: Sequence[str], as_json: bool) -> None:
    """Everything about one entry."""
    for plugin in plugins:
        registry.add_plugin(plugin)
    facts = registry.show(group, name)
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    print(f"{facts['name']}: {facts['summary']}")
    rows = [
        ("paper", facts.get("paper")),
        ("equation", facts.get("equation")),
        ("agrees with", facts.get("agrees_with")),
        ("needs", facts.get("needs")),
        ("rung", facts.get("rung")),
        ("default TTA", facts.get("tta")),
        ("trust tier", facts.get("trust")),
        ("source", f"{facts['source']}, {facts['module']}:{facts['attr']}"),
        ("also called", ", ".join(facts.get("aliases") or ())),
    ]
    for label, value in rows:
        if value not in (None, "", "none"):
            print(f"{label:<12} {value}")
    _print_fields(facts.get("hyperparameters") or [])


def show_dataset(name: str, data_root: str, as_json: bool) -> None:
    """Options of a dataset, and its examples by domain, class and group."""
    from dgharness.config import DataConfig
    from dgharness.data.dataset import grouping
    from dgharness.training.prepare import load_dataset

    spec_name, _, argument = name.partition(":")
    if registry.load("datasets", spec_name).argument and not argument:
        show_entry("datasets", spec_name, [], as_json)
        return
    dataset = load_dataset(DataConfig(name=name), data_root, 0)
    groups = grouping(dataset.manifest, dataset.groups)
    counts: dict[str, dict[Any, int]] = {
        "domains": dataset.manifest["domain"].value_counts(sort=False).to_dict(),
        "classes": dataset.manifest["y"].value_counts(sort=False).to_dict(),
        "groups": {group: int((groups.group_M == number).sum()) for number, group in enumerate(groups.names)},
    }
    facts: dict[str, Any] = {
        "name": dataset.name,
        "toy": dataset.toy,
        "examples": len(dataset.manifest),
        "input": list(dataset.input_shape),
        "digest": dataset.digest,
        **{part: {str(key): int(value) for key, value in table.items()} for part, table in counts.items()},
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    print(f"{dataset.name}{' (a toy)' if dataset.toy else ''}: {len(dataset.manifest)} examples")
    print(f"{'input':<12} {' x '.join(map(str, dataset.input_shape))}, digest {dataset.digest}")
    for part in ("domains", "classes", "groups"):
        print(f"{part:<12} " + ", ".join(f"{key} {value}" for key, value in facts[part].items()))
    _print_fields(registry.show("datasets", spec_name).get("hyperparameters") or [])


def print_config(algorithm: str, preset: str) -> None:
    """Every setting with its default and help, as YAML."""
    from dgharness.config import RunConfig, compose, presets
    from dgharness.hparams import fields

    config = compose(preset=preset, flags={"algorithm": registry.canonical("algorithms", algorithm)})
    print(f"# dgharness train --config FILE    (presets: {', '.join(presets())})")
    for record in fields(RunConfig):
        value = getattr(config, record["name"])
        if record["name"] == "hp":
            print("hp:")
            own = registry.load("algorithms", config.algorithm).hparams
            for field in fields(own):
                set_to = config.hp.get(field["name"], field["default"])
                _yaml_line("  ", field, set_to)
        elif hasattr(value, "model_fields"):
            print(f"{record['name']}:")
            for field in fields(type(value)):
                _yaml_line("  ", field, getattr(value, field["name"]))
            for key, extra in (value.model_extra or {}).items():
                print(f"  {key}: {json.dumps(extra)}")
        else:
            _yaml_line("", record, value)


def _yaml_line(indent: str, field: dict[str, Any], value: Any) -> None:
    space = f" [{field['space']}]" if field["space"] else ""
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    note = f"{field['help']}{space}".strip()
    print(f"{indent}{field['name']}: {text}" + (f"  # {note}" if note else ""))


def _print_fields(fields: Sequence[dict[str, Any]]) -> None:
    if not fields:
        return
    print("hyperparameters")
    for field in fields:
        space = f", {field['space']}" if field["space"] else ""
        structural = ", structural" if field["structural"] else ""
        print(f"  {field['name']:<16} {field['default']!r}{space}{structural}")
        if field["help"]:
            print(f"  {'':<16} {field['help']}")
