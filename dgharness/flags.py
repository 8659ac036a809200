"""The options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Algorithm = Annotated[str, typer.Option("--algorithm", "-a", help="dgharness algorithms lists them.")]
Algorithms = Annotated[list[str], typer.Option("--algorithms", "-a", help="Names, patterns or all.")]
Shown = Annotated[
    list[str],
    typer.Option("--rule", help="Selection rule; several stand side by side. (default: that of the runs)"),
]
DatasetName = Annotated[str, typer.Option("--dataset", "-d", help="NAME, or folder:PATH and the like.")]
Targets = Annotated[list[str], typer.Option("--target", "-t", help="Domain held out; may be repeated.")]
DataRoot = Annotated[str, typer.Option("--data-root", help="Where datasets that are not bundled lie.")]
Preset = Annotated[str, typer.Option("--preset", help="Settings of a published protocol, or a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings in a YAML file.")]
Sets = Annotated[list[str], typer.Option("--set", help="KEY=VALUE; dgharness config lists the keys.")]
Plugins = Annotated[
    list[str], typer.Option("--plugin", help="Uninstalled code: MODULE:ATTR or FILE.py:ATTR.")
]
Output = Annotated[str, typer.Option("--output", help="Run directories are made here (default: runs).")]
Experiment = Annotated[
    str, typer.Option("--experiment", help="MLflow experiment (default: DATASET/PROTOCOL).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would happen; write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]


def flags(
    *,
    algorithm: str = "",
    dataset: str = "",
    target: list[str] = [],  # noqa: B006
    data_root: str = "",
    plugin: list[str] = [],  # noqa: B006
    output: str = "",
    experiment: str = "",
    hparams_seed: int | None = None,
    trial_seed: int | None = None,
) -> dict[str, Any]:
    """The flags that were given, as settings."""
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "data": {"name": dataset},
        "protocol": {"targets": list(target)},
        "plugins": list(plugin),
        "hparams_seed": hparams_seed,
        "trial_seed": trial_seed,
        "execution": {"data_root": data_root, "output": output, "experiment": experiment},
    }
    given: dict[str, Any] = {}
    for key, value in settings.items():
        kept = {k: v for k, v in value.items() if v} if isinstance(value, dict) else value
        if kept not in ("", None, [], {}):
            given[key] = kept
    return given


def commas(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
