"""The training loop: one visible function, and the three things it does between updates."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dgharness.config import RunConfig
from dgharness.data.protocols import Splits
from dgharness.data.sampling import Sampler
from dgharness.data.source import TrainingSource, make_batch
from dgharness.errors import DivergenceError, Interrupted
from dgharness.names import slugs
from dgharness.plugin import Stage
from dgharness.rundir import RunDir
from dgharness.seeds import generator
from dgharness.selection.rule import Evaluation, Rule
from dgharness.tracking import Tracker
from dgharness.training import checkpoint
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.learner import Learner
from dgharness.training.progress import Progress
from dgharness.training.signals import StopFlag
from dgharness.training.target import adapted_validation, score_target


@dataclass
class Run:
    """A run under way: its parts, and the progress that every checkpoint holds."""

    config: RunConfig  # resolved
    learner: Learner
    source: TrainingSource
    splits: Splits
    samplers: dict[tuple[str, str], Sampler]  # by stage: (sampler, split)
    evaluator: Evaluator
    row_names: Mapping[str, tuple[str, ...]]  # of a batch's rows, by what the sampler says they are
    rules: Sequence[Rule]
    rundir: RunDir
    tracker: Tracker
    stop: StopFlag
    progress: Progress

    recent: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  # metrics not yet logged
    evaluations: list[Evaluation] = field(default_factory=list)
    sealed: dict[int, dict[str, float]] = field(default_factory=dict)  # target metrics by step
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # rule -> (score, step)
    seconds: float = 0.0
    images: int = 0
    mark: float = field(default_factory=time.perf_counter)  # until when ``seconds`` counts

    @property
    def total(self) -> int:
        return self.config.train.steps or 0

    def lap(self) -> float:
        """Seconds spent on this run so far, over all its resumptions."""
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        return self.seconds

    def sampler(self, stage: Stage) -> Sampler:
        return self.samplers[stage.sampler or self.config.train.sampler, stage.split]

    @property
    def adapts_by_nature(self) -> bool:
        """Whether the test-time method is the algorithm's own."""
        return self.learner.spec.tta is not None and self.learner.spec.tta == self.config.tta.name

    @property
    def over(self) -> bool:
        return self.learner.t >= self.total or self.learner.finished


def fit(run: Run) -> None:
    """Train from wherever the run stands to its end; every evaluation is a checkpoint."""
    learner, train = run.learner, run.config.train
    eval_every = train.eval_every or run.total
    while not run.over:
        stage = learner.enter_stage(run.source)
        batch = next_batch(run, stage)
        metrics = learner.step(
            batch.x,
            batch.targets_EB,
            domain_EB=batch.domain_EB,
            group_EB=batch.group_EB,
            index_EB=batch.index_EB,
            attributes=batch.attributes,
            unlabeled=batch.unlabeled,
        )
        run.recent.append((learner.t, metrics))
        run.images += batch.index_EB.numel()
        evaluating = learner.t % eval_every == 0 or run.over
        stage_ends = learner.stage()[1]  # the next one may have other metrics and rows
        if learner.t % train.log_every == 0 or stage_ends or evaluating:
            log_training(run, stage)
        if evaluating:
            evaluation = validate(run)
            keep_best(run, evaluation)
            run.lap()
            checkpoint.save(run)
            run.tracker.deliver()
            run.progress.line(run, evaluation)
        if run.stop.signal is not None:
            run.lap()
            checkpoint.save(run)
            raise Interrupted(run.stop.signal)


def next_batch(run: Run, stage: Stage) -> Any:
    """What the stage's sampler draws for the next update."""
    t = run.learner.t
    unlabeled = run.samplers.get(("pooled", "unlabeled"))
    return make_batch(
        run.evaluator.dataset,
        run.evaluator.reader,
        run.sampler(stage).draw(t),
        run.source.domain_M,
        run.source.group_M,
        t,
        run.evaluator.device,
        generator(run.config.trial_seed, "augmentation", t),
        unlabeled.draw(t) if unlabeled else None,
    )


def log_training(run: Run, stage: Stage) -> None:
    """Log the mean of the training metrics since the last time, all of one stage.

    This is where the host waits for the device, so it is also where divergence is noticed: the first step
    at which a term was not finite is named.
    """
    columns: dict[str, list[tuple[int, Tensor]]] = {}
    for t, metrics in run.recent:
        for name, value in metrics.items():
            columns.setdefault(name, []).append((t, value))
    stacked = {
        name: torch.stack([value for _, value in column]).float().cpu() for name, column in columns.items()
    }
    bad = []
    for name, values in stacked.items():
        steps = (~values.isfinite().reshape(len(values), -1).all(1)).nonzero().flatten().tolist()
        if steps:
            # The loss is a sum of the terms: at the same step, name the term.
            bad.append((columns[name][steps[0]][0], name == "loss", name))
    if bad:
        step, _, term = min(bad)
        raise DivergenceError(term.removesuffix("s_E"), step)
    row_names = run.row_names.get(run.sampler(stage).rows, ())
    for name, values in stacked.items():
        mean = values.mean(0)
        if mean.dim() == 0:
            run.rundir.record(f"train/{name}", float(mean), run.learner.t)
        elif len(mean) == len(row_names):
            for row, value in zip(slugs(row_names).values(), mean.tolist(), strict=True):
                run.rundir.record(f"train/{name.removesuffix('s_E')}/{row}", value, run.learner.t)
    run.recent.clear()


def validate(run: Run) -> Evaluation:
    """Score the training domains' validation parts; the target only where a rule needs every checkpoint.

    Where adaptation is part of the method, checkpoints are chosen by what it makes of each validation domain
    as of a target; ``val_unadapted/...`` stands beside it.
    """
    t, evaluator = run.learner.t, run.evaluator
    predictor = run.learner.predictor(run.source)
    metrics: dict[str, float] = {}
    for split in ("val", "id_val"):
        if split in run.splits.rows:
            rows = all_rows(run.splits.rows[split])
            scores = evaluator.scores(evaluator.outputs(predictor, rows), rows)
            if run.adapts_by_nature:
                metrics.update(scores.flat(f"{split}_unadapted"))
                scores = evaluator.scores(adapted_validation(run, predictor, split), rows)
            metrics.update(scores.flat(split))
    if not math.isfinite(metrics[f"val/{scores.loss}"]):
        raise DivergenceError(f"val/{scores.loss}", t)
    for key, value in metrics.items():
        run.rundir.record(key, value, t)
    evaluation = Evaluation(t, metrics)
    run.evaluations.append(evaluation)
    if any(rule.pairs for rule in run.rules):
        score_target(run, t, predictor)
    return evaluation


def keep_best(run: Run, evaluation: Evaluation) -> None:
    """Keep the weights of the best checkpoint of each rule that chooses by validation, first on ties."""
    for rule in run.rules:
        if rule.checkpoints == "all" and not rule.pairs and not rule.oracle:
            score = rule.score(evaluation, {})
            if score > run.best.get(rule.name, (float("-inf"), 0))[0]:
                run.best[rule.name] = (score, evaluation.step)
                checkpoint.save_weights(run, rule.name)
    if run.over:
        checkpoint.save_weights(run, "last")
