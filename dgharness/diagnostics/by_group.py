"""How well each subpopulation of the test split is predicted, by algorithm."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.diagnostics.tracked import SEALED, TrackedRuns, group_counts
from dgharness.errors import NotApplicable
from dgharness.figures import Figure, drawn, look
from dgharness.metrics.measure import Measure, measure_of
from dgharness.names import slug, slugs
from dgharness.selection.rule import Choice


def by_group(tracked: TrackedRuns) -> Diagnosis:
    """The measure of every group at the checkpoints and draws that the rule chooses, mean ± s.e. over trials.

    NotApplicable where no chosen checkpoint was scored, or there were too many groups to log one by one.
    """
    selected = tracked.selected()
    choices = [choice for trials in selected.values() for choice in trials.values()]
    if not choices:
        raise NotApplicable(
            f"{tracked.rule.name} chose no checkpoint whose target was scored; train with "
            f"--set selection.rules={tracked.rule.name}, or name another --rule"
        )
    measure = measure_of(choices[0].evaluation.metrics)
    prefix = f"test/group_{measure.key}/"
    groups = sorted({key for c in choices for key in c.evaluation.metrics if key.startswith(prefix)})
    if not groups:
        raise NotApplicable("no metrics by group were logged: there are no groups, or more than 50")
    named, trained_on = _names(tracked)
    rows = [
        {
            "algorithm": label,
            "group": named.get(key.removeprefix(prefix), key.removeprefix(prefix)),
            **_over_trials(list(trials.values()), key, measure.name),
        }
        for label, trials in selected.items()
        for key in groups
        if trials
    ]
    table = pd.DataFrame(rows)
    if trained_on:
        table.insert(2, "training examples", [trained_on.get(group, math.nan) for group in table["group"]])
    return Diagnosis(
        name="by-group",
        title=f"{measure.name} on every group of the test split",
        caption=f"Of the checkpoints and draws that {tracked.rule.name} chooses in each trial; mean over "
        "trials with its standard error (ddof=1), and the examples of the group in a trial's test split. A "
        f"group without an example is n/a. {SEALED}",
        table=table,
        figure=lambda: _bars(table, measure),
        findings=tuple(_worst(table, label, measure) for label in dict.fromkeys(table["algorithm"])),
        metrics={
            f"by-group/{slug(row['algorithm'])}/{slug(row['group'])}": row[measure.name]
            for row in table.to_dict("records")
        },
    )


def _over_trials(choices: list[Choice], key: str, name: str) -> dict[str, float]:
    metrics = [choice.evaluation.metrics for choice in choices]
    values = np.array([found.get(key, math.nan) for found in metrics])
    counts = [found.get(f"test/group_count/{key.rpartition('/')[2]}", math.nan) for found in metrics]
    known = values[~np.isnan(values)]
    return {
        name: float(known.mean()) if len(known) else math.nan,
        f"{SPREAD}{name}": float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan,
        "trials": len(known),
        "examples": float(np.mean(counts)),
    }


def _names(tracked: TrackedRuns) -> tuple[dict[str, str], dict[str, int]]:
    """From the names in metric keys to the groups' own, and their training examples, where a run tells."""
    try:
        counts = group_counts(tracked)
    except NotApplicable:
        return {}, {}
    return {key: name for name, key in slugs(counts).items()}, counts


def _worst(table: pd.DataFrame, label: str, measure: Measure) -> str:
    own = table[table["algorithm"] == label].dropna(subset=[measure.name])
    if own.empty:
        return f"{label}: every group is empty."
    if len(own) == 1:
        only = own.iloc[0]
        return (
            f"{label} has examples of one group alone, {only['group']} ({measure.shown(only[measure.name])})."
        )
    worst, best = (own.loc[(own[measure.name] * measure.sign).agg(pick)] for pick in ("idxmin", "idxmax"))
    return (
        f"{label} is worst on {worst['group']} ({measure.shown(worst[measure.name])}) and best on "
        f"{best['group']} ({measure.shown(best[measure.name])})."
    )


def _bars(table: pd.DataFrame, measure: Measure) -> Figure:
    groups, labels = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["algorithm"]))
    figure, (axis,) = drawn(1, 1, width=max(6.0, 0.9 * len(groups)), height=3.8)
    colours, thickness = look(labels), 0.8 / len(labels)
    for number, label in enumerate(labels):
        own = table[table["algorithm"] == label].set_index("group").reindex(groups)
        axis.bar(
            np.arange(len(groups)) + (number - (len(labels) - 1) / 2) * thickness,
            own[measure.name],
            thickness,
            yerr=own[f"{SPREAD}{measure.name}"].fillna(0),
            error_kw={"linewidth": 0.8},
            color=colours[label][0],
            label=label,
        )
    axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axis.set(ylabel=measure.name, title=f"{measure.name} by group, mean ± s.e. over trials")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=min(6, len(labels)))
    return figure
