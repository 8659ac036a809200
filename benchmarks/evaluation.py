"""How much a run evaluates: images scored per image trained, and how fast.

The count is of a real run of the default length (IRMv1 on colored-mnist, every default rule) with the linear
model in place of mnist-cnn, which changes the time and not the number, but for how many different
checkpoints the rules keep: their number is stated, and the row of the most that there can be. Beside it
stands what scoring every split of every domain at every evaluation would take (DomainBed's practice).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import config, data_root, machine, quartiles, table
from torch import Tensor

from dgharness.data.dataset import Reader
from dgharness.training import run as runs
from dgharness.training.evaluation import all_rows
from dgharness.training.loop import Run
from dgharness.training.prepare import Prepared, prepare
from dgharness.training.progress import Progress


@dataclass
class Counting:
    """A reader that counts what it reads, with gradients (training) and without (evaluation)."""

    reader: Reader
    images: Counter[bool] = field(default_factory=Counter)
    children: set[str] = field(default_factory=set)  # processes that were seen beside this one

    def __call__(self, index_N: Tensor) -> Any:
        self.images[torch.is_grad_enabled()] += len(index_N)
        return self.reader(index_N)

    def to(self, device: torch.device) -> Reader:
        return self

    def look(self) -> None:
        self.children |= {child.name for child in multiprocessing.active_children()}
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        self.children |= set(children.read_text().split()) if children.exists() else set()


def counted(root: str, folder: Path, threads: int, **settings: Any) -> tuple[Counting, Run]:
    """A whole run, its reading counted."""
    kept: list[Run] = []
    original = runs.build

    def build(prepared: Prepared, progress: Progress) -> Run:
        run = original(prepared, progress)
        run.evaluator = replace(run.evaluator, reader=Counting(run.evaluator.reader))
        kept.append(run)
        return run

    def say(text: str) -> None:
        reader: Any = kept[0].evaluator.reader
        reader.look()

    here = {"execution__output": folder / "runs", "execution__tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    with patch.object(runs, "build", build):
        runs.train(
            config(root, threads, model__name="linear", **here, **settings), progress=Progress(say=say)
        )
    reader: Any = kept[0].evaluator.reader
    return reader, kept[0]


def speed(root: str, model: str, threads: int, images: int, rounds: int) -> list[float]:
    """Images per second of evaluating a model, by round."""
    run = runs.build(prepare(config(root, threads, model__name=model)), Progress())
    predictor = run.learner.predictor(run.source)
    rows = all_rows(run.splits.rows["val"])[:images]
    rates = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run.evaluator.outputs(predictor, rows)
        rates.append(len(rows) / (time.perf_counter() - began))
    return rates[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--model", default="mnist-cnn", help="whose speed is measured")
    parser.add_argument("--images", type=int, default=2048, help="per round of the speed measurement")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with data_root() as (root, data), tempfile.TemporaryDirectory() as folder:
        settings = {"train__steps": args.steps, "train__eval_every": args.steps // args.evaluations}
        reader, run = counted(root, Path(folder), args.threads, **settings)
        rates = quartiles(speed(root, args.model, args.threads, args.images, args.rounds))
    if reader.children:
        raise SystemExit(f"a run on data in memory started other processes: {sorted(reader.children)}")
    trained, scored = reader.images[True], reader.images[False]
    size = {split: len(all_rows(rows)) for split, rows in run.splits.rows.items()}
    checkpoints, most = len(run.sealed), len({"last", *run.best})
    final = size["test"] + size["test_holdout"] + size["val"]
    everything = args.evaluations * sum(size.values())
    rows = [
        [
            f"counted, {checkpoints} checkpoints kept",
            f"{scored:,}",
            f"{scored / trained:.2f}",
            f"{everything / scored:.1f}",
        ],
    ]
    if most > checkpoints:
        bound = scored + (most - checkpoints) * final
        rows.append(
            [
                f"with the most kept, {most}",
                f"{bound:,}",
                f"{bound / trained:.2f}",
                f"{everything / bound:.1f}",
            ]
        )
    rows.append(
        ["every split of every domain, each time", f"{everything:,}", f"{everything / trained:.2f}", "1.0"]
    )
    print(f"{machine(data)}\n")
    print(f"{trained:,} images trained, {args.evaluations} evaluations; no process was started\n")
    print(table(["evaluation", "images scored", "per image trained", "times less than all"], rows))
    print(f"\n{args.model} evaluates {rates[1]:,.0f} images/s (quartiles {rates[0]:,.0f} to {rates[2]:,.0f})")


if __name__ == "__main__":
    main()
