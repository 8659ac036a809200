"""The dataset's own metric on its validation split, as WILDS chooses the epoch.

Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, 2021.
"""

import math

from dgharness.selection.rule import Rule

official_validation = Rule(
    name="official-validation",
    caption="Checkpoint and hyperparameters jointly by the dataset's official metric in validation.",
    score=lambda evaluation, others: evaluation.metrics.get("val/official_score", math.nan),
    needs="official metric",
    doc=__doc__,
)
