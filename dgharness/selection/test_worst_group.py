"""Worst-group accuracy on the reported examples, an oracle: an upper bound, and no estimate of anything.

Only the last checkpoint may be chosen; the oracle of Yang et al., Change is Hard: A Closer Look at
Subpopulation Shift, 2023, may choose any.
"""

from dgharness.selection.rule import Rule, worst_group_score

test_worst_group = Rule(
    name="test-worst-group",
    caption="The last checkpoint of every run; hyperparameters by accuracy on the worst group of the test "
    "split, among the very examples that are reported: the best draw in hindsight.",
    score=lambda evaluation, others: worst_group_score(evaluation, "test"),
    checkpoints="last",
    oracle=True,
    doc=__doc__,
)
