"""What the commands do, each a few calls into the parts; messages go to stderr, data to stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgharness import tracking
from dgharness.config import compose
from dgharness.errors import UsageError
from dgharness.training.identity import deviations
from dgharness.training.prepare import Prepared, prepare
from dgharness.training.progress import header_lines, result_lines, to_stderr
from dgharness.training.run import resume as continue_run
from dgharness.training.run import train


def run_train(layers: Mapping[str, Any], *, resume: str, output: str, dry_run: bool, as_json: bool) -> None:
    """Train or resume one run, and print what it found."""
    prepared_here: list[Prepared] = []

    def header(prepared: Prepared, store: tracking.Store) -> None:
        prepared_here.append(prepared)
        for line in header_lines(prepared, deviations(prepared), f"{store} → {store.experiment}"):
            to_stderr(line)

    if dry_run:
        _print_plan(layers, as_json)
        return
    result = (
        continue_run(resume, output, header=header) if resume else train(compose(**layers), header=header)
    )
    prepared = prepared_here[0]
    for line in result_lines(result.run_id, result.chosen, prepared):
        to_stderr(line)
    to_stderr(_cost_line(result.cost))
    to_stderr(f"run {result.run_id} {result.status}    compare: dgharness report {prepared.experiment}")
    if not result.delivered:
        to_stderr("MLflow has not got everything; dgharness sync delivers the rest")
    if as_json:
        chosen = {
            rule: {"step": evaluation.step, **evaluation.metrics}
            for rule, evaluation in result.chosen.items()
        }
        record = {
            "run_id": result.run_id,
            "status": result.status,
            "path": str(result.path),
            "chosen": chosen,
        }
        print(json.dumps(_strict(record), indent=1))


def _print_plan(layers: Mapping[str, Any], as_json: bool) -> None:
    import yaml

    prepared = prepare(compose(**layers))
    tree = prepared.config.model_dump(mode="json")
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    uri = tracking.tracking_uri(prepared.config.execution.tracking_uri or None)
    for line in header_lines(prepared, deviations(prepared), f"{uri} → {prepared.experiment}"):
        to_stderr(line)
    to_stderr(f"1 run of {prepared.config.train.steps} steps; nothing is written")
    print(yaml.safe_dump(tree, sort_keys=False), end="")


def _cost_line(cost: Mapping[str, float]) -> str:
    return (
        f" cost     {cost['seconds'] / 60:.1f} min · {cost['images'] / 1000:.0f} k images · "
        f"{cost['trained_parameters'] / 1e6:.2f} M trained · {cost['peak_memory_gb']:.1f} GB"
    )


def run_sweep(
    layers: Mapping[str, Any],
    *,
    algorithms: Sequence[str],
    targets: Sequence[str],
    trials: int,
    hparams: int,
    workers: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Plan a sweep, run what is not finished, and say how to compare it."""
    from dgharness import registry
    from dgharness.sweep.plan import plan
    from dgharness.sweep.run import describe, sweep

    for plugin in layers.get("flags", {}).get("plugins", ()):
        registry.add_plugin(plugin)
    jobs = plan(algorithms, targets=targets, hparams_seeds=hparams, trials=trials, **layers)
    for line in describe(jobs):
        to_stderr(line)
    if dry_run:
        if as_json:
            print(json.dumps([{"cell": job.cell, "config_hash": job.config_hash} for job in jobs], indent=1))
        return
    outcome = sweep(jobs, workers=workers)
    if as_json:
        print(json.dumps(_strict(outcome.as_dict()), indent=1))
    if outcome.failed:
        sys.exit(3)


def run_report(
    experiment: str,
    rules: Sequence[str],
    *,
    baseline: str,
    extras: Sequence[str],
    gaps: bool,
    format_: str,
    to: Path | None,
) -> None:
    """Print the comparison of an experiment's runs."""
    from dgharness import registry
    from dgharness.report.cells import build_tables
    from dgharness.report.load import load_experiment
    from dgharness.report.render import render

    chosen = [registry.load("selection", name) for name in rules]
    found = load_experiment(experiment)
    tables = build_tables(
        found.records,
        chosen,
        baseline=baseline,
        expected=found.expected,
        not_applicable=found.not_applicable,
        extras=extras,
        gaps=gaps,
    )
    text = render(tables, format_)
    if to:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text + "\n")
        to_stderr(f"written: {to}")
    else:
        print(text)


def run_sync(output: str) -> None:
    """Deliver what is not in the store yet."""
    entries = tracking.sync(Path(output))
    for entry in entries:
        to_stderr(f"{entry.run_id}  {entry.outcome}{f': {entry.detail}' if entry.detail else ''}")
    delivered = sum(entry.outcome == "delivered" for entry in entries)
    to_stderr(f"{delivered} runs delivered" if entries else "nothing to deliver")
    if any(entry.outcome == "failed" for entry in entries):
        sys.exit(1)


def run_doctor() -> None:
    """Check what a run needs, one line each."""
    import shutil

    import torch

    from dgharness import registry
    from dgharness.training.identity import environment

    print(environment(), end="")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"devices {', '.join(devices) or 'CPU only'}")
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    print(f"disk {free:.0f} GB free in {os.getcwd()}")
    broken = [
        f"{group}: {entry.name} is {entry.status}"
        for group in registry.GROUPS
        for entry in registry.entries(group, include_unverified=True)
        if entry.status != "ok"
    ]
    print("plugins " + ("; ".join(broken) or "all ok"))
    uri = tracking.tracking_uri(None)
    try:
        tracking.prepare_store(uri, "Default")
        print(f"tracking {uri} ok")
    except UsageError as error:
        print(f"tracking {uri} NOT usable: {error}")
        sys.exit(2)


def _strict(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and value != value else value
