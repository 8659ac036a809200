"""The sentences that make a table citable: what was run, how it was chosen, what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from dgharness.metrics.measure import ACCURACY, Measure
from dgharness.names import slug
from dgharness.report.paired import Comparison
from dgharness.report.statistics import ALPHA, MOST_TRIALS, POWER, Ddof, smallest_p
from dgharness.report.table import OWN_SPLIT, Block, Column, Kind, Row, label_of
from dgharness.selection.rule import Rule, RunRecord


def title(rule: Rule) -> str:
    """The rule's name, with the oracle called one."""
    return f"{rule.name} (oracle)" if rule.oracle else rule.name


def caption(
    block: Block,
    rules: Sequence[Rule],
    apart: str = "",
    *,
    trials: int,
    draws: Sequence[int],
    baseline: str,
    comparisons: Mapping[str, Comparison],
    kinds: Collection[Kind],
    measure: Measure = ACCURACY,
    ddof: Ddof = 1,
) -> tuple[str, ...]:
    """Everything that a reader needs beside the numbers, one paragraph for each matter.

    ``comparisons`` are named by row; ``kinds`` are those of the table's columns.
    """
    averaged = "average" in kinds
    what = "Accuracy (%)" if measure is ACCURACY else f"{measure.name.capitalize()} (lower is better)"
    found = [
        f"{what} {on_what(block)}: {block}.",
        *([f"Runs with other settings stand in a table of their own; here: {apart}."] if apart else []),
        *(f"{title(rule)}: {_caption(rule, measure)}" for rule in rules),
        _spread(trials, draws, ddof) + (" Averages are over domains, within each trial." if averaged else ""),
    ]
    if comparisons:
        found.append(_significance(baseline, list(comparisons.values()), averaged))
    undecided = {name: row for name, row in comparisons.items() if row.undecided}
    if undecided and len(rules) == 1:  # of several rules they would fill a page; CSV and JSON have them
        found.append(_trials_needed(undecided, len(comparisons)))
    if "gap" in kinds:
        oracle = next((rule.name for rule in rules if rule.oracle), "the oracle")
        found.append(
            f"Gap: accuracy under {oracle} minus accuracy under the rule, in points."
            if measure is ACCURACY
            else f"Gap: {measure.name} under the rule minus {measure.name} under {oracle}."
        )
    return tuple(found)


def on_what(block: Block) -> str:
    """Where the numbers were measured."""
    if block.protocol in OWN_SPLIT:
        return "on the test split, unweighted mean over its domains"
    return "on held-out domains"


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """What a reader must know about a row before believing it."""
    found = []
    for record in records:
        label = label_of(record)
        if record.tags.get("dg.trust") == "unverified":
            found.append(f"{label} is an unverified reconstruction: its numbers do not speak for the method.")
        if uses := record.tags.get("dg.uses"):
            found.append(f"{label} uses {uses}.")
        if broken := record.tags.get("dg.against_rules"):
            found.append(f"{label}: {broken}.")
    return list(dict.fromkeys(found))


