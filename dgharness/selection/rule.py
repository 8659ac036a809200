"""What a model-selection rule is, and how it chooses: pure functions over logged results.

A rule scores one checkpoint of one run. The choice is the arg-max, jointly over the checkpoints and the
hyperparameter draws of one trial; the first wins a tie (DomainBed's scripts take the last of tied draws), NaN
never wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

from dgharness.metrics.measure import Measure, measure_of
from dgharness.names import find

HELD_OUT = "held-out domains"  # what the tag dg.validation says then
Needs = Literal["", "official metric", "classes", "id_val", "held-out validation domains", "test_holdout"]
Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING", "MISSING"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one checkpoint; ``step`` counts completed updates."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One tracked training run, as far as selection and reports need it."""

    run_id: str
    algorithm: str
    dataset: str
    protocol: str
    targets: tuple[str, ...]
    hparams_seed: int
    trial_seed: int
    status: Status
    evaluations: tuple[Evaluation, ...]
    weights: str = "scratch"
    preset: str = ""
    error: str = ""
    tta: str = "none"
    averaging: str = "none"
    rules: tuple[str, ...] = ()  # that it was prepared for: its target is scored where they choose
    cost: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ended: int | None = None  # milliseconds since 1970
    precedence: int = 0  # the lowest of tied draws wins, before their hyperparameter seeds are looked at

    @cached_property
    def choices(self) -> dict[Rule, Choice | None]:
        """What rules chose of its checkpoints so far; the parts of a report ask one after the other."""
        return {}

    @property
    def validates_on_held_out(self) -> bool:
        """Whether the domains of its split val are none that it trained on, as it says itself."""
        return self.tags.get("dg.validation") == HELD_OUT


Score = Callable[[Evaluation, Mapping[str, Evaluation]], float]


@dataclass(frozen=True)
class Rule:
    """A model-selection rule as the registry holds it.

    ``score(evaluation, others)``: larger is better, NaN where there is nothing to go by. ``others`` is empty
    unless the rule reads ``pairs``: then it holds, for every other domain v, what the run on targets
    {target, v} of the same draw and trial logged at the same step.
    """

    name: str
    caption: str  # one sentence: how it chooses the checkpoint and the hyperparameters
    score: Score
    checkpoints: Literal["all", "last"] = "all"
    oracle: bool = False  # it reads labels of the target domain
    pairs: bool = False
    needs: Needs = ""  # what a dataset, or a split of it, must have for it
    doc: str = ""
    version: int = 1
    api: int = 1
    group: ClassVar[str] = "selection"


@dataclass(frozen=True)
class Choice:
    """The checkpoint that a rule chose, and its score."""

    run: RunRecord
    evaluation: Evaluation
    score: float


def choose(rule: Rule, runs: Sequence[RunRecord], pairs: Sequence[RunRecord] = ()) -> Choice | None:
    """The rule's choice among the draws of one algorithm, target and trial; None where nothing scores.

    ``pairs`` are the runs with one more held-out domain, of the same algorithm and trial. A step that one of
    the draw's pairs lacks is left out.
    """
    best: Choice | None = None
    for run in sorted(runs, key=lambda run: (run.precedence, run.hparams_seed, run.run_id)):
        own = _of_run(rule, run, pairs) if rule.pairs else _alone(rule, run)
        if own is not None and (best is None or own.score > best.score):
            best = own
    return best


def _alone(rule: Rule, run: RunRecord) -> Choice | None:
    if rule not in run.choices:
        run.choices[rule] = _of_run(rule, run)
    return run.choices[rule]


def _of_run(rule: Rule, run: RunRecord, pairs: Sequence[RunRecord] = ()) -> Choice | None:
    """The rule's choice among the checkpoints of one run."""
    best: Choice | None = None
    for evaluation in _candidates(rule, run):
        others = _others(run, evaluation, pairs) if rule.pairs else {}
        if others is None:
            continue
        score = rule.score(evaluation, others)
        if score > (best.score if best else -math.inf):
            best = Choice(run, evaluation, score)
    return best


