"""Out-of-distribution validation: the validation split where its domains are none that are trained on.

Only a dataset's own split has one. Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, 2021,
their default.
"""

from dgharness.selection.rule import Rule, judged_score

ood_val = Rule(
    name="ood-val",
    caption="Checkpoint and hyperparameters jointly by the dataset's official metric, or without one by "
    "accuracy (its unweighted mean over domains), on the split val, whose domains are neither trained on nor "
    "reported.",
    score=lambda evaluation, others: judged_score(evaluation, "val"),
    needs="held-out validation domains",
    doc=__doc__,
)
