"""Mean accuracy on the reported examples, an oracle: an upper bound, and no estimate of anything.

Only the last checkpoint may be chosen; the oracle of Yang et al., Change is Hard: A Closer Look at
Subpopulation Shift, 2023, may choose any.
"""

from dgharness.selection.rule import Rule, mean_score

test_mean_accuracy = Rule(
    name="test-mean-accuracy",
    caption="The last checkpoint of every run; hyperparameters by accuracy over all examples of the test "
    "split, the very examples that are reported: the best draw in hindsight.",
    score=lambda evaluation, others: mean_score(evaluation, "test"),
    checkpoints="last",
    oracle=True,
    doc=__doc__,
)
