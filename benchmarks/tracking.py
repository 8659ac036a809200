"""What tracking costs a run of IRMv1 on colored-mnist: every call into the store and onto the disk, timed.

Two real runs into one sqlite store. The linear model trains for the default number of steps, so that the
journal of metrics reaches its full size and nothing but the network is cheaper than in the default run.
A short run of mnist-cnn gives what its checkpoints, steps and evaluations take, from which the time of the
default run is extrapolated; it leaves out the scoring of the target, so that the time is too short and the
share of tracking too large rather than too small. Two costs stand beside the runs: a process imports MLflow
once, and a store is created once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import config, data_root, machine, table

from dgharness.rundir import RunDir
from dgharness.tracking.store import store_errors
from dgharness.training import checkpoint, loop, run

PARTS: dict[str, list[tuple[Any, str]]] = {
    "store, per run": [(run.tracking.Tracker, "start"), (run.tracking.Tracker, "finish")],
    "store, per evaluation": [(run.tracking.Tracker, "deliver")],
    "metrics in memory": [(RunDir, "record")],
    "checkpoints": [(checkpoint, "save"), (checkpoint, "save_weights")],
    "documents": [(run, "write_documents"), (RunDir, "write_evaluations")],
    "evaluation": [(loop, "validate")],
    "all": [(run, "execute")],
}
TRACKING = ("store, per run", "store, per evaluation", "metrics in memory", "documents")


@contextmanager
def timed(seconds: dict[str, list[float]]) -> Iterator[None]:
    """Collect how long each call of each part takes."""

    def timing(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(call)
        def inner(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[part].append(time.perf_counter() - began)

        return inner

    patches = [
        patch.object(owner, name, timing(getattr(owner, name), part))
        for part, calls in PARTS.items()
        for owner, name in calls
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def tracked(root: str, folder: Path, threads: int, **settings: Any) -> dict[str, list[float]]:
    """Seconds of every call of every part of one run."""
    seconds: dict[str, list[float]] = defaultdict(list)
    here = {"execution__output": folder / "runs", "execution__tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    with timed(seconds):
        run.train(config(root, threads, **here, **settings), progress=loop.Progress(say=lambda text: None))
    return seconds


def total(seconds: dict[str, list[float]], *parts: str) -> float:
    return sum(sum(seconds[part]) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist-cnn", help="of the short run")
    parser.add_argument("--steps", type=int, default=100, help="of the short run")
    parser.add_argument("--evaluations", type=int, default=2, help="of the short run")
    parser.add_argument("--full-steps", type=int, default=5000, help="of the default run")
    parser.add_argument("--full-evaluations", type=int, default=50, help="of the default run")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with data_root() as (root, data), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        store_errors()  # imports MLflow
        imported, began = time.perf_counter() - began, time.perf_counter()
        run.tracking.prepare_store(f"sqlite:///{folder}/mlflow.db", "another")
        created = time.perf_counter() - began
        full = tracked(
            root,
            folder,
            args.threads,
            model__name="linear",
            train__steps=args.full_steps,
            train__eval_every=args.full_steps // args.full_evaluations,
        )
        unscored = patch.multiple(run, score_kept=lambda _: {}, result_lines=lambda *_: [])
        with unscored:
            short = tracked(
                root,
                folder,
                args.threads,
                model__name=args.model,
                train__steps=args.steps,
                train__eval_every=args.steps // args.evaluations,
            )
        outside = sum(total(short, part) for part in PARTS if part not in ("all", "metrics in memory"))
        step = (total(short, "all") - outside) / args.steps
        evaluation = total(short, "evaluation") / args.evaluations
        once = total(short, "documents", "store, per run")
        per_checkpoint = total(short, "checkpoints") / args.evaluations
        wall = once + step * args.full_steps + (evaluation + per_checkpoint) * args.full_evaluations
        rows = []
        for part in (*TRACKING, "checkpoints"):
            calls, each = len(full[part]), 1000 * total(full, part) / max(len(full[part]), 1)
            of_cnn = 1000 * total(short, part) / max(len(short[part]), 1)
            rows.append([part, str(calls), f"{each:.2f}", f"{of_cnn:.2f}", f"{total(full, part):.2f}"])
        print(f"{machine(data)}\n")
        print(table(["part", "calls in the full run", "ms each", f"ms each, {args.model}", "s in all"], rows))
        tracking, kept = (
            total(full, *TRACKING),
            total(short, "checkpoints") / args.evaluations * args.full_evaluations,
        )
        rows = [
            [
                "linear, measured",
                f"{total(full, 'all'):.0f}",
                f"{tracking:.2f}",
                f"{tracking / total(full, 'all'):.2%}",
                f"{total(full, 'checkpoints') / total(full, 'all'):.2%}",
            ],
            [
                f"{args.model}, from {args.steps} steps",
                f"{wall:.0f}",
                f"{tracking:.2f}",
                f"{tracking / wall:.3%}",
                f"{kept / wall:.3%}",
            ],
            [
                "the same, alone in a new directory",
                f"{wall + imported + created:.0f}",
                f"{tracking + imported + created:.2f}",
                f"{(tracking + imported + created) / (wall + imported + created):.3%}",
                f"{kept / wall:.3%}",
            ],
        ]
        print(
            f"\nimporting MLflow {imported:.1f} s per process, creating a store {created:.1f} s; "
            f"{args.model} {1000 * step:.0f} ms per step, {evaluation:.1f} s per evaluation\n"
        )
        print(table([f"run of {args.full_steps} steps", "s", "tracking s", "tracking", "checkpoints"], rows))
        print(f"\ntracking is at most 1 % of every such run that lasts {100 * tracking:.0f} s or more")


if __name__ == "__main__":
    main()
