"""Balanced accuracy in validation: the mean recall over classes, whatever their size.

Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, 2023.
"""

import math

from dgharness.selection.rule import Rule

balanced_accuracy = Rule(
    name="balanced-accuracy",
    caption="Checkpoint and hyperparameters jointly by balanced accuracy in validation (the unweighted mean "
    "of the recalls of its classes); no attribute is read.",
    score=lambda evaluation, others: evaluation.metrics.get("val/balanced_acc", math.nan),
    needs="classes",
    doc=__doc__,
)
