"""What a rule chose for each algorithm, column and trial, or which runs are in the way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

from dgharness.metrics.measure import Measure, shared_measure
from dgharness.report.refusals import no_choice, no_held_out, no_pairs, unscored
from dgharness.report.table import OWN_SPLIT, Block, Cell, algorithm_of, block_of, label_of, told_apart
from dgharness.selection.rule import Choice, Rule, RunRecord, choose, mean, measured_on

LOSSES = ("val/nll", "val/mse_avg")
POOLED = ("test split",)  # the one column of a dataset whose own split has other domains in every trial
Expected = tuple[str, tuple[str, ...], int, int]  # (algorithm, targets, hparams_seed, trial_seed)
# (algorithm, targets) -> reason; no targets are those of the dataset's own split, whatever they are
NotApplicable = Mapping[tuple[str, tuple[str, ...]], str]


class Slot(NamedTuple):
    """One run that a comparison needs."""

    label: str
    targets: tuple[str, ...]  # sorted
    hparams_seed: int
    trial_seed: int

    def __str__(self) -> str:
        return f"{self.label} on {'+'.join(self.targets)} h{self.hparams_seed} t{self.trial_seed}"


@dataclass(frozen=True)
class Outcome:
    """The choice of every trial, or the problem."""

    choices: Mapping[int, Choice] = field(default_factory=dict)
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Grid:
    """The runs of one block by slot: one each; none where it is missing, several where any could be meant."""

    labels: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]  # the held-out domains of each column
    runs: Mapping[Slot, tuple[RunRecord, ...]]

    @property
    def trials(self) -> int:
        return len({slot.trial_seed for slot in self.runs})

    @property
    def shorter(self) -> dict[str, list[int]]:
        """The rows that were run on some of the trials only, with the trial seeds that they have."""
        trials: dict[str, set[int]] = {label: set() for label in self.labels}
        for slot in self.runs:
            trials[slot.label].add(slot.trial_seed)
        return {label: sorted(seeds) for label, seeds in trials.items() if len(seeds) < self.trials}

    def alike(self, baseline: str) -> list[str]:
        """The rows of other algorithms whose runs all had the baseline's validation loss throughout."""
        own: dict[str, list[bool]] = {}
        for slot, runs in self.runs.items():
            others = self.runs.get(slot._replace(label=baseline), ())
            same = len(runs) == len(others) == 1 and _same_losses(runs[0], others[0])
            own.setdefault(slot.label, []).append(same)
        rivals = [label for label in self.labels if algorithm_of(label) != algorithm_of(baseline)]
        return [label for label in rivals if all(own[label])]

    @property
    def draws(self) -> tuple[int, ...]:
        """The hyperparameter seeds; 0 is the defaults."""
        return tuple(sorted({slot.hparams_seed for slot in self.runs}))


@dataclass(frozen=True)
class Comparable:
    """The runs of one block: all that may stand in one table."""

    block: Block
    apart: str  # the settings by which other blocks differ
    records: Sequence[RunRecord]
    runs: Grid
    planned: bool

    @cached_property
    def measure(self) -> Measure:
        """Runs on one dataset are all judged by one measure."""
        first = (evaluation for record in self.records for evaluation in record.evaluations[:1])
        return shared_measure(evaluation.metrics for evaluation in first)


def comparable(
    records: Sequence[RunRecord], expected: Sequence[Expected] | Mapping[Block, Sequence[Expected]] | None
) -> list[Comparable]:
    """Sort runs into blocks, and the runs of each into the slots that were expected of it."""
    blocks: dict[Block, list[RunRecord]] = {}
    for record in records:
        blocks.setdefault(block_of(record), []).append(record)
    apart = told_apart(list(blocks))
    found = []
    for block, members in blocks.items():
        plan = expected.get(block) if isinstance(expected, Mapping) else expected
        if plan is not None and len(blocks) > 1 and block.protocol not in OWN_SPLIT:
            # Another block's domains are not missing here.
            seen = {target for record in members for target in record.targets}
            plan = [item for item in plan if seen.issuperset(item[1])]
        presets = sorted({record.preset or "none" for record in members})
        shown = replace(block, preset=", ".join(presets))
        runs = grid(members, plan)
        if runs.columns:
            found.append(Comparable(shown, apart[block], members, runs, plan is not None))
    return found


