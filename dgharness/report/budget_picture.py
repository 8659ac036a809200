"""The search-budget curve of a report: what to expect of fewer hyperparameter draws.

Shapes: D budgets.
"""

from __future__ import annotations

import math

from dgharness.figures import look
from dgharness.metrics.measure import Measure
from dgharness.report.budget import Budget
from dgharness.report.captions import title
from dgharness.report.panels import Picture, legend, on_the_left, panels


def budget_picture(budget: Budget, measure: Measure) -> Picture:
    """A line per row, or why there is none."""
    name, drawn = "search budget", [curve for curve in budget.curves if len(curve.draws) > 1]
    if not drawn:
        return Picture(name, "No curve: every row has one draw of its hyperparameters.", None, budget.block)
    timed = all(not math.isnan(second) for curve in drawn for second in curve.seconds)
    figure, axes = panels(2 if timed else 1, height=3.0)
    looks = look([curve.label for curve in budget.curves])
    for curve in drawn:
        colour, marker = looks[curve.label]
        mean_D = [measure.plotted(value) for value in curve.mean]
        se_D = [measure.plotted(value or 0.0) for value in curve.se]
        low_D = [value - se for value, se in zip(mean_D, se_D, strict=True)]
        high_D = [value + se for value, se in zip(mean_D, se_D, strict=True)]
        for ax, spent_D in zip(axes, (curve.draws, curve.seconds), strict=False):
            ax.plot(spent_D, mean_D, color=colour, marker=marker, markersize=4, linewidth=1.4)
            ax.fill_between(spent_D, low_D, high_D, color=colour, alpha=0.15, linewidth=0)
    on_the_left(axes, measure.axis)
    axes[0].set_xlabel("hyperparameter draws")
    axes[0].locator_params(axis="x", integer=True)
    if timed:
        axes[1].set_xlabel("seconds of training")
    legend(figure, axes[0], {curve.label: looks[curve.label] for curve in drawn})
    return Picture(
        name,
        f"What a search of fewer draws would have reported, were it the defaults and a random choice of the "
        f"others that were run, by {title(budget.rule)}: mean over trials of the mean over "
        f"{', '.join(budget.targets)}; band, its standard error (ddof = 1). The last point is the table's. "
        "Seconds are those of all domains' runs.",
        figure,
        budget.block,
    )
