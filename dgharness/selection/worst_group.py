"""Worst-group accuracy on the validation parts of the training domains; needs known groups there."""

import math

from dgharness.selection.rule import Rule

worst_group = Rule(
    name="worst-group",
    caption="Checkpoint and hyperparameters jointly by the accuracy of the worst group on the validation "
    "parts of the training domains.",
    score=lambda evaluation, others: evaluation.metrics.get("val/wga", math.nan),
    doc=__doc__,
)
