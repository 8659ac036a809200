"""Worst-group accuracy on the validation split; needs known groups there."""

from dgharness.selection.rule import Rule, worst_group_score

worst_group = Rule(
    name="worst-group",
    caption="Checkpoint and hyperparameters jointly by the accuracy of the worst group on the validation "
    "split.",
    score=lambda evaluation, others: worst_group_score(evaluation, "val"),
    doc=__doc__,
)