def validation_score(evaluation: Evaluation) -> float:
    """Unweighted mean of the accuracy over the domains of the validation split.

    In regression, here and below, minus the mean squared error stands for accuracy: larger is better.
    """
    return split_score(evaluation, "val")


def split_score(evaluation: Evaluation, split: str) -> float:
    """The same mean over the domains of any split; NaN where none was logged."""
    measure = measure_of(evaluation.metrics)
    of_all = evaluation.metrics.get(f"{split}/{measure.key}_domain_mean", math.nan)
    by_domain = _by_domain(evaluation, split, measure)
    return measure.sign * (mean(by_domain) if by_domain else of_all)


def mean_score(evaluation: Evaluation, split: str) -> float:
    """Accuracy over all examples of a split; NaN where it was not logged."""
    measure = measure_of(evaluation.metrics)
    return measure.sign * evaluation.metrics.get(f"{split}/{measure.key}_avg", math.nan)


def judged_score(evaluation: Evaluation, split: str) -> float:
    """What the dataset's publishers judge a split by: their metric, or without one ``split_score``."""
    official = evaluation.metrics.get(f"{split}/official_score")
    return split_score(evaluation, split) if official is None else official


def domain_score(evaluation: Evaluation, split: str, domain: str) -> float:
    """Accuracy on one domain's part of a split; NaN where it was not logged."""
    return measure_of(evaluation.metrics).sign * measured_on(evaluation, split, domain)


def worst_group_score(evaluation: Evaluation, split: str) -> float:
    """Accuracy on the worst group of a split; NaN where it was not logged."""
    measure = measure_of(evaluation.metrics)
    return measure.sign * evaluation.metrics.get(f"{split}/{measure.worst_group}", math.nan)


def measured_on(evaluation: Evaluation, split: str, domain: str) -> float:
    """Accuracy, or in regression the mean squared error itself, on one domain's part of a split.

    Where there were too many domains to log one by one, it is their mean.
    """
    measure = measure_of(evaluation.metrics)
    found = find(evaluation.metrics, f"{split}/{measure.key}/", domain)
    if found is None and not _by_domain(evaluation, split, measure):
        found = evaluation.metrics.get(f"{split}/{measure.key}_domain_mean")
    return math.nan if found is None else found


def mean(values: Iterable[float]) -> float:
    """The mean, NaN of nothing; exactly rounded, so that the order of the domains decides no tie."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _by_domain(evaluation: Evaluation, split: str, measure: Measure) -> list[float]:
    metrics = evaluation.metrics
    return [metrics[key] for key in beginning(f"{split}/{measure.key}/", tuple(metrics))]


@lru_cache(1024)  # thousands of checkpoints have the same keys
def beginning(prefix: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that begin so."""
    return tuple(key for key in keys if key.startswith(prefix))


def _candidates(rule: Rule, run: RunRecord) -> list[Evaluation]:
    in_order = sorted(run.evaluations, key=lambda evaluation: evaluation.step)
    return in_order if rule.checkpoints == "all" else in_order[-1:]


def _others(run: RunRecord, at: Evaluation, pairs: Sequence[RunRecord]) -> dict[str, Evaluation] | None:
    wanted = {v for pair in pairs for v in _partners(run, pair)}
    found = {
        v: evaluation
        for pair in pairs
        if (pair.hparams_seed, pair.trial_seed) == (run.hparams_seed, run.trial_seed)
        for v in _partners(run, pair)
        for evaluation in pair.evaluations
        if evaluation.step == at.step
    }
    training_domains = len(_by_domain(at, "val", measure_of(at.metrics)))
    return found if found.keys() == wanted and len(found) >= max(1, training_domains) else None


def _partners(run: RunRecord, pair: RunRecord) -> Iterator[str]:
    (target,) = run.targets if len(run.targets) == 1 else (None,)
    if target in pair.targets and len(pair.targets) == 2:
        yield from set(pair.targets) - {target}
