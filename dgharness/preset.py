"""Presets: the settings that a published protocol fixed, by name.

A file of ``dgharness/presets`` holds settings and, under ``algorithms``, the hyperparameters of each
algorithm that it has any for, with further ``settings`` of its own; ``about`` says where they come from and
what is not expressed. ``--preset wilds/camelyon17`` lays it under whatever algorithm is asked for, and
``--preset wilds/camelyon17/erm`` names the algorithm too, as does a file with ``algorithm``. A file with
``datasets`` is a preset for each of them, with what is said of the one laid on what is said of all:
``domainbed/PACS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dgharness.errors import UsageError, did_you_mean


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    with resources.as_file(resources.files("dgharness") / "presets") as folder:
        return sorted(
            name
            for file in folder.rglob("*.yaml")
            for name in _names(file.relative_to(folder).with_suffix("").as_posix(), read_yaml(file))
        )


def preset_tree(name: str) -> dict[str, Any]:
    """A preset as written: settings, ``about``, ``algorithms``; and ``algorithm`` where its name has one."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    parts = name.split("/")
    for depth in range(len(parts), 0, -1):
        file = resources.files("dgharness") / "presets" / ("/".join(parts[:depth]) + ".yaml")
        if file.is_file():
            tree = yaml.safe_load(file.read_text(encoding="utf-8"))
            if name in _names("/".join(parts[:depth]), tree):
                return _narrowed(tree, parts[depth:])
            break
    raise UsageError(
        f"there is no preset {name!r}; {did_you_mean(name, presets())} (or name a file, as in PATH.yaml)"
    )


def lay(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As ``merge``, but a dataset or model that is named anew keeps no option of the one below.

    >>> lay({"model": {"name": "resnet50", "weights": "in1k-v1"}}, {"model": {"name": "linear"}})
    {'model': {'name': 'linear'}}
    """
    for part in ("data", "model"):
        name = (over.get(part) or {}).get("name")
        if name and name != base.get(part, {}).get("name", name):
            base.pop(part)
    return merge(base, over)


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, tables key by key; changes and returns ``base``."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = base.get(key)
            base[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            base[key] = value
    return base


def table(value: Any, what: str) -> dict[str, Any]:
    """A table of settings, which may be left empty."""
    if not isinstance(value, dict | None):
        raise UsageError(f"{what} must be a table of settings, not {value!r}")
    return value or {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A table of settings from a file, or a UsageError that says where it is none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise UsageError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{path} is not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, ValueError):  # characters that no text has
        raise UsageError(f"{path} is not a YAML file: it holds bytes that are not text") from None
    if not isinstance(tree, dict | None):
        raise UsageError(f"{path} must hold a table of settings, not a {type(tree).__name__}")
    return tree or {}


def _names(file: str, tree: Mapping[str, Any]) -> Iterator[str]:
    """Every preset in a file: itself or one per dataset, and each of these with an algorithm."""
    shared = table(tree.get("algorithms"), f"algorithms of the preset {file}")
    datasets = tree.get("datasets")
    own = {f"{file}/{dataset}": rest for dataset, rest in datasets.items()} if datasets else {file: {}}
    for name, rest in own.items():
        yield name
        if "algorithm" not in tree:
            yield from (f"{name}/{algorithm}" for algorithm in {**shared, **rest.get("algorithms", {})})


def _narrowed(tree: dict[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    if datasets := tree.pop("datasets", None):
        lay(tree, datasets[rest[0]])
        rest = rest[1:]
    if rest:
        tree["algorithm"] = rest[0]
    return tree
