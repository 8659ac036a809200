"""The harness' training step against bare PyTorch loops: colored-mnist, mnist-cnn, IRMv1, batch 2 x 64.

The harness' side is the training loop itself (``dgharness.training.loop.fit``): it draws the rows, fetches
them, makes the update and logs. The bare loops find float minibatches ready in memory and do the forward
pass, the same penalty, the backward pass and Adam's step, nothing else; one takes the penalty's slope as
the harness does (forward mode), the other as DomainBed does (``autograd.grad`` through a factor of 1).

All train from the same weights on the same minibatches in one process, a few steps of one after a few
steps of the next, so that a disturbance hits them alike; the ratios are medians over such rounds. The second
ratio is of CPU time, which other processes on the machine disturb less. Logging happens once a round.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import config, data_root, machine, quartiles, table
from torch import Tensor, nn
from torch.func import jvp

from dgharness.rundir import RunDir
from dgharness.step import Batch
from dgharness.training.build import build
from dgharness.training.loop import Run, fit, next_batch
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress

WARM_UP = 2  # rounds that are not counted

Penalty = Callable[[Tensor, Tensor], Tensor]


def forward_mode(logits_EBC: Tensor, y_EB: Tensor) -> Tensor:
    """IRMv1's penalty by a derivative along the logits, on each row at once."""

    def loss_EB(z_EBC: Tensor) -> Tensor:
        return F.cross_entropy(z_EBC.flatten(0, 1), y_EB.flatten(), reduction="none").view(y_EB.shape)

    slope_EB = jvp(loss_EB, (logits_EBC,), (logits_EBC,))[1]
    return (slope_EB[:, ::2].mean(1) * slope_EB[:, 1::2].mean(1)).mean()


def reverse_mode(logits_EBC: Tensor, y_EB: Tensor) -> Tensor:
    """The same penalty by the gradient of a factor on the logits, row by row."""
    penalties = []
    for logits_BC, y_B in zip(logits_EBC, y_EB, strict=True):
        scale = logits_BC.new_ones(()).requires_grad_()
        even = F.cross_entropy(logits_BC[::2] * scale, y_B[::2])
        odd = F.cross_entropy(logits_BC[1::2] * scale, y_B[1::2])
        slopes = [torch.autograd.grad(loss, [scale], create_graph=True)[0] for loss in (even, odd)]
        penalties.append(slopes[0] * slopes[1])
    return torch.stack(penalties).mean()


class BareLoop:
    """What one would write by hand."""

    def __init__(self, model: nn.Module, penalty: Penalty, lr: float, weight: float, anneal_steps: int):
        self.model, self.penalty, self.lr = copy.deepcopy(model), penalty, lr
        self.weight, self.anneal_steps, self.t = weight, anneal_steps, 0
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr)

    def train(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y_EB in batches:
            if self.t == self.anneal_steps:
                self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
            weight = self.weight if self.t >= self.anneal_steps else 1.0
            logits_EBC = self.model(x).unflatten(0, y_EB.shape)
            risk = F.cross_entropy(logits_EBC.flatten(0, 1), y_EB.flatten())
            loss = risk + weight * self.penalty(logits_EBC, y_EB)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.t += 1


Times = tuple[float, float]  # seconds of wall and of CPU


def clocks() -> Times:
    return time.perf_counter(), time.process_time()


def since(began: Times) -> Times:
    wall, cpu = clocks()
    return wall - began[0], cpu - began[1]


class Done(Exception):
    """Enough rounds."""


class Turns:
    """Stands where the loop looks for a signal after each update, and lets the bare loops have their turn."""

    def __init__(self, run: Run, bare: dict[str, BareLoop], rounds: int, steps: int) -> None:
        self.run, self.bare, self.rounds, self.steps = run, bare, rounds, steps
        self.seconds: dict[str, list[Times]] = {name: [] for name in ("harness", *bare)}
        self.began = clocks()

    @property
    def signal(self) -> None:
        t = self.run.learner.t
        if t % self.steps:
            return
        self.seconds["harness"].append(since(self.began))
        batches = [ready(self.run, before) for before in range(t - self.steps, t)]
        forwards = len(self.seconds["harness"]) % 2
        for name in sorted(self.bare, reverse=not forwards):
            began = clocks()
            self.bare[name].train(batches)
            self.seconds[name].append(since(began))
        if t >= self.rounds * self.steps:
            raise Done
        self.began = clocks()


def ready(run: Run, t: int) -> tuple[Tensor, Tensor]:
    """The minibatch that the harness had after t updates."""
    learner: Any = run.learner
    now, learner.t = learner.t, t
    batch: Batch = next_batch(run, learner.stages[0])
    learner.t = now
    return batch.x, batch.targets_EB


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20, help="updates of each loop in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="mnist-cnn")
    args = parser.parse_args()
    rounds = args.rounds + WARM_UP
    with data_root() as (root, data), tempfile.TemporaryDirectory() as folder:
        settings = {
            "model__name": args.model,
            "train__steps": 10**6,
            "train__eval_every": 10**6,
            "train__log_every": args.steps,
        }
        prepared = prepare(config(root, args.threads, **settings))
        run = build(prepared, Progress())
        run.rundir = RunDir.create(Path(folder), "benchmark", config_hash=prepared.config_hash)
        resolved, hp = prepared.config, prepared.options.hp
        assert resolved.optimizer.lr is not None
        model = run.learner.algorithm.model
        bare = {
            name: BareLoop(model, penalty, resolved.optimizer.lr, hp.weight, hp.anneal_steps)
            for name, penalty in {
                "bare, forward mode": forward_mode,
                "bare, autograd.grad": reverse_mode,
            }.items()
        }
        turns: Any = Turns(run, bare, rounds, args.steps)
        run.stop = turns
        with contextlib.suppress(Done):
            fit(run)
        counted = {name: seconds[WARM_UP:] for name, seconds in turns.seconds.items()}
        rows = []
        for name, seconds in counted.items():
            ms = [1000 * quartiles([each[clock] / args.steps for each in seconds])[1] for clock in (0, 1)]
            row = [name, *(f"{each:.2f}" for each in ms)]
            if name in bare:
                row += [ratios(counted["harness"], seconds, clock) for clock in (0, 1)]
                row.append(f"{largest_difference(model, bare[name].model):.1e}")
            rows.append(row + [""] * (6 - len(row)))
        print(f"{args.model}, {args.rounds} rounds of {args.steps} steps each; {machine(data)}\n")
        print(table(["loop", "ms", "CPU ms", "harness / it", "in CPU time", "weights differ by"], rows))
        print("\nper step; ratios with their quartiles over the rounds")


def ratios(ours: list[Times], theirs: list[Times], clock: int) -> str:
    lower, middle, upper = quartiles([a[clock] / b[clock] for a, b in zip(ours, theirs, strict=True)])
    return f"{middle:.3f} ({lower:.3f} to {upper:.3f})"


if __name__ == "__main__":
    main()