def grid(records: Sequence[RunRecord], expected: Sequence[Expected] | None) -> Grid:
    """Sort runs into the slots that were expected, or else into the full product of what is there.

    Where the dataset's own split holds out other domains in every trial, they are one column.
    """
    of_their_own = any(record.protocol in OWN_SPLIT for record in records)
    tested = [targets for _, targets, _, _ in expected or ()] + [record.targets for record in records]
    pooled = of_their_own and len(set(map(frozenset, tested))) > 1

    def held_out(targets: tuple[str, ...]) -> tuple[str, ...]:
        return POOLED if pooled else tuple(sorted(targets))

    labels_of: dict[str, list[str]] = {}
    found: dict[Slot, list[RunRecord]] = {}
    order: dict[tuple[str, ...], tuple[str, ...]] = {}  # sorted targets -> as first given
    for record in records:
        label = label_of(record)
        if label not in labels_of.setdefault(record.algorithm, []):
            labels_of[record.algorithm].append(label)
        slot = Slot(label, held_out(record.targets), record.hparams_seed, record.trial_seed)
        found.setdefault(slot, []).append(record)
    for targets in tested:
        order.setdefault(held_out(targets), POOLED if pooled else targets)
    if expected is None:
        slots = list(_product(found))
    else:
        slots = [
            Slot(label, held_out(targets), hparams_seed, trial_seed)
            for algorithm, targets, hparams_seed, trial_seed in expected
            for label in labels_of.get(algorithm, [algorithm])
        ]
    wanted = {slot.targets for slot in slots}
    fewest = min(map(len, wanted), default=0)
    return Grid(
        labels=tuple(dict.fromkeys(slot.label for slot in slots)),
        columns=tuple(order[key] for key in order if key in wanted and len(key) == fewest),
        runs={slot: _distinct(found.get(slot, [])) for slot in slots},
    )


def outcome(rule: Rule, runs: Grid, label: str, column: tuple[str, ...], exempt: NotApplicable) -> Outcome:
    """What the rule chose for one algorithm and column, in every trial."""
    targets = tuple(sorted(column))
    own = [slot for slot in runs.runs if slot.label == label and slot.targets == targets]
    pairs = [
        slot
        for slot in runs.runs
        if rule.pairs and slot.label == label and len(slot.targets) == 2 and set(column) < set(slot.targets)
    ]
    for (name, held_out), reason in exempt.items():
        applies = set(held_out) == set(column) or (rule.pairs and set(column) < set(held_out))
        if (applies or not held_out) and algorithm_of(label) == name:
            return Outcome(problem="n/a", detail=f"{label} on {'+'.join(held_out or column)}: {reason}")
    if rule.needs == "held-out validation domains":
        others = [run for slot in own for run in runs.runs[slot] if not run.validates_on_held_out]
        if others:
            return Outcome(problem="n/a", detail=no_held_out(rule, others[0]))
    if rule.pairs and not pairs:
        return Outcome(
            problem="n/a", detail=no_pairs(rule, label, any(len(slot.targets) == 2 for slot in runs.runs))
        )
    trouble = _trouble([(slot, runs.runs[slot]) for slot in own + pairs])
    if trouble.problem or not own:
        return trouble if own else Outcome(problem="n/a", detail=f"{label} has no runs on {'+'.join(column)}")
    choices: dict[int, Choice] = {}
    for trial in sorted({slot.trial_seed for slot in own}):
        choice = choose(rule, _of(runs, own, trial), _of(runs, pairs, trial))
        if choice is None:
            return Outcome(problem="n/a", detail=no_choice(rule, f"trial {trial} of {label}"))
        if reason := unscored(rule, choice):
            return Outcome(problem="n/a", detail=reason)
        choices[trial] = choice
    return Outcome(choices)


def result(chosen: Outcome) -> Cell:
    """Accuracy (or squared error) on the reported part of the held-out domains, at the chosen checkpoints."""
    return measured(chosen, reported)


