"""Run a plan: skip what is finished, continue what was interrupted, and name what failed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgharness import rundir, tracking
from dgharness.errors import Interrupted, UsageError
from dgharness.sweep.plan import Job
from dgharness.sweep.pool import Outcome, run_jobs
from dgharness.training.progress import minutes, to_stderr


@dataclass
class SweepOutcome:
    """How many runs there were, and how each that did not finish ended."""

    experiment: str
    finished: int = 0
    skipped: int = 0
    not_applicable: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # run name -> why

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self)}


def describe(jobs: Sequence[Job]) -> list[str]:
    """The plan in a few lines: how many runs of what."""
    runnable = [job for job in jobs if not job.not_applicable]
    lines = [f"{len(runnable)} runs of {sum(job.config.train.steps or 0 for job in runnable):,} steps in all"]
    for label, values in {
        "algorithms": [job.config.algorithm for job in runnable],
        "held out": ["+".join(job.config.protocol.targets) for job in runnable],
        "draws": [f"h{job.config.hparams_seed}" for job in runnable],
        "trials": [f"t{job.config.trial_seed}" for job in runnable],
    }.items():
        lines.append(f"  {label:<11}{', '.join(dict.fromkeys(values))}")
    for job in jobs:
        if job.not_applicable:
            held = "+".join(job.config.protocol.targets)
            lines.append(f"  n/a        {job.config.algorithm} on {held}: {job.not_applicable}")
    return lines


def sweep(jobs: Sequence[Job], *, workers: int = 0) -> SweepOutcome:
    """Run the jobs that are not finished, in spawned processes; the same plan again continues it."""
    wanted = [job for job in jobs if not job.not_applicable]
    if not wanted:
        raise UsageError("nothing of this sweep can run: " + "; ".join({job.not_applicable for job in jobs}))
    execution = wanted[0].config.execution
    root = Path(execution.output)
    store = tracking.prepare_store(
        tracking.tracking_uri(execution.tracking_uri or None), wanted[0].experiment
    )
    outcome = SweepOutcome(store.experiment, not_applicable=len(jobs) - len(wanted))
    tracked = tracking.finished_hashes(store)
    pending = [job for job in wanted if not _finished(job, root, tracked)]
    outcome.skipped = len(wanted) - len(pending)
    to_stderr(f"tracking  {store} → {store.experiment}")
    if outcome.skipped:
        to_stderr(f"{outcome.skipped} of {len(wanted)} runs are finished already")
    plan = {"plan.json": json.dumps([job.entry for job in jobs], indent=1)}
    parent = tracking.start_group(store, "sweep", _name(wanted), _tags(wanted), _params(wanted), plan)
    processes = min(workers or default_workers(execution.device), max(len(pending), 1))
    threads = max(1, (os.cpu_count() or 1) // processes)
    payloads = [_payload(job, store, parent, threads, root) for job in pending]
    board = Board(len(pending))
    status: rundir.Status = "FINISHED"
    try:
        for job, result in zip(
            pending,
            run_jobs(
                run_job,
                payloads,
                processes=processes,
                threads_per_process=threads,
                initializer=set_threads,
                on_start=board.started,
                on_done=board.done,
            ),
            strict=True,
        ):
            if result.status == "ok":
                outcome.finished += 1
            else:
                outcome.failed[job.name] = result.message
    except Interrupted:
        status = "KILLED"
        to_stderr("stopped; the same command continues the sweep")
        raise
    finally:
        if outcome.failed:
            status = "FAILED"
        tracking.finish_group(store, parent, status)
    for name, why in outcome.failed.items():
        to_stderr(f"FAILED    {name}: {why}")
    to_stderr(
        f"sweep     {outcome.finished} finished, {outcome.skipped} skipped, {len(outcome.failed)} failed"
        f"    compare: dgharness report {store.experiment}"
    )
    return outcome


def run_job(payload: dict[str, Any]) -> dict[str, Any]:
    """One run, in a worker process."""
    from dgharness.config import RunConfig
    from dgharness.training.progress import Progress
    from dgharness.training.run import resume, train

    silent, store = Progress(say=lambda text: None), tracking.Store(**payload["store"])
    unfinished = rundir.find(Path(payload["root"]), payload["config_hash"])
    if unfinished is not None and unfinished.state.status != "FINISHED":
        result = resume(
            unfinished.state.run_id,
            payload["root"],
            progress=silent,
            store=store,
            tags=payload["tags"],
            parent=payload["parent"],
            execution=payload["config"]["execution"],
        )
    else:
        result = train(
            RunConfig.model_validate(payload["config"]),
            progress=silent,
            store=store,
            parent=payload["parent"],
            tags=payload["tags"],
        )
    shown = payload["config"]["selection"]["shown"]
    evaluation = result.chosen.get(shown) or next(iter(result.chosen.values()))
    return {"run_id": result.run_id, "val": evaluation.metrics["val/acc_domain_mean"]}


def set_threads(threads: int) -> None:
    """What a worker does first."""
    import torch

    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    torch.set_num_threads(threads)


def default_workers(device: str) -> int:
    """One process per GPU; on the CPU one per core, with a thread each."""
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return max(1, torch.cuda.device_count())
    return os.cpu_count() or 1


class Board:
    """Progress of a sweep: one line per finished run, or a line that is rewritten on a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.ended, self.began = total, 0, time.monotonic()
        self.running: Counter[str] = Counter()

    def started(self, payload: dict[str, Any]) -> None:
        self.running[payload["name"]] += 1
        self._live()

    def done(self, payload: dict[str, Any], outcome: Outcome) -> None:
        self.ended += 1
        self.running[payload["name"]] -= 1
        elapsed = time.monotonic() - self.began
        left = elapsed / self.ended * (self.total - self.ended)
        what = (
            f"val {100 * outcome.value['val']:.1f}"
            if outcome.status == "ok"
            else f"FAILED: {outcome.message}"
        )
        self._clear()
        count = f"{self.ended:{len(str(self.total))}d}/{self.total}"
        to_stderr(f"[{count}] {payload['name']:<44} {what}   left {minutes(left)}")
        self._live()

    def _live(self) -> None:
        if sys.stderr.isatty() and self.ended < self.total:
            names = [name for name, n in self.running.items() if n > 0]
            print(f"\r\033[K  running {', '.join(names)}"[:110], end="", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)


