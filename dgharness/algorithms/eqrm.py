"""Minimises a quantile of the distribution that the domains' risks are drawn from.

Paper: Eastwood et al., "Probable Domain Generalization via Quantile Risk Minimization", NeurIPS 2022,
    arXiv:2207.09944.
Equation: min_theta q with (1/m) sum_e Phi((q - R_e(theta)) / h) = alpha, h = 1.06 Std(R) m^(-1/5); for
    alpha < 0, which stands for the quantile 1 - exp(alpha), q = mean_e R_e + h sqrt(-2 alpha)
Agrees with: DomainBed's EQRM in the value of q. Its gradient differs on purpose: DomainBed differentiates
    what its bisection returns, which knows only the lowest and the highest risk and h, with weights that are
    accidents of the search; here it is the derivative of the equation above, by the implicit function
    theorem, and every domain has its share. DomainBed's random search draws a fractional burn-in, which its
    comparison with the step never meets, and so never changes the learning rate; here it is an integer.
    The authors' ColoredMNIST script divides the loss after the burn-in by a ratio of gradient norms, which
    Adam does not notice without weight decay; it is not part of this. One risk is its own quantile.
Trust: verified
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.special import ndtr, ndtri

from dgharness.distances import full_precision
from dgharness.plugin import (
    Annotated,
    Hparams,
    IntLogUniform,
    LogUniform,
    Metrics,
    Needs,
    NonNegativeInt,
    Step,
    Uniform,
    objective,
)

BISECTIONS = 32


class EQRMHparams(Hparams):
    alpha: Annotated[float, Uniform(0.5, 0.99)] = 0.75
    """The quantile; a negative number stands for 1 - exp(alpha), beyond what a float can hold."""
    burnin_steps: Annotated[NonNegativeInt, IntLogUniform(10**2.5, 10**3.5)] = 2500
    """Updates on the mean risk before the quantile is minimised."""
    quantile_lr: Annotated[float | None, Field(gt=0), LogUniform(1e-7, 1e-5)] = 1e-6
    """Learning rate from burnin_steps on, where the optimizer starts afresh; none keeps what it was."""

    @field_validator("alpha")
    @classmethod
    def not_zero_nor_above_1(cls, value: float) -> float:
        if not (value < 0 or 0 < value < 1):
            raise ValueError("the quantile must lie between 0 and 1, or be negative for 1 - exp(alpha)")
        return value


@objective(
    EQRMHparams,
    needs=Needs(min_domains=2, places=("tokens", "detection")),
    restarts=lambda hp: [(hp.burnin_steps, hp.quantile_lr)],
)
def eqrm(step: Step, hp: EQRMHparams) -> tuple[Tensor, Metrics]:
    risk, value = step.risks_E.mean(), quantile(step.risks_E, hp.alpha)
    burnt_in = torch.as_tensor(step.t >= hp.burnin_steps, device=risk.device)
    return torch.where(burnt_in, value, risk), {"risk": risk, "quantile": value}


@full_precision
def quantile(risks_E: Tensor, alpha: float | Tensor) -> Tensor:
    """The alpha-quantile of the Gaussian kernel density estimate of some risks.

    >>> quantile(torch.tensor([0.0, 1.0, 2.0]), 0.5).round(decimals=4)
    tensor(1.)
    """
    alpha = torch.as_tensor(alpha, dtype=risks_E.dtype, device=risks_E.device)
    mean = risks_E.mean()
    h = 1.06 * risks_E.std(correction=min(1, len(risks_E) - 1)) * len(risks_E) ** -0.2
    # Risks that differ by rounding alone have no width, whose gradient would be noise of full size.
    h = torch.where(h > 4 * torch.finfo(h.dtype).eps * mean.abs(), h, 0.0)
    deviation_E = (risks_E - mean) / torch.where(h > 0, h, 1.0)
    # Rounding must not lift a quantile just below 1 to 1, which lies at infinity.
    between = torch.where(alpha > 0, alpha, 0.5).clamp(max=1 - torch.finfo(alpha.dtype).eps)
    inside = mean + h * standard_quantile(deviation_E, between)
    far_out = mean + h * (-2 * alpha.clamp(max=0)).sqrt()
    return torch.where(alpha > 0, inside, far_out)


def standard_quantile(u_E: Tensor, alpha: Tensor) -> Tensor:
    """The y with mean_e Phi(y - u_e) = alpha, and its derivative in u."""
    fixed_E, normal = u_E.detach(), ndtri(alpha)
    low, high = fixed_E.min() + normal, fixed_E.max() + normal
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = ndtr(middle - fixed_E).mean() > alpha
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    y = (low + high) / 2
    density = (-(y - fixed_E).square() / 2).exp().mean() / math.sqrt(2 * math.pi)
    # One step of Newton's method, whose derivative in u is that of the implicit function.
    return y - (ndtr(y - u_E).mean() - alpha) / density
