"""Penalises what each domain could still gain from a classifier of its own, and not the slope towards it.

Paper: Khezeli et al., "On Invariance Penalties for Risk Minimization", 2021, arXiv:2106.09777.
Equation: min mean_e R_e + lambda mean_e 1/2 g_e^T (H_e + eps I)^-1 g_e, with g_e and H_e the gradient and the
    Gauss-Newton matrix of R_e in dummy weights w; for the square loss: R_e(w) - min_v R_e(v) as eps -> 0
Agrees with: the paper's idea, the slope measured in the metric of the representation's Gram matrix, as
    reconstructed from its abstract and the identity above; no code was published. mode=scalar has IRMv1's one
    factor of all outputs, affine a shift of every output too, vector the weights and biases of a linear
    classifier. There H_e is the product of the mean curvature of each output and the Gram matrix of the
    features, exact for the square loss; it wants more examples per domain than features, and features that
    train. The unit tests' form, (1 - lambda) R + lambda sum_e, is weight m lambda / (1 - lambda) here.
Trust: unverified
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, jvp, vmap

from dgharness.plugin import (
    AnnealedHparams,
    Annotated,
    IntLogUniform,
    LogUniform,
    Needs,
    NonNegativeInt,
    Step,
    Structural,
    penalty,
)

# Beyond the package's letters: S dummy weights.


class IRMv2Hparams(AnnealedHparams):
    weight: Annotated[float, LogUniform(1e-1, 1e5)] = 100.0
    """Weight of the penalty from anneal_steps on; before that it is 1."""
    anneal_steps: Annotated[NonNegativeInt, IntLogUniform(1, 1e4)] = 500
    """Updates before the penalty gets its weight."""
    mode: Annotated[Literal["scalar", "affine", "vector"], Structural] = "scalar"
    """The dummy weights: a factor of the outputs, with a shift of each, or those of a linear classifier."""
    eps: Annotated[float, Field(ge=0), LogUniform(1e-5, 1e-1)] = 1e-3
    """Added to the diagonal of every matrix that is inverted."""


@penalty("from_one", hparams=IRMv2Hparams, needs=Needs(domain_rows=True))
def irmv2(step: Step, hp: IRMv2Hparams) -> Tensor:
    decrement_E = of_classifier(step, hp.eps) if hp.mode == "vector" else of_outputs(step, hp.mode, hp.eps)
    return decrement_E.mean().to(step.risks_E.dtype)


def of_outputs(step: Step, mode: Literal["scalar", "affine"], eps: float) -> Tensor:
    """Newton decrement [E] of each domain's risk in a factor of the outputs, and a shift of each."""
    z_EBC = step.logits_EBC.double()
    along_EBSC = z_EBC[..., None, :]
    if mode == "affine":
        shifts_EBCC = torch.eye(z_EBC.shape[-1]).to(z_EBC).expand(*z_EBC.shape, -1)
        along_EBSC = torch.cat([along_EBSC, shifts_EBCC], -2)
    g_EBC, curved_EBSC = derivatives(step, z_EBC, along_EBSC)
    g_ES = (along_EBSC * g_EBC[..., None, :]).sum(-1).mean(1)
    H_ESS = (along_EBSC @ curved_EBSC.mT).mean(1)
    return (g_ES * ridge_solve(H_ESS, g_ES[..., None], eps)[..., 0]).sum(1) / 2


def of_classifier(step: Step, eps: float) -> Tensor:
    """Newton decrement [E] of each domain's risk in the weights and biases of a linear classifier."""
    z_EBC, ones_EB1 = step.logits_EBC.double(), torch.ones_like(step.features_EBD[..., :1])
    features_EBD = torch.cat([step.features_EBD, ones_EB1], -1).double()
    outputs_EBCC = torch.eye(z_EBC.shape[-1]).to(z_EBC).expand(*z_EBC.shape, -1)
    g_EBC, curved_EBCC = derivatives(step, z_EBC, outputs_EBCC)
    curvature_EC = curved_EBCC.diagonal(dim1=-2, dim2=-1).mean(1)
    examples = z_EBC.shape[1]
    g_EDC = features_EBD.mT @ g_EBC / examples
    gram_EDD = features_EBD.mT @ features_EBD / examples
    return ((g_EDC * ridge_solve(gram_EDD, g_EDC, eps)).sum(1) / (curvature_EC + eps)).sum(1) / 2


def derivatives(step: Step, z_EBC: Tensor, along_EBSC: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [E, B, C] of the losses in the outputs, and their Hessians' products [E, B, S, C]."""
    gradient = grad(lambda z: step.loss(z, step.targets_EB).sum())
    product = vmap(lambda along: jvp(gradient, (z_EBC,), (along,))[1], in_dims=2, out_dims=2)
    return gradient(z_EBC), product(along_EBSC)


def ridge_solve(matrix: Tensor, right: Tensor, eps: float) -> Tensor:
    return torch.linalg.solve(matrix + eps * torch.eye(matrix.shape[-1]).to(matrix), right)
