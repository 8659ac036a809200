"""Agreement-on-the-line of tracked runs: the lines, and what they foretell, by algorithm.

Paper: Baek et al., Agreement-on-the-Line, NeurIPS 2022

Shapes: R runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dgharness.diagnostics.agreement import (
    FEWEST_PAIRS,
    FEWEST_SHARED,
    Pairs,
    agreement,
    agreement_line,
    aline_d,
    aline_s,
    joined,
    pairs_of,
)
from dgharness.diagnostics.curves import label_accuracies
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.line import clipped, line, scaled
from dgharness.diagnostics.points import numbered
from dgharness.diagnostics.tracked import SEALED, TrackedRuns, in_distribution
from dgharness.errors import NotApplicable
from dgharness.figures import Figure, drawn, look
from dgharness.predictions import Predictions
from dgharness.selection.rule import RunRecord

RELIABLE = 0.95  # R² of the agreement's line from which Baek et al. trust its predictions


def agreement_on_the_line(tracked: TrackedRuns) -> Diagnosis:
    """Lines of agreement and of accuracy, and the error of ALine-S and ALine-D by algorithm.

    Fewer than 3 pairs of runs on the same data, or a task without classes, are NotApplicable.
    """
    found = _compared(tracked)
    runs, pairs = found.runs, found.pairs
    slope, bias = agreement_line(pairs)
    if np.isnan(slope):
        raise NotApplicable(
            "all pairs of runs agree alike in distribution, and no line goes through them; train runs that "
            "differ more"
        )
    id_R, ood_R = runs["ID accuracy"].to_numpy(), runs["OOD accuracy"].to_numpy()
    runs["ALine-S"], runs["ALine-D"] = aline_s(id_R, slope, bias), aline_d(id_R, pairs, slope)
    r2 = _r2(pairs.id_P, pairs.ood_P)
    of_accuracy = line(scaled(id_R, "probit"), scaled(ood_R, "probit"))
    off = runs[["ALine-S", "ALine-D", "ID accuracy"]].sub(runs["OOD accuracy"], axis=0).abs()
    error = {str(name): float(value) for name, value in off.mean().items()}
    for name in ("ALine-S", "ALine-D"):
        runs[f"error of {name}"] = off[name]
    by_algorithm = runs.groupby("algorithm", sort=False)
    table = by_algorithm.mean()
    table.insert(0, "checkpoints", by_algorithm.size())
    return Diagnosis(
        name="agreement",
        title="agreement of runs in and out of distribution",
        caption="Share of the same rows, in distribution and of the test split, on which two runs, at their "
        f"{tracked.checkpoints} checkpoints, predict the same class: {len(pairs)} pairs that "
        f"share at least {FEWEST_SHARED} rows of the same data. The line of agreement on the probit scale "
        "foretells accuracy on the target from unlabelled examples (ALine-S from the line alone, ALine-D "
        "from each run's agreements); errors are mean absolute differences to the true accuracy. Baek et "
        f"al., 2022. {SEALED}",
        table=table.reset_index(),
        figure=lambda: _figure(runs, pairs, (slope, bias), of_accuracy),
        findings=_findings(slope, bias, r2, of_accuracy, error, len(runs), found.missing),
        metrics={
            "agreement/slope": slope,
            "agreement/bias": bias,
            "agreement/r2": r2,
            **{f"agreement/error_of_{name.replace(' ', '_')}": value for name, value in error.items()},
        },
    )


@dataclass(frozen=True)
class _Compared:
    runs: pd.DataFrame  # of every checkpoint: its algorithm and accuracies
    pairs: Pairs  # of checkpoints of different runs on the same data
    missing: int  # scored checkpoints without stored predictions


def _compared(tracked: TrackedRuns) -> _Compared:
    """Every scored checkpoint whose predictions are stored."""
    by_data: dict[str, list[tuple[RunRecord, Predictions]]] = {}
    missing = 0
    for run, evaluation in tracked.scored():
        try:
            found = tracked.predictions(run, evaluation.step)
        except NotApplicable:
            missing += 1
            continue
        if found.task != "classification":
            raise NotApplicable(f"it compares predicted classes, and the task is {found.task}")
        by_data.setdefault(run.tags.get("dg.data_digest", ""), []).append((run, found))
    rows: list[tuple[str, float, float]] = []
    pairs: list[Pairs] = []
    for members in by_data.values():
        inside = agreement([in_distribution(found) for _, found in members])
        outside = agreement([found.of("test") for _, found in members])
        run_R = numbered(pd.Series([run.run_id for run, _ in members]))
        pairs.append(pairs_of(inside, outside, run_R, first=len(rows)))
        rows += zip(
            (tracked.label(run) for run, _ in members),
            clipped(inside.accuracy_R, inside.count_R),
            clipped(outside.accuracy_R, outside.count_R),
            strict=True,
        )
    count = sum(map(len, pairs))
    if count < FEWEST_PAIRS:
        raise NotApplicable(
            f"{count} pairs of runs have stored what they predict on the same rows, and a line needs "
            f"{FEWEST_PAIRS}; run more algorithms or draws on the same trial"
        )
    runs = pd.DataFrame(rows, columns=["algorithm", "ID accuracy", "OOD accuracy"])
    return _Compared(runs, joined(pairs), missing)


def _r2(x_P: np.ndarray, y_P: np.ndarray) -> float:
    return float(np.corrcoef(x_P, y_P)[0, 1] ** 2) if np.ptp(y_P) > 0 else float("nan")


def _findings(
    slope: float,
    bias: float,
    r2: float,
    of_accuracy: tuple[float, float],
    error: Mapping[str, float],
    checkpoints: int,
    missing: int,
) -> tuple[str, ...]:
    said = [
        f"Agreement: slope {slope:z.2f}, bias {bias:z.2f}, R² {r2:.2f}; accuracy of the same {checkpoints} "
        f"checkpoints: slope {of_accuracy[0]:z.2f}, bias {of_accuracy[1]:z.2f}.",
        "Mean absolute error of the accuracy foretold, in points: "
        + ", ".join(f"{name} {100 * value:.1f}" for name, value in error.items())
        + "; the last takes the accuracy in distribution for that on the target.",
    ]
    if min(error["ALine-S"], error["ALine-D"]) > 0.9 * error["ID accuracy"]:
        said.append(
            "Agreement foretells the target's accuracy hardly better than accuracy in distribution does, "
            "whatever its R²: runs that rely on the same spurious feature agree where they are wrong."
        )
    if not r2 >= RELIABLE:
        said.append(
            f"R² of the agreement is below {RELIABLE}: where the target is unlabelled, these predictions are "
            "not to be relied on."
        )
    if missing:
        said.append(f"{missing} scored checkpoints have no stored predictions and are left out.")
    return tuple(said)


def _figure(
    runs: pd.DataFrame, pairs: Pairs, of_agreement: tuple[float, float], of_accuracy: tuple[float, float]
) -> Figure:
    figure, (axis,) = drawn(1, 1, width=5.6, height=4.4)
    grey = "#7F7F7F"
    axis.scatter(pairs.id_P, pairs.ood_P, s=12, marker="D", color=grey, alpha=0.5, label="agreement of pairs")
    id_R, ood_R = (scaled(runs[name].to_numpy(), "probit") for name in ("ID accuracy", "OOD accuracy"))
    for label, (colour, marker) in look(sorted(runs["algorithm"].unique())).items():
        own_R = (runs["algorithm"] == label).to_numpy()
        axis.scatter(id_R[own_R], ood_R[own_R], s=26, color=colour, marker=marker, label=f"{label}, accuracy")
    every = np.concatenate([pairs.id_P, id_R])
    across = np.array([every.min(), every.max()])
    axis.plot(across, of_agreement[0] * across + of_agreement[1], color=grey, label="line of agreement")
    own = np.array([id_R.min(), id_R.max()])  # beyond its points a falling line would squeeze all else
    axis.plot(own, of_accuracy[0] * own + of_accuracy[1], "--", color="black", label="line of accuracy")
    axis.set(xlabel="in distribution", ylabel="target", title="agreement and accuracy, probit scale")
    label_accuracies(axis)
    axis.legend(frameon=False, fontsize=7)
    return figure
