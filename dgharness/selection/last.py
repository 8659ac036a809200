"""The last checkpoint, with the hyperparameters of the best validation accuracy there."""

from dgharness.selection.rule import Rule, validation_score

last = Rule(
    name="last",
    caption="The last checkpoint of every run; hyperparameters by validation accuracy at it, its "
    "unweighted mean over the domains of the validation split.",
    score=lambda evaluation, others: validation_score(evaluation),
    checkpoints="last",
    doc=__doc__,
)
