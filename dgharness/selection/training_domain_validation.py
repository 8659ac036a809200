"""Training-domain validation: what does best on held-back examples of the training domains.

Under a dataset's own split it is the validation split that counts, whose domains may be others.

Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021, section 3.2.
"""

from dgharness.selection.rule import Rule, validation_score

training_domain_validation = Rule(
    name="training-domain-validation",
    caption="Checkpoint and hyperparameters jointly by validation accuracy, its unweighted mean over the "
    "domains of the validation split.",
    score=lambda evaluation, others: validation_score(evaluation),
    doc=__doc__,
)
