"""``dgharness train``, ``sweep``, ``sync`` and ``doctor``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from dgharness import rundir, tracking
from dgharness.config import ExecutionConfig, RunConfig, compose, given
from dgharness.errors import DivergenceError, Interrupted, UsageError
from dgharness.hparams import checked
from dgharness.models.weights import without_fetching
from dgharness.printing import for_json
from dgharness.rundir import RunDir
from dgharness.training.build import pick_device
from dgharness.training.identity import deviations
from dgharness.training.prepare import Prepared, prepare
from dgharness.training.progress import header_lines, result_lines, to_stderr
from dgharness.training.register import check_name
from dgharness.training.register import register as registered
from dgharness.training.run import Result, read_config, train
from dgharness.training.run import resume as continue_run

Header = Callable[[Prepared, tracking.Store], None]


def run_train(
    layers: Mapping[str, Any],
    *,
    resume: str | None,
    register: str | None = None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train or resume one run, print what it found, and register its model if that is wanted."""
    if register is not None:
        check_name(register)
    prepared_here: list[Prepared] = []

    def header(prepared: Prepared, store: tracking.Store) -> None:
        prepared_here.append(prepared)
        for line in header_lines(prepared, deviations(prepared), f"{store} → {store.experiment}"):
            to_stderr(line)

    start: Callable[[], Result]
    if resume is None:
        config = compose(**layers)
        _check_kept(register, config.execution)
        if dry_run:
            _print_plan(config, as_json)
            return
        start = partial(train, config, header=header)
    else:
        if register and (finished := _finished(resume, layers)):
            _register(finished, register)
            return
        start = partial(_resume, resume, layers, header=header, register=register, dry_run=dry_run)
    try:
        result = start()
    except Interrupted:
        ended = _newest(prepared_here)
        if ended:
            root = ended.path.parent
            where = "" if root == Path("runs") else f" --output {root}"
            run_id = ended.state.run_id
            to_stderr(
                f"run {run_id} KILLED, its state is saved; "
                f"dgharness train --resume {run_id}{where} continues it"
            )
        raise
    except DivergenceError:
        if ended := _newest(prepared_here):
            to_stderr(f"run {ended.state.run_id} FAILED")
        raise
    prepared = prepared_here[0]
    for line in result_lines(result.run_id, result.chosen, prepared):
        to_stderr(line)
    to_stderr(_cost_line(result.cost))
    to_stderr(f"run {result.run_id} {result.status}    compare: dgharness report {prepared.experiment}")
    if not result.delivered:
        to_stderr("MLflow has not got everything; dgharness sync delivers the rest")
    if register:
        if prepared.config.tta.name != "none":
            to_stderr(
                f"the registered model predicts each example by itself, without {prepared.config.tta.name}"
            )
        _register(result.path, register)
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
        print(json.dumps(for_json(record), indent=1))


def _check_kept(register: str | None, execution: ExecutionConfig) -> None:
    if register and execution.keep == "results":
        raise UsageError(
            "--register needs weights, and execution.keep=results keeps none; add "
            "--set execution.keep=weights, or leave --register out"
        )


def _resume(
    run_id: str, layers: Mapping[str, Any], *, header: Header, register: str | None, dry_run: bool
) -> Result:
    """Continue a run as it was configured; only where and with what it runs may differ."""
    tree = given(**layers)
    execution = tree.pop("execution", {})
    if tree or dry_run:
        refused = ", ".join(sorted(tree)) or "--dry-run"
        raise UsageError(
            f"--resume continues {run_id} as it was configured, so it goes without {refused}; "
            "with it go --output, --json and --set execution.KEY=VALUE"
        )
    root = Path(checked(ExecutionConfig, execution, "execution").output)
    interrupted = RunDir.open(root, run_id)
    if not (interrupted.path / "config.yaml").exists():
        raise UsageError(f"run {run_id} ended before it began; start it again without --resume")
    config = read_config(interrupted)
    kept = config.execution.model_dump() | execution | {"output": str(root)}
    _check_kept(register, checked(ExecutionConfig, kept, "execution"))
    return continue_run(run_id, root, header=header, execution=kept)


def _finished(run_id: str, layers: Mapping[str, Any]) -> Path | None:
    """The directory of a run that is over already, of which only the model is wanted."""
    root = Path(checked(ExecutionConfig, given(**layers).get("execution", {}), "execution").output)
    rundir = RunDir.open(root, run_id)
    return rundir.path if rundir.state.status == "FINISHED" else None


def _register(run_dir: Path, name: str) -> None:
    version = registered(run_dir, name)
    to_stderr(
        f"registered models:/{name}/{version}    load: mlflow.pyfunc.load_model('models:/{name}/{version}')"
    )


def _newest(prepared: Sequence[Prepared]) -> RunDir | None:
    """The directory of the run that was under way."""
    if not prepared:
        return None
    return rundir.find(Path(prepared[0].config.execution.output), prepared[0].config_hash)


def _print_plan(config: RunConfig, as_json: bool) -> None:
    import yaml

    with without_fetching() as absent:
        prepared = prepare(config)
    pick_device(prepared.config.execution.device)
    tree = prepared.config.model_dump(mode="json")
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    uri = tracking.tracking_uri(prepared.config.execution.tracking_uri or None)
    for line in header_lines(prepared, deviations(prepared), f"{uri} → {prepared.experiment}"):
        to_stderr(line)
    for weights in absent:
        to_stderr(f"note      {weights}")
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
    from dgharness.sweep.plan import plan
    from dgharness.sweep.run import describe, sweep

    fetching: AbstractContextManager[list[str]] = without_fetching() if dry_run else nullcontext([])
    with fetching as absent:
        jobs = plan(algorithms, targets=targets, hparams_seeds=hparams, trials=trials, **layers)
    for line in [*describe(jobs), *(f"  note       {weights}" for weights in dict.fromkeys(absent))]:
        to_stderr(line)
    if dry_run:
        if as_json:  # weights that are not here are part of the hash: it is not known yet
            hashes = [None if absent else job.config_hash for job in jobs]
            plans = [{"cell": job.cell, "config_hash": sha} for job, sha in zip(jobs, hashes, strict=True)]
            print(json.dumps(plans, indent=1))
        return
    outcome = sweep(jobs, workers=workers)
    if as_json:
        print(json.dumps(for_json(outcome.as_dict()), indent=1))
    if outcome.failed:
        sys.exit(3)


def run_sync(output: str) -> None:
    """Deliver what is not in the store yet."""
    root = Path(output or "runs")
    if output and not root.is_dir():
        raise UsageError(f"there is no directory {root}; --output names the one with the runs")
    entries = tracking.sync(root)
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
