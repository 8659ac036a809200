"""Whether a split tests at all what an algorithm gains by leaving spurious features alone.

Where better accuracy in distribution brings better accuracy out of distribution, for all models alike, the
split does not punish reliance on spurious features and rewards plain risk minimisation. It is then
misspecified as a test of their removal.

Paper: Salaudeen et al., Are Domain Generalization Benchmarks with Accuracy on the Line Misspecified?, TMLR
2025
"""

from __future__ import annotations

from typing import Literal

import pandas as pd

from dgharness.diagnostics.curves import curves_of, scatter
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.line import Curve
from dgharness.diagnostics.points import id_key, ood_key, points
from dgharness.diagnostics.tracked import SEALED, TrackedRuns

Verdict = Literal["on the line", "off the line", "undecided"]
STRONG, WEAK = 0.7, 0.3  # Pearson R on the probit scale
LEAST_RUNS = 10
LEAST_RANGE = 0.05  # of accuracy in distribution, as a fraction
MEANING: dict[Verdict, str] = {
    "on the line": "accuracy is on the line, so that whoever does better in distribution does better out of "
    "it: this split does not test the removal of spurious features",
    "off the line": "accuracy is not on the line: doing better in distribution does not suffice, and this "
    "split can test the removal of spurious features",
    "undecided": "undecided",
}


def accuracy_on_the_line(tracked: TrackedRuns) -> Diagnosis:
    """The verdict on one split, with the numbers that it rests on."""
    x, y = id_key(tracked), ood_key(tracked)
    found = points(tracked, x, y)
    curves = curves_of(found)
    curve = curves["probit"]
    width = float(found["x"].max() - found["x"].min())
    told, why = verdict(curve, width)
    reason = f" ({why})" if why else ""
    return Diagnosis(
        name="accuracy-on-the-line",
        title="does this split test the removal of spurious features?",
        caption=f"By the Pearson correlation R of Phi^-1({y}) and Phi^-1({x}) over {tracked.checkpoints} "
        "checkpoints, with a 95 % percentile interval of a bootstrap over runs. On the line: R is at least "
        f"{STRONG} and the interval lies above {WEAK}. Off the line: R is at most {WEAK} and the interval "
        f"lies below {STRONG}. Undecided: all else, fewer than {LEAST_RUNS} runs, or accuracies in "
        f"distribution within {100 * LEAST_RANGE:.0f} points of one another. The thresholds are this "
        "harness's own; the argument is that of Salaudeen et al., 2025. The verdict concerns the models that "
        f"were trained, and one split alone: an average over targets may hide it. {SEALED}",
        table=pd.DataFrame(
            {
                "verdict": [told],
                "runs": [curve.runs],
                "checkpoints": [curve.points],
                "R": [curve.r],
                "R, low": [curve.r_interval.low],
                "R, high": [curve.r_interval.high],
                "R²": [curve.r2_linear],
                "slope": [curve.slope],
                "ID from": [found["x"].min()],
                "ID to": [found["x"].max()],
            }
        ),
        figure=lambda: scatter(found, curves, x, y),
        findings=(f"Verdict: {MEANING[told]}{reason}.",),
        metrics={
            "accuracy-on-the-line/r": curve.r,
            "accuracy-on-the-line/on_the_line": float(told == "on the line"),
            "accuracy-on-the-line/off_the_line": float(told == "off the line"),
        },
    )


def verdict(curve: Curve, width: float) -> tuple[Verdict, str]:
    """The verdict on a fit on the probit scale whose x, as accuracies, span ``width``; why, if undecided."""
    if curve.runs < LEAST_RUNS:
        return "undecided", f"{curve.runs} runs are too few, {LEAST_RUNS} are needed"
    if width < LEAST_RANGE:
        return "undecided", (
            f"accuracies in distribution span {100 * width:.1f} points, and {100 * LEAST_RANGE:.0f} are "
            "needed; train weaker and stronger models"
        )
    low, high = curve.r_interval.low, curve.r_interval.high
    if curve.r >= STRONG and low > WEAK:
        return "on the line", ""
    if curve.r <= WEAK and high < STRONG:
        return "off the line", ""
    return (
        "undecided",
        f"R = {curve.r:.2f} [{low:.2f}, {high:.2f}] is neither clearly strong nor weak",
    )
