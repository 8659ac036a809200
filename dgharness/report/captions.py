"""The sentences that make a table citable: what was run, how it was chosen, what the numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dgharness.metrics.measure import ACCURACY, Measure
from dgharness.names import slug
from dgharness.report.statistics import ALPHA, Comparison, smallest_p
from dgharness.report.table import OWN_SPLIT, Block, Column, Row, label_of
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
    comparisons: Sequence[Comparison],
    averaged: bool,
    gaps: bool,
    measure: Measure = ACCURACY,
) -> tuple[str, ...]:
    """Everything that a reader needs beside the numbers, one paragraph for each matter."""
    what = "Accuracy (%)" if measure is ACCURACY else f"{measure.name.capitalize()} (lower is better)"
    found = [
        f"{what} {on_what(block)}: {block}.",
        *([f"Runs with other settings stand in a table of their own; here: {apart}."] if apart else []),
        *(f"{title(rule)}: {rule.caption.replace(ACCURACY.name, measure.name)}" for rule in rules),
        _spread(trials, draws) + (" Averages are over domains, within each trial." if averaged else ""),
    ]
    if comparisons:
        found.append(_significance(baseline, comparisons))
    if gaps:
        found.append(
            "Gap: accuracy under the oracle minus accuracy under the rule, in points."
            if measure is ACCURACY
            else f"Gap: {measure.name} under the rule minus {measure.name} under the oracle."
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


def _spread(trials: int, draws: Sequence[int]) -> str:
    drawn = f"{len(draws)} hyperparameter draws per trial"
    if len(draws) == 1:
        given = "at their defaults or as given" if draws[0] == 0 else "of one draw"
        drawn = f"hyperparameters {given} (no search)"
    if trials < 2:
        return f"1 trial, {drawn}: no standard error and no test."
    return f"{trials} trials, {drawn}; mean ± standard error over trials (ddof = 1)."


def _significance(baseline: str, comparisons: Sequence[Comparison]) -> str:
    n = min(comparison.trials for comparison in comparisons)
    found = sum(comparison.significant for comparison in comparisons)
    together = f"{len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''}"
    return (
        f"Differences to {baseline} are paired by trial. Where shown, brackets are 95 % t-intervals without "
        f"correction and p is a paired t-test's after Holm's correction over the {together} of this table; * "
        f"marks p ≤ {ALPHA:g} ({found} marked). The t-test takes differences to be normal: without that, no "
        f"p below {smallest_p(n):.2g} is reachable with {n} trials."
    )
