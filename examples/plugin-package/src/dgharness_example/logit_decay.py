"""Logit decay, known as spectral decoupling: large logits cost, so no single feature can starve the others.

Paper: Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, NeurIPS 2021
Equation: mean risk + weight / 2 x mean of the squared logits
Agrees with: DomainBed's SD, whose sd_reg is half of this weight

Shapes: E rows, B examples per row, C outputs.
"""

from dgharness.plugin import Annotated, LogUniform, PenaltyHparams, Step, penalty


class LogitDecayHparams(PenaltyHparams):
    weight: Annotated[float, LogUniform(2e-5, 2e-1)] = 0.2
    """Weight of the squared logits; the paper's lambda."""


@penalty(hparams=LogitDecayHparams)
def logit_decay(step: Step, hp: LogitDecayHparams):
    return step.logits_EBC.square().mean() / 2
