"""Area under the ROC curve in validation, which no decision threshold and no class size enters.

Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, 2023.
"""

import math

from dgharness.selection.rule import Rule

auroc = Rule(
    name="auroc",
    caption="Checkpoint and hyperparameters jointly by the area under the ROC curve in validation (of "
    "several classes, the unweighted mean over each against the rest); no attribute is read.",
    score=lambda evaluation, others: evaluation.metrics.get("val/auroc", math.nan),
    needs="classes",
    doc=__doc__,
)
