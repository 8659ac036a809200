"""The least difference between classes in validation: minus the sum over pairs of |recall_i - recall_j|.

A classifier that is wrong everywhere has no difference between classes either. Yang et al., Change is Hard: A
Closer Look at Subpopulation Shift, 2023.
"""

import math

from dgharness.selection.rule import Rule

class_difference = Rule(
    name="class-difference",
    caption="Checkpoint and hyperparameters jointly by the smallest difference in validation between the "
    "recalls of classes, summed over pairs of them; no attribute is read.",
    score=lambda evaluation, others: -evaluation.metrics.get("val/class_difference", math.nan),
    needs="classes",
    doc=__doc__,
)
