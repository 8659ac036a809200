"""Which metrics stand beside the results where none are asked for."""

from __future__ import annotations

from collections.abc import Iterable

from dgharness.metrics.measure import shared_measure
from dgharness.selection.rule import RunRecord, beginning


def usual_extras(records: Iterable[RunRecord]) -> list[str]:
    """Worst group and calibration, as far as every checkpoint that was scored on the test split has them."""
    scored = [
        evaluation.metrics
        for record in records
        for evaluation in record.evaluations
        if beginning("test/", tuple(evaluation.metrics))
    ]
    wanted = (shared_measure(scored).worst_group, "ece")
    return [name for name in wanted if scored and all(f"test/{name}" in metrics for metrics in scored)]