def leaderboard(records: Sequence[RunRecord], columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """How far each row is from what the dataset's leaderboard asks for, in the spread that it asks for.

    Where the dataset is judged by a metric of its own that is not shown, this says how to see it.
    """
    asked, metric = (
        next((record.tags[tag] for record in records if tag in record.tags), "")
        for tag in ("dg.replicates", "dg.official_metric")
    )
    shown = f"official/{slug(metric)}"
    names = [column.name for column in columns]
    official = [number for number, name in enumerate(names) if name.split(", ")[0] == shown]
    place = official[0] if official else 0
    found = []
    for row in rows if asked else ():
        cell = row.cells[place]
        if cell.problem:
            continue
        times, digits = (100, 1) if columns[place].unit == "percent" else (1, 3)
        spread = (
            ""
            if cell.sd is None or cell.mean is None
            else f"; {names[place]} {times * cell.mean:.{digits}f}, standard deviation (ddof = 1) "
            f"{times * cell.sd:.{digits}f}"
        )
        found.append(f"{row.label}: {cell.n} of {asked} replicates that the leaderboard asks for{spread}.")
    if metric and not official:
        judge = "leaderboard" if asked else "dataset's own evaluation"
        found.append(f"The {judge} goes by {metric}: dgharness report --extra {shown}.")
    return found


def other_test_splits(records: Sequence[RunRecord]) -> list[str]:
    """One column holds results on other domains in every trial."""
    held_out = {record.trial_seed: ", ".join(record.targets) for record in records}
    named = "; ".join(f"t{seed} {held_out[seed]}" for seed in sorted(held_out))
    return [f"The dataset's own split tests every trial on domains of its own: {named}."]


def never_apart(alike: Sequence[str], baseline: str) -> list[str]:
    """A method whose penalty never set in is the baseline under another name."""
    if not alike:
        return []
    verb, them = ("has", "it") if len(alike) == 1 else ("have", "them")
    return [
        f"{', '.join(alike)} {verb} the validation loss of {baseline} at every checkpoint: what sets {them} "
        "apart did not come into force; compare train.steps with hyperparameters such as anneal_steps."
    ]


def unequal_trials(shorter: Mapping[str, Sequence[int]], trials: int) -> list[str]:
    """Means over different trials must not be read side by side."""
    return [
        f"{label} was run on {len(seeds)} of {trials} trials ({', '.join(f't{seed}' for seed in seeds)}); "
        "go by the paired difference."
        for label, seeds in shorter.items()
    ]


def _caption(rule: Rule, measure: Measure) -> str:
    """The rule's sentence about what the runs are judged by; classes are judged by accuracy alone."""
    return rule.caption if rule.needs == "classes" else rule.caption.replace(ACCURACY.name, measure.name)


def _spread(trials: int, draws: Sequence[int], ddof: Ddof) -> str:
    drawn = f"{len(draws)} hyperparameter draws per trial"
    if len(draws) == 1:
        given = "at their defaults or as given" if draws[0] == 0 else "of one draw"
        drawn = f"hyperparameters {given} (no search)"
    if trials < 2:
        return f"1 trial, {drawn}: no standard error and no test."
    small = f", as DomainBed has it: {math.sqrt(1 - 1 / trials):.2f} times that of ddof = 1"
    return (
        f"{trials} trials, {drawn}; mean ± standard error over trials (ddof = {ddof}{'' if ddof else small})."
    )


def _significance(baseline: str, comparisons: Sequence[Comparison], averaged: bool) -> str:
    n = min(comparison.trials for comparison in comparisons)
    found = sum(comparison.significant for comparison in comparisons)
    family = f"the {len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''} of this table"
    paired, brackets, asks = "by trial", "t-intervals", ""
    if averaged:
        paired = "by trial and held-out domain"
        brackets = "intervals by a hierarchical bootstrap over trials and held-out domains"
        asks = (
            " p is about these domains; brackets also carry how much the difference varies between them, so "
            "that one may hold 0 where * stands."
        )
    return (
        f"Differences to {baseline} are paired {paired}; whether two rows' means ± standard error overlap is "
        f"no test. Where shown, brackets are 95 % {brackets}, without correction, and p is that of a paired "
        f"t-test over trials after Holm's correction over {family}; * marks p ≤ {ALPHA:g} ({found} marked)."
        f"{asks} The t-test takes differences to be normal: without that, no p below {smallest_p(n):.2g} "
        f"({smallest_p(n, len(comparisons)):.2g} after correction) is reachable with {n} trials."
    )


def _trials_needed(undecided: Mapping[str, Comparison], family: int) -> str:
    named = (f"{name} {row.trials_needed or f'more than {MOST_TRIALS}'}" for name, row in undecided.items())
    level = f"{ALPHA:g}" if family == 1 else f"{ALPHA:g}/{family}"
    return (
        f"Trials needed to find a difference at p ≤ {level} with a probability of {100 * POWER:.0f} %, were "
        f"it just as estimated here, which few trials do roughly: {', '.join(named)}."
    )
