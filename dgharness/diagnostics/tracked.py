"""What a diagnosis over runs looks at: finished runs on the same data and split, and their stored outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgharness.errors import NotApplicable, UsageError
from dgharness.selection.rule import Choice, Evaluation, Rule, RunRecord, choose

if TYPE_CHECKING:
    from dgharness.predictions import Predictions

IN_DISTRIBUTION = ("id_test", "id_val", "val")  # the first of these splits that there is
SEALED = "It reads labels of the target: it describes finished runs, and nothing may be selected by it."


@dataclass(frozen=True)
class TrackedRuns:
    """Runs that may stand in one figure, and what was asked about them.

    ``predictions(run, step)`` reads the outputs stored at a checkpoint, and raises NotApplicable where there
    are none. ``x`` and ``y`` are metric keys, empty for those that a diagnosis takes by itself.
    """

    title: str  # "PACS, leave-one-domain-out → sketch"
    records: tuple[RunRecord, ...]
    rule: Rule
    label: Callable[[RunRecord], str]  # the row of a run in a table: its algorithm and what was added to it
    predictions: Callable[[RunRecord, int], Predictions]
    baseline: str = "erm"
    x: str = ""
    y: str = ""
    checkpoints: Literal["scored", "chosen"] = "scored"

    def scored(self) -> Iterator[tuple[RunRecord, Evaluation]]:
        """Every checkpoint whose target was scored, or of each run the one that the rule chose."""
        if self.checkpoints == "chosen":
            yield from ((choice.run, choice.evaluation) for choice in self.chosen())
            return
        for run in self.records:
            yield from ((run, evaluation) for evaluation in run.evaluations if is_scored(evaluation))

    def chosen(self) -> list[Choice]:
        """The checkpoint that the rule chooses in every run, where its target was scored."""
        choices = (choose(self.rule, [run]) for run in self.records)
        return [choice for choice in choices if choice and is_scored(choice.evaluation)]

    def selected(self) -> dict[str, dict[int, Choice]]:
        """What the rule chooses among the draws of each row and trial: label -> trial seed -> choice."""
        slots: dict[str, dict[int, list[RunRecord]]] = {}
        for run in self.records:
            slots.setdefault(self.label(run), {}).setdefault(run.trial_seed, []).append(run)
        found = {
            label: {trial: choose(self.rule, runs) for trial, runs in sorted(trials.items())}
            for label, trials in slots.items()
        }
        return {
            label: {t: choice for t, choice in trials.items() if choice and is_scored(choice.evaluation)}
            for label, trials in found.items()
        }


def is_scored(evaluation: Evaluation) -> bool:
    """Whether the target was scored with this checkpoint."""
    return any(key.startswith("test/") for key in evaluation.metrics)


def group_counts(tracked: TrackedRuns) -> dict[str, int]:
    """Training examples of every group, of the first run that tells; NotApplicable where none does."""
    for choice in tracked.chosen():
        try:
            found = tracked.predictions(choice.run, choice.evaluation.step)
        except UsageError:
            continue  # its outputs were too large to be stored, or stored by another version
        if found.train_count_G is not None:
            return dict(zip(found.groups, map(int, found.train_count_G.tolist()), strict=True))
    raise NotApplicable("no run has stored how many training examples its groups have")


def in_distribution(found: Predictions) -> Predictions:
    """The examples of the training domains that were held back from training."""
    return found.of(*[split for split in IN_DISTRIBUTION if split in found.split_N][:1])
