"""Accuracy out of distribution against that in distribution, over all runs and scored checkpoints.

Paper: Miller et al., Accuracy on the Line, ICML 2021
"""

from __future__ import annotations

from dgharness.diagnostics.curves import FILLED, FITS, bend, curves_of, metrics_of, scatter, table_of
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.points import id_key, ood_key, points
from dgharness.diagnostics.tracked import SEALED, TrackedRuns


def id_ood_line(tracked: TrackedRuns) -> Diagnosis:
    """Line and parabola of OOD on ID accuracy; fewer than 3 different points are NotApplicable."""
    x, y = id_key(tracked), ood_key(tracked)
    found = points(tracked, x, y)
    curves = curves_of(found)
    probit = curves["probit"]
    moves = "rises" if probit.slope > 0 else "falls"
    return Diagnosis(
        name="id-ood-line",
        title="accuracy out of distribution against accuracy in distribution",
        caption=f"y = {y} against x = {x} of every {tracked.checkpoints} checkpoint. {FITS} {FILLED} "
        f"Miller et al., 2021. {SEALED}",
        table=table_of(curves),
        figure=lambda: scatter(found, curves, x, y),
        findings=(
            f"Over {probit.points} checkpoints of {probit.runs} runs {y} {moves} with {x}: slope "
            f"{probit.slope:z.2f} and R² {probit.r2_linear:.2f} on the probit scale.",
            *(bend(curve) for curve in curves.values()),
        ),
        metrics=metrics_of("id-ood-line", curves),
    )
