"""What one update of every algorithm costs, relative to one of ERM: mnist-cnn, three domains of 32 images.

All train in one process, a few updates of one after a few of the next, so that a disturbance hits them alike;
the figure is the median over such rounds of an algorithm's CPU time over ERM's in the same round. Images are
2 x 14 x 14 noise, one thread. What comes into force late (a penalty after its anneal step) is in force from
the first update; of an algorithm with stages, the last one is measured, after one update in each before.

With --to, the figures are also written as JSON, from which docs/algorithms.md takes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import machine, table

from dgharness import registry
from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.groups import grouping
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.source import TrainingSource
from dgharness.data.tasks import classification
from dgharness.models.mnist_cnn import mnist_cnn
from dgharness.models.model import build_model
from dgharness.plugin import Batch, Dims
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

SHAPE, CLASSES, DOMAINS, IMAGES = (2, 14, 14), 10, 3, 32
WARM_UP = 2  # rounds that are not counted
LATE = ("anneal_steps", "burnin_steps", "pretrain_steps")  # settings that delay what is to be measured
FIELDS = ("targets_EB", "domain_EB", "group_EB", "index_EB")


def world() -> TrainingSource:
    """Noise with labels, of which the last domain is held out."""
    rows, random = 200 * (DOMAINS + 1), np.random.default_rng(0)
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical.from_codes(random.integers(CLASSES, size=rows), pd.RangeIndex(CLASSES)),
            "domain": pd.Categorical(np.repeat([f"d{k}" for k in range(DOMAINS + 1)], 200)),
        }
    )
    images = torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(0))
    dataset = Dataset("noise", manifest, InMemory(images), classification(CLASSES), SHAPE)
    splits = leave_one_domain_out(dataset, (f"d{DOMAINS}",), 0)
    groups = grouping(manifest, ["domain"]).group_M
    return TrainingSource(dataset, splits, groups, torch.device("cpu"), splits.train_domains)


def minibatches(source: TrainingSource, n: int) -> list[Mapping[str, Any]]:
    """Minibatches of one row per domain, as the fields of ``Learner.step``."""
    draw, found = torch.Generator().manual_seed(1), []
    for _ in range(n):
        rows: list[Batch] = [source.sample({"domain": k}, IMAGES, draw) for k in range(DOMAINS)]
        stacked = {name: torch.cat([getattr(row, name) for row in rows]) for name in FIELDS}
        found.append({"x": torch.cat([row.x for row in rows]), **stacked})
    return found


@dataclass
class Timed:
    """An algorithm that trains, and how long its rounds took."""

    learner: Learner
    seconds: list[float]


def timed(name: str, source: TrainingSource) -> Timed:
    """An algorithm on the model, at the defaults but without delay."""
    spec = registry.load("algorithms", name)
    late = [field for field in spec.hparams.model_fields if field.endswith(LATE)]
    hp = spec.hparams(**dict.fromkeys(late, 0))

    def network(copy: int) -> Any:
        return build_model(mnist_cnn, SHAPE, CLASSES, mnist_cnn.options(), 0, copy)

    model, features = network(0)
    learner = Learner(
        spec,
        model,
        Dims(CLASSES, features, DOMAINS, DOMAINS, len(source.columns["y"]), SHAPE),
        hp,
        OptimizerConfig(lr=1e-3, weight_decay=0.0),
        0,
        steps=10**6,
        new_model=lambda number: network(number)[0],
        views={view: lambda x, draws: x for view in spec.needs.views},
        source=source,
        batch_size=IMAGES,
    )
    learner.stages = [replace(stage, steps=1) for stage in learner.stages[:-1]] + learner.stages[-1:]
    return Timed(learner, [])


def one_round(run: Timed, source: TrainingSource, batches: Iterable[Mapping[str, Any]]) -> None:
    """Some updates, timed."""
    began = time.process_time()
    for batch in batches:
        run.learner.enter_stage(source)
        run.learner.step(batch["x"], batch["targets_EB"], **{name: batch[name] for name in FIELDS[1:]})
    run.seconds.append(time.process_time() - began)


def measure(names: list[str], rounds: int, steps: int) -> tuple[dict[str, float], float]:
    """For each algorithm its cost relative to ERM, and the milliseconds of one update of ERM."""
    source = world()
    batches, runs = minibatches(source, steps), {}
    for name in dict.fromkeys(["erm", *names]):
        runs[name] = timed(name, source)
    for number in range(WARM_UP + rounds):
        for name, run in runs.items():
            try:
                one_round(run, source, batches)
            except Exception as error:
                raise SystemExit(f"{name} cannot be measured: {type(error).__name__}: {error}") from error
        print(f"round {number + 1} of {WARM_UP + rounds}", file=sys.stderr, flush=True)
    erm = runs["erm"].seconds[WARM_UP:]
    ratios = {
        name: statistics.median(own / base for own, base in zip(run.seconds[WARM_UP:], erm, strict=True))
        for name, run in runs.items()
    }
    return ratios, 1000 * statistics.median(erm) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="updates of each algorithm in a round")
    parser.add_argument("--algorithms", default="", help="names with commas between; default: all built-in")
    parser.add_argument("--to", type=Path, help="write the figures here as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    entries = registry.entries("algorithms", include_unverified=True)
    built_in = [entry.name for entry in entries if entry.source == "built-in"]
    names = args.algorithms.split(",") if args.algorithms else built_in
    ratios, erm_ms = measure(names, args.rounds, args.steps)
    how = (
        f"medians of {args.rounds} rounds of {args.steps} updates, mnist-cnn, {DOMAINS} x {IMAGES} images of "
        f"{' x '.join(map(str, SHAPE))}, one update of ERM {erm_ms:.0f} ms of CPU time; {machine()}"
    )
    ordered = dict(sorted(ratios.items(), key=lambda pair: pair[1]))
    print(f"{how}\n")
    print(table(["algorithm", "cost / ERM"], [[name, f"{ratio:.2f}"] for name, ratio in ordered.items()]))
    if args.to:
        args.to.parent.mkdir(parents=True, exist_ok=True)
        costs = {name: round(ratio, 2) for name, ratio in sorted(ratios.items())}
        args.to.write_text(json.dumps({"measured": how, "cost": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
