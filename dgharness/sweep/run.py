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
from dgharness.metrics.measure import measure_of
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
    undelivered: int = 0  # finished, but not in the store
    failed: dict[str, str] = field(default_factory=dict)  # run name -> why

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self)}


def describe(jobs: Sequence[Job]) -> list[str]:
    """The plan in a few lines: how many runs of what."""
    runnable = [job for job in jobs if not job.not_applicable]
    lines = [f"{len(runnable)} runs of {sum(job.config.train.steps or 0 for job in runnable):,} steps in all"]
    for label, values in {
        "algorithms": [job.config.algorithm for job in runnable],
        "held out": [" + ".join(job.config.protocol.targets) for job in runnable],
        "draws": [f"h{job.config.hparams_seed}" for job in runnable],
        "trials": [f"t{job.config.trial_seed}" for job in runnable],
    }.items():
        lines.append(f"  {label:<11}{', '.join(dict.fromkeys(values))}")
    missing = [
        f"  n/a        held out {' + '.join(job.config.protocol.targets) or 'as the data say'}: "
        f"{job.not_applicable}"
        for job in jobs
        if job.not_applicable
    ]
    return [*lines, *dict.fromkeys(missing)]


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
    here = {job.config_hash for job in wanted if _finished_here(job, root)}
    pending = [job for job in wanted if job.config_hash not in here.union(tracked)]
    outcome.skipped = len(wanted) - len(pending)
    to_stderr(f"tracking  {store} → {store.experiment}")
    if outcome.skipped:
        to_stderr(f"{outcome.skipped} of {len(wanted)} runs are finished already")
    for missed in here.difference(tracked):
        found = rundir.find(root, missed)
        outcome.undelivered += found is not None and not tracking.deliver_into(store, found)
    plan = {"plan.json": json.dumps([job.entry for job in jobs], indent=1)}
    parent = tracking.start_group(store, "sweep", _name(wanted), _tags(wanted), _params(wanted), plan)
    processes = min(workers or default_workers(execution.device), max(len(pending), 1))
    threads = execution.threads or max(1, cores() // processes)
    identity = _tags(wanted)["dg.sweep"]
    payloads = [_payload(job, store, parent, threads, root, identity) for job in pending]
    board = Board(len(pending))

    def on_done(payload: dict[str, Any], result: Outcome) -> None:
        if result.status in ("died", "cancelled"):
            bury(payload, "FAILED" if result.status == "died" else "KILLED", why(result))
        board.done(payload, result)

    status: rundir.Status = "FAILED"
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
                on_done=on_done,
            ),
            strict=True,
        ):
            if result.status == "ok":
                outcome.finished += 1
                outcome.undelivered += not result.value["delivered"]
            else:
                outcome.failed[job.name] = why(result)
        status = "FAILED" if outcome.failed else "FINISHED"
    except Interrupted:
        status = "KILLED"
        to_stderr("stopped; the same command continues the sweep")
        raise
    finally:
        tracking.finish_group(store, parent, status)
    for name, reason in outcome.failed.items():
        to_stderr(f"FAILED    {name}: {reason}")
    if outcome.undelivered:
        to_stderr(f"MLflow has not got {outcome.undelivered} of the runs; dgharness sync delivers them")
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
    found = rundir.find(Path(payload["root"]), payload["config_hash"])
    if found is not None and found.state.status == "FINISHED":  # by another sweep, since this one was planned
        return {"run_id": found.state.run_id, "val": None, "delivered": found.state.settled}
    if found is not None and (found.path / "config.yaml").exists():  # or it ended before it began
        result = resume(
            found.state.run_id,
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
    measure = measure_of(evaluation.metrics)
    return {
        "run_id": result.run_id,
        "val": measure.shown(evaluation.metrics[f"val/{measure.key}_domain_mean"]),
        "delivered": result.delivered,
    }


def bury(payload: dict[str, Any], status: rundir.Status, reason: str) -> None:
    """A run whose process died could not say so: mark it, here and in the store."""
    found = rundir.find(Path(payload["root"]), payload["config_hash"])
    if found is None or found.state.status != "RUNNING":
        return
    try:
        with found.lock():
            tracking.Tracker(tracking.Store(**payload["store"]), found).finish(status, error=reason)
    except UsageError as error:  # another process works on it, or the disk refuses
        to_stderr(f"{payload['name']} could not be marked as {status}: {error}")


def why(result: Outcome) -> str:
    """Why a job failed: a mistake or a divergence says it in a sentence, anything else needs its type."""
    if result.status == "died":
        return f"its process ended early: {result.message}"
    if result.status == "error" and result.error not in ("UsageError", "Busy", "DivergenceError"):
        return f"{result.error}: {result.message}"
    return result.message


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
    return cores()


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        if outcome.status == "cancelled":
            what = "stopped"
        elif outcome.status != "ok":
            what = f"FAILED: {why(outcome)}"
        elif outcome.value["val"] is None:
            what = "finished by another sweep"
        else:
            what = f"val {outcome.value['val']}"
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


def _finished_here(job: Job, root: Path) -> bool:
    local = rundir.find(root, job.config_hash)
    return local is not None and local.state.status == "FINISHED"


def _payload(
    job: Job, store: tracking.Store, parent: str, threads: int, root: Path, sweep_id: str
) -> dict[str, Any]:
    config = job.config.model_dump(mode="json")
    config["execution"]["threads"] = threads
    return {
        "name": job.name,
        "config": config,
        "config_hash": job.config_hash,
        "store": vars(store),
        "parent": parent,
        "root": str(root),
        "tags": {"dg.sweep": sweep_id, "dg.sweep_run": parent},
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