def reported(choice: Choice) -> float:
    """The mean over the held-out domains; NaN where the target was not scored at this checkpoint."""
    return mean(measured_on(choice.evaluation, "test", target) for target in choice.run.targets)


def metric(chosen: Outcome, name: str) -> Cell:
    """``cost/NAME`` of the chosen runs, or any other metric of the test split at the chosen checkpoints."""
    if name.startswith("cost/"):
        return measured(chosen, lambda choice: choice.run.cost.get(name.removeprefix("cost/"), math.nan))
    return measured(chosen, lambda choice: choice.evaluation.metrics.get(f"test/{name}", math.nan))


def measured(chosen: Outcome, read: Callable[[Choice], float]) -> Cell:
    """One number per trial; a number that was not logged leaves the whole cell empty."""
    if chosen.problem:
        return Cell(problem=chosen.problem, detail=chosen.detail)
    values = {trial: read(choice) for trial, choice in chosen.choices.items()}
    for trial, value in values.items():
        if math.isnan(value):
            choice = chosen.choices[trial]
            return Cell(
                problem="n/a", detail=f"run {choice.run.run_id} logged none at step {choice.evaluation.step}"
            )
    return Cell(values)


def _same_losses(one: RunRecord, other: RunRecord) -> bool:
    """Was the loss in validation, which hardly ever agrees by chance, the same at every checkpoint?"""
    losses = [
        {(e.step, key): e.metrics[key] for e in run.evaluations for key in LOSSES if key in e.metrics}
        for run in (one, other)
    ]
    first, second = losses
    return (
        bool(first)
        and first.keys() == second.keys()
        and all(math.isclose(first[key], second[key], rel_tol=1e-6) for key in first)
    )


def _of(runs: Grid, slots: Iterable[Slot], trial: int) -> list[RunRecord]:
    return [runs.runs[slot][0] for slot in slots if slot.trial_seed == trial]


def _product(found: Mapping[Slot, object]) -> Iterable[Slot]:
    """Every combination of what occurs; pairs of targets only for the algorithms that ran any."""
    fewest = min((len(slot.targets) for slot in found), default=0)
    for more in (False, True):
        held_out = [slot for slot in found if (len(slot.targets) > fewest) == more]
        parts = [list(dict.fromkeys(values)) for values in zip(*held_out, strict=True)]
        yield from (Slot(*combination) for combination in product(*parts) if combination)


def _distinct(candidates: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    """A finished run stands for its failed attempts; several finished ones only if they are the same run."""
    finished = [record for record in candidates if record.status == "FINISHED"]
    by_config: dict[str, RunRecord] = {}
    for record in finished:
        by_config.setdefault(record.tags.get("dg.config_hash", record.run_id), record)
    return tuple(by_config.values()) or tuple(candidates[-1:])


def _trouble(slots: Sequence[tuple[Slot, tuple[RunRecord, ...]]]) -> Outcome:
    bad: list[tuple[str, str, str]] = []  # status, short name, full description
    for slot, runs in slots:
        if len(runs) > 1:
            ids = ", ".join(run.run_id for run in runs)
            why = f"{slot}: AMBIGUOUS, several finished runs differ: {ids}"
            bad.append(("AMBIGUOUS", runs[0].run_id[:8], why))
        elif not runs:
            bad.append(("MISSING", f"h{slot.hparams_seed} t{slot.trial_seed}", f"{slot}: MISSING"))
        elif runs[0].status != "FINISHED":
            why = f" ({runs[0].error})" if runs[0].error else ""
            bad.append(
                (runs[0].status, runs[0].run_id[:8], f"{slot}: {runs[0].status} run {runs[0].run_id}{why}")
            )
    if not bad:
        return Outcome()
    counts = ", ".join(f"{status} {n}" for status, n in Counter(status for status, _, _ in bad).items())
    names = ", ".join(name for _, name, _ in bad[:3]) + (", …" if len(bad) > 3 else "")
    return Outcome(
        problem=f"{counts} of {len(slots)}: {names}",
        detail="; ".join(description for _, _, description in bad),
    )
