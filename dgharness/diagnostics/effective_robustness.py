"""Effective robustness: accuracy out of distribution beyond what the baseline's line promises.

With the baseline's line y = a x + b on the probit scale, rho = acc_OOD - Phi(a Phi^-1(acc_ID) + b).

Paper: Taori et al., Measuring Robustness to Natural Distribution Shifts, NeurIPS 2020

Shapes: P points.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dgharness.diagnostics.curves import FILLED, curves_of, scatter
from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.diagnostics.line import line, scaled, unscaled
from dgharness.diagnostics.points import id_key, ood_key, points
from dgharness.diagnostics.tracked import SEALED, TrackedRuns
from dgharness.errors import NotApplicable
from dgharness.figures import Figure
from dgharness.names import slug

ENOUGH = 10  # checkpoints of the baseline; a line through fewer is mostly noise


def effective_robustness(tracked: TrackedRuns) -> Diagnosis:
    """The residual of every row's runs over the line of the baseline's, mean ± standard error over trials.

    A baseline with fewer than two different points is NotApplicable.
    """
    x, y = id_key(tracked), ood_key(tracked)
    found = points(tracked, x, y)
    of_baseline = found[found["label"] == tracked.baseline]
    slope, intercept = probit_line(of_baseline)
    if math.isnan(slope):
        raise NotApplicable(
            f"the line is that of {tracked.baseline}, and {len(of_baseline)} of its checkpoints were scored, "
            "at too few different accuracies; run more draws or trials of it, or name another with --baseline"
        )
    found["residual"] = residual(found["x"].to_numpy(), found["y"].to_numpy(), slope, intercept)
    inside = found["x"].between(of_baseline["x"].min(), of_baseline["x"].max())
    table = _table(found.assign(outside=~inside), tracked.baseline)
    return Diagnosis(
        name="effective-robustness",
        title=f"accuracy out of distribution beyond the line of {tracked.baseline}",
        caption=f"rho = y - Phi(a Phi^-1(x) + b) with y = {y}, x = {x} and the least-squares line (a = "
        f"{slope:.3g}, b = {intercept:.3g}) through the {len(of_baseline)} {tracked.checkpoints} checkpoints "
        f"of {tracked.baseline}; the mean over a trial's checkpoints, then over trials with its standard "
        f"error (ddof=1). {FILLED} Taori et al., 2020. {SEALED}",
        table=table,
        figure=lambda: _figure(found, slope, intercept, x, y, tracked.baseline),
        findings=_findings(table, slope, len(of_baseline), tracked.baseline),
        metrics={
            f"effective-robustness/{slug(row['algorithm'])}": row["residual"]
            for row in table.to_dict("records")
        },
    )


def probit_line(found: pd.DataFrame) -> tuple[float, float]:
    """Slope and intercept on the probit scale."""
    return line(scaled(found["x"].to_numpy(), "probit"), scaled(found["y"].to_numpy(), "probit"))


def residual(x_P: np.ndarray, y_P: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """What accuracies y are above those that the line promises at x.

    >>> residual(np.array([0.5, 0.8]), np.array([0.6, 0.8]), slope=1.0, intercept=0.0).round(6)
    array([0.1, 0. ])
    """
    return y_P - unscaled(slope * scaled(x_P, "probit") + intercept, "probit")


def _table(found: pd.DataFrame, baseline: str) -> pd.DataFrame:
    by_trial = found.groupby(["label", "trial"])[["x", "y", "residual"]].mean()
    by_label = by_trial.groupby("label")
    outside = found.groupby("label")["outside"].sum()
    table = pd.DataFrame(
        {
            "trials": by_label.size(),
            "checkpoints": found.groupby("label").size(),
            "ID accuracy": by_label["x"].mean(),
            "OOD accuracy": by_label["y"].mean(),
            "residual": by_label["residual"].mean(),
            f"{SPREAD}residual": by_label["residual"].sem(ddof=1),
            "outside the line's range": outside,
        }
    )
    table = table.reset_index(names="algorithm").sort_values("residual", ascending=False, kind="stable")
    return table.sort_values(
        "algorithm", key=lambda names: names != baseline, kind="stable", ignore_index=True
    )


def _findings(table: pd.DataFrame, slope: float, count: int, baseline: str) -> tuple[str, ...]:
    said = []
    if count < ENOUGH:
        said.append(
            f"The line rests on {count} checkpoints of {baseline}, which is too few ({ENOUGH} would do): "
            "residuals may be no more than its noise."
        )
    if slope <= 0:
        said.append(
            f"The line of {baseline} falls: it promises less on the target to whoever does better in "
            "distribution, and residuals are to be read as a distance and not as robustness gained."
        )
    rivals = table[table["algorithm"] != baseline]
    clear = rivals[(rivals["residual"].abs() > 2 * rivals[f"{SPREAD}residual"]) & (rivals["trials"] > 2)]
    for row in clear.to_dict("records"):
        side = "above" if row["residual"] > 0 else "below"
        said.append(
            f"{row['algorithm']} lies {100 * abs(row['residual']):.1f} points {side} the line, more than "
            "twice its standard error; no test is made of it."
        )
    if len(rivals) and clear.empty:
        said.append("No row lies farther from the line than twice its standard error.")
    far = table[table["outside the line's range"] > 0]
    if len(far):
        said.append(
            f"Beyond the accuracies of {baseline} its line is extended, which concerns "
            f"{', '.join(far['algorithm'])}."
        )
    return tuple(said)


def _figure(found: pd.DataFrame, slope: float, intercept: float, x: str, y: str, baseline: str) -> Figure:
    return scatter(found, curves_of(found[found["label"] == baseline]), x, y, baseline)