def _finished(job: Job, root: Path, tracked: dict[str, str]) -> bool:
    local = rundir.find(root, job.config_hash)
    return job.config_hash in tracked or (local is not None and local.state.status == "FINISHED")


def _payload(job: Job, store: tracking.Store, parent: str, threads: int, root: Path) -> dict[str, Any]:
    config = job.config.model_dump(mode="json")
    config["execution"]["threads"] = threads
    return {
        "name": job.name,
        "config": config,
        "config_hash": job.config_hash,
        "store": vars(store),
        "parent": parent,
        "root": str(root),
        "tags": {"dg.sweep_run": parent},
    }


def _name(jobs: Sequence[Job]) -> str:
    algorithms = list(dict.fromkeys(job.config.algorithm for job in jobs))
    shown = ", ".join(algorithms[:3]) + (f" and {len(algorithms) - 3} more" if len(algorithms) > 3 else "")
    return f"sweep of {shown}"


def _tags(jobs: Sequence[Job]) -> dict[str, str]:
    """The sweep's identity is the set of its runs; its plan is what a report expects."""
    identity = hashlib.sha256("".join(sorted(job.config_hash for job in jobs)).encode()).hexdigest()[:12]
    return {"dg.sweep": identity, "dg.dataset": jobs[0].config.data.name, "dg.preset": jobs[0].config.preset}


def _params(jobs: Sequence[Job]) -> dict[str, str]:
    def distinct(values: list[Any]) -> str:
        return json.dumps(list(dict.fromkeys(values)))

    return {
        "algorithms": distinct([job.config.algorithm for job in jobs]),
        "targets": distinct(["+".join(job.config.protocol.targets) for job in jobs]),
        "hparams_seeds": distinct([job.config.hparams_seed for job in jobs]),
        "trial_seeds": distinct([job.config.trial_seed for job in jobs]),
        "runs": str(len(jobs)),
    }
