"""In-distribution validation: further examples of the training domains, where a dataset's own split has them.

Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, 2021.
"""

from dgharness.selection.rule import Rule, judged_score

id_val = Rule(
    name="id-val",
    caption="Checkpoint and hyperparameters jointly by the dataset's official metric, or without one by "
    "accuracy (its unweighted mean over domains), on the split id_val, which holds further examples of the "
    "training domains.",
    score=lambda evaluation, others: judged_score(evaluation, "id_val"),
    needs="id_val",
    doc=__doc__,
)
