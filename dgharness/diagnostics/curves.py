"""What two fits through the same points say: as a table, as a figure and in sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dgharness.diagnostics.line import FEWEST_RUNS, Curve, Scale, fit_curve, scaled, unscaled
from dgharness.diagnostics.points import numbered
from dgharness.figures import Axes, Figure, drawn, look

SCALES: tuple[Scale, ...] = ("raw", "probit")
TICKS = np.array([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
FINER = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)  # steps of ticks where accuracies lie close together
FITS = (
    "A line and a parabola are fitted by least squares, on accuracies p and on their probits Phi^-1(p), p "
    "kept within [1/2n, 1 - 1/2n] where n examples are known. Intervals are 95 % percentiles of a bootstrap "
    "over runs, whose checkpoints stay together."
)
FILLED = "Filled points are the checkpoints that the rule chooses in their run."


def curves_of(found: pd.DataFrame) -> dict[Scale, Curve]:
    """The fits through points, on both scales."""
    x_P, y_P, run_P = found["x"].to_numpy(), found["y"].to_numpy(), numbered(found["run"])
    return {scale: fit_curve(x_P, y_P, run_P, scale) for scale in SCALES}


def table_of(curves: Mapping[Scale, Curve]) -> pd.DataFrame:
    """A row per quantity, a column per scale."""
    return pd.DataFrame(
        {"quantity": list(_quantities(curves["raw"]))}
        | {scale: list(_quantities(curve).values()) for scale, curve in curves.items()},
        dtype=object,  # a column holds counts and shares, which no number of decimals suits alike
    )


def metrics_of(name: str, curves: Mapping[Scale, Curve]) -> dict[str, float]:
    """The numbers that a store should be able to sort by."""
    return {
        f"{name}/{scale}_{key}": value
        for scale, curve in curves.items()
        for key, value in (
            ("slope", curve.slope),
            ("r", curve.r),
            ("r2_linear", curve.r2_linear),
            ("r2_quadratic", curve.r2_quadratic),
            ("curvature", curve.curvature),
        )
    }


def bend(curve: Curve) -> str:
    """Whether the points bend, in a sentence; a moon shape only where the parabola turns within them."""
    low, high = curve.curvature_interval.low, curve.curvature_interval.high
    what = f"the curvature is {curve.curvature:.2g}"
    if np.isnan(low):
        return (
            f"On the {curve.scale} scale {what}, without an interval: {curve.runs} runs are too few for one "
            f"({FEWEST_RUNS} are needed), and nothing is said of its shape."
        )
    what += f" [{low:.2g}, {high:.2g}]"
    if 0 in curve.curvature_interval:
        return f"On the {curve.scale} scale {what}: no bend can be told from none."
    turn = float(unscaled(np.array(curve.vertex), curve.scale))
    if curve.turns and curve.curvature > 0:
        return f"On the {curve.scale} scale {what} and y is least at x = {turn:.2f}: a moon shape."
    if curve.turns:
        return f"On the {curve.scale} scale {what} and y is greatest at x = {turn:.2f}: it rises and falls."
    return f"On the {curve.scale} scale {what}, but the parabola turns outside the points: bent, and no moon."


def scatter(
    found: pd.DataFrame, curves: Mapping[Scale, Curve], x_name: str, y_name: str, baseline: str = ""
) -> Figure:
    """The points on both scales, with their fits; the checkpoints that the rule chose are filled.

    With a ``baseline`` the line is called that of its runs, and there is no parabola.
    """
    figure, axes = drawn(1, 2, width=5.0, height=4.2)
    looks = look(sorted(found["label"].unique()))
    for axis, (scale, curve) in zip(axes, curves.items(), strict=True):
        for label, (colour, marker) in looks.items():
            own = found[found["label"] == label]
            for chosen, part in own.groupby("chosen"):
                axis.scatter(
                    scaled(part["x"].to_numpy(), scale),
                    scaled(part["y"].to_numpy(), scale),
                    s=26,
                    marker=marker,
                    edgecolors=colour,
                    facecolors=colour if chosen else "none",
                    linewidths=0.9,
                    alpha=0.9 if chosen else 0.5,
                )
            axis.plot([], [], linestyle="", marker=marker, color=colour, label=label)
        across = np.linspace(*curve.x_range, 100)
        name = f"line of {baseline}" if baseline else f"line, R² {curve.r2_linear:.2f}"
        axis.plot(across, curve.intercept + curve.slope * across, color="black", linewidth=1.2, label=name)
        if not baseline:
            bent = np.polynomial.polynomial.polyval(across, curve.coefficients)
            axis.plot(
                across, bent, "--", color="black", linewidth=1, label=f"parabola, R² {curve.r2_quadratic:.2f}"
            )
        reach = np.array(curve.x_range)
        axis.plot(reach, reach, ":", color="#7F7F7F", linewidth=1, label="y = x")
        axis.set(title=f"{scale} scale", xlabel=x_name, ylabel=y_name)
        if scale == "probit":
            label_accuracies(axis)
        axis.legend(fontsize=7, frameon=False)
    return figure


def label_accuracies(axis: Axes) -> None:
    """Ticks of a probit scale carry the accuracies that they stand for."""
    for which, (low, high) in (("x", axis.get_xlim()), ("y", axis.get_ylim())):
        shown = ticks_between(*(float(unscaled(np.array(end), "probit")) for end in (low, high)))
        axis.set(**{f"{which}ticks": [float(scaled(np.array(t), "probit")) for t in shown]})
        axis.set(**{f"{which}ticklabels": [f"{t:g}" for t in shown], f"{which}lim": (low, high)})


def ticks_between(low: float, high: float) -> list[float]:
    """The accuracies to label between two: even steps where they lie close together.

    >>> ticks_between(0.35, 0.75), ticks_between(0.61, 0.67)
    ([0.4, 0.5, 0.6, 0.7], [0.62, 0.64, 0.66])
    """
    shown: list[float] = []
    for ticks in (TICKS, *(np.arange(step, 1, step) for step in FINER)):
        shown = [round(float(tick), 3) for tick in ticks if low <= tick <= high]
        if len(shown) >= 3:
            break
    return shown


def _quantities(curve: Curve) -> dict[str, float]:
    return {
        "checkpoints": float(curve.points),
        "runs": float(curve.runs),
        "slope": curve.slope,
        "intercept": curve.intercept,
        "Pearson R": curve.r,
        "Pearson R, low": curve.r_interval.low,
        "Pearson R, high": curve.r_interval.high,
        "Spearman": curve.spearman,
        "R² of the line": curve.r2_linear,
        "R² of the parabola": curve.r2_quadratic,
        "adjusted R² of the line": curve.adjusted_linear,
        "adjusted R² of the parabola": curve.adjusted_quadratic,
        "ΔR²": curve.delta_r2,
        "curvature c2": curve.curvature,
        "curvature c2, low": curve.curvature_interval.low,
        "curvature c2, high": curve.curvature_interval.high,
        "vertex (as an accuracy)": float(unscaled(np.array(curve.vertex), curve.scale)),
    }
