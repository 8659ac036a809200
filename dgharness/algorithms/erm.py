"""Minimises the mean risk over the minibatch, whatever domain an example comes from.

Paper: Vapnik, "Statistical Learning Theory", Wiley 1998; as the baseline of the field: Gulrajani and
    Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, arXiv:2007.01434.
Equation: min_f (1/n) sum_i loss(f(x_i), y_i)
Agrees with: DomainBed's ERM; with equally many examples per domain, the mean risk of the domains is the
    risk of the pooled minibatch.
Trust: core
"""

from __future__ import annotations

from torch import Tensor

from dgharness.plugin import Hparams, Metrics, Needs, Step, objective


@objective(needs=Needs(places=("tokens", "detection")))
def erm(step: Step, hp: Hparams) -> tuple[Tensor, Metrics]:
    risk = step.risks_E.mean()
    return risk, {"risk": risk}
