"""Mean accuracy in validation: every example counts alike, whatever its domain or group.

Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, 2023.
"""

from dgharness.selection.rule import Rule, mean_score

mean_accuracy = Rule(
    name="mean-accuracy",
    caption="Checkpoint and hyperparameters jointly by validation accuracy over all examples, each of the "
    "same weight.",
    score=lambda evaluation, others: mean_score(evaluation, "val"),
    doc=__doc__,
)
