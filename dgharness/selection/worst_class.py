"""Worst-class accuracy in validation: a stand-in for the worst group where attributes are unknown there too.

Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, 2023, section 5.
"""

import math

from dgharness.selection.rule import Rule

worst_class = Rule(
    name="worst-class",
    caption="Checkpoint and hyperparameters jointly by the accuracy of the worst class in validation; no "
    "attribute is read.",
    score=lambda evaluation, others: evaluation.metrics.get("val/worst_class_acc", math.nan),
    needs="classes",
    doc=__doc__,
)
