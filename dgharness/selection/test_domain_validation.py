"""Test-domain validation, an oracle: hyperparameters by labelled examples of the target domain itself.

Only the last checkpoint may be chosen, which limits what the oracle can see. Gulrajani and Lopez-Paz,
In Search of Lost Domain Generalization, 2021, section 3.2.
"""

from dgharness.selection.rule import Rule, split_score

test_domain_validation = Rule(
    name="test-domain-validation",
    caption="The last checkpoint of every run; hyperparameters by accuracy on labelled examples of the "
    "target domain that are held back from the reported ones, which no deployed method could see.",
    score=lambda evaluation, others: split_score(evaluation, "test_holdout"),
    checkpoints="last",
    oracle=True,
    needs="test_holdout",
    doc=__doc__,
)
