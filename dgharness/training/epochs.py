"""Epochs as updates: how many updates a pass over the training data takes under a run's own sampler."""

from __future__ import annotations

import math
from collections.abc import Callable

from dgharness.config import RunConfig, TrainConfig
from dgharness.data.dataset import Dataset
from dgharness.data.groups import Grouping
from dgharness.data.protocols import Splits
from dgharness.data.sampling import make_sampler
from dgharness.errors import UsageError


def in_updates(resolved: RunConfig, asked: TrainConfig, per_epoch: Callable[[], float]) -> RunConfig:
    """The resolved configuration with its epochs worked out, rounded up to whole updates.

    They become ``train.steps``, and ``optimizer.decay_every`` where its decays are in epochs; with
    ``train.epochs`` there is an evaluation after every one unless ``train.eval_every`` is asked for. Steps
    that are asked for too must agree, as those of a run that is continued do; otherwise that is a UsageError.
    """
    train, optimizer = resolved.train, resolved.optimizer
    if train.epochs is None and optimizer.decay_epochs is None:
        return resolved
    updates = per_epoch()
    if train.epochs is not None:
        steps = math.ceil(train.epochs * updates)
        if asked.steps not in (None, steps):
            raise UsageError(
                f"train.steps={asked.steps} and train.epochs={train.epochs:g}, which is {steps} updates "
                "here, contradict each other; leave one of them out"
            )
        train = train.model_copy(
            update={"steps": steps, "eval_every": asked.eval_every or math.ceil(updates)}
        )
    if optimizer.decay_epochs is not None:
        decay_every = math.ceil(optimizer.decay_epochs * updates)
        optimizer = optimizer.model_copy(update={"decay_every": decay_every})
    return resolved.model_copy(update={"train": train, "optimizer": optimizer})


def updates_per_epoch(
    resolved: RunConfig, dataset: Dataset, splits: Splits, train_grouping: Grouping
) -> float:
    """Training examples over the examples of one update."""
    rows_by_domain = list(splits.rows["train"].values())
    sampler = make_sampler(
        resolved.train.sampler,
        rows_by_domain,
        dataset.targets_M,
        train_grouping.group_M,
        resolved.train.batch_size or 1,
        resolved.trial_seed,
        resolved.train.rows,
    )
    return sum(map(len, rows_by_domain)) / sampler.draw(0).numel()
