"""Leave-one-domain-out cross-validation: each training domain in turn is held out as well, and predicted.

For target t, the score of a draw at a step is the mean over the other domains v of the accuracy on v in the
run that held out both t and v, same draw and step. The reported number comes from the run that held out t
alone. Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, 2021, section 3.2.
"""

from dgharness.selection.rule import Rule, domain_score, mean

leave_one_domain_out_cv = Rule(
    name="leave-one-domain-out-cv",
    caption="Checkpoint and hyperparameters jointly by the mean accuracy on each training domain in the runs "
    "that held it out together with the target.",
    score=lambda evaluation, others: mean(domain_score(at, "test", v) for v, at in others.items()),
    pairs=True,
    doc=__doc__,
)
