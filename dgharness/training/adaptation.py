"""A test-time method as a run applies it, its hyperparameters chosen on validation data.

The choice sees no target: every draw adapts to the validation part of each domain as it would to a target,
one domain as a stream at a time. In leave-one-domain-out these are the domains that the model was trained on,
an optimistic stand-in: there is less to adapt to than on a new one, so that what pays only under a larger
shift is not found; and the streams are shorter, so that harm which builds up does not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgharness.config import TTAConfig
from dgharness.hparams import draw
from dgharness.metrics.regression import RegressionScores
from dgharness.metrics.scores import Scores
from dgharness.plugin import Predictor, Source, TTASpec
from dgharness.seeds import seed_hash
from dgharness.training.evaluation import Adapted, Evaluator, joined


@dataclass(frozen=True)
class Draw:
    """Hyperparameters of the method, and what they are worth on validation data."""

    number: int  # 0 is the settings as given
    hp: Any
    scores: Scores | RegressionScores | None = None  # none where nothing was to be chosen


@dataclass(frozen=True)
class Adaptation:
    """A test-time method and all that is the same for every domain that it adapts to."""

    evaluator: Evaluator
    method: TTASpec
    config: TTAConfig
    source: Source
    trial_seed: int
    training_lr: float

    def draw(self, number: int = 0) -> Draw:
        """One draw of what the configuration leaves open.

        A method may ask for the learning rate of training by a hyperparameter ``training_lr``.
        """
        given = self.config.options
        if "training_lr" in self.method.hparams.model_fields:
            given.setdefault("training_lr", self.training_lr)
        return Draw(number, draw(self.method.hparams, number, self.trial_seed, given))

    def outputs(self, predictor: Predictor, rows_by_domain: Mapping[str, np.ndarray], hp: Any) -> Adapted:
        """Outputs on every domain, each a stream of its own."""
        seed = seed_hash(self.trial_seed, "tta")
        return joined(
            [
                self.evaluator.adapted(predictor, rows, self.method, hp, self.config, self.source, seed)
                for rows in rows_by_domain.values()
            ]
        )

    def tried(self, predictor: Predictor, val_rows: Mapping[str, np.ndarray]) -> list[Draw]:
        """All ``choose`` draws that differ, scored on these rows."""
        tried: list[Draw] = []
        for number in range(self.config.choose):
            new = self.draw(number)
            if all(new.hp != other.hp for other in tried):
                adapted = self.outputs(predictor, val_rows, new.hp)
                scores = self.evaluator.scores(adapted.outputs_NC, np.concatenate(list(val_rows.values())))
                tried.append(Draw(number, new.hp, scores))
        return tried


def best(draws: Sequence[Draw]) -> Draw:
    """The draw of the best mean over the validation domains: the first on ties, NaN last."""

    def goodness(each: Draw) -> float:
        value = each.scores.goodness if each.scores else math.nan
        return -math.inf if math.isnan(value) else value

    return max(draws, key=goodness)
