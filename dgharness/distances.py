"""Distances between groups of feature vectors, as the matching penalties use them.

Who belongs to a group is a 0/1 weight and never a slice, so that many trials can train at once. All sums
run in at least float32, also where the model itself runs in bfloat16. The distances between two samples take
any number of leading dimensions: ``distance(*pairs(z_EBD))`` is one value per pair of rows.

Shapes: G groups, E rows of a batch, P pairs of rows, B examples per row, N and M vectors, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(fn: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Run a function of a tensor outside autocast: kernels of bfloat16 products are noise."""

    @wraps(fn)
    def run(z: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(z.device.type, enabled=False):
            return fn(z.to(torch.promote_types(z.dtype, torch.float32)), *args, **kwargs)

    return run


def pairwise(x_G: Tensor) -> Tensor:
    """Mean over pairs of groups, and over entries, of the squared difference; 0 for one group.

    It is 2G/(G-1) times the variance across the groups, so it needs no loop over pairs.

    >>> pairwise(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor(2.)
    """
    groups = len(x_G)
    return 2 * groups / max(groups - 1, 1) * x_G.var(0, correction=0).mean()


@full_precision
def moments(z_GND: Tensor, member_GN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [G, D] and unbiased covariance [G, D, D] of each group; the covariance of one vector is 0.

    >>> mean_GD, cov_GDD = moments(torch.tensor([[[0.0], [2.0], [9.0]]]), torch.tensor([[1.0, 1.0, 0.0]]))
    >>> mean_GD, cov_GDD
    (tensor([[1.]]), tensor([[[2.]]]))
    """
    member_GN = z_GND.new_ones(z_GND.shape[:2]) if member_GN is None else member_GN.to(z_GND.dtype)
    member_GN1 = member_GN[..., None]
    count_G1 = member_GN1.sum(1)
    mean_GD = (member_GN1 * z_GND).sum(1) / count_G1.clamp(min=1)
    centred_GND = z_GND - mean_GD[:, None]
    scatter_GDD = (member_GN1 * centred_GND).mT @ centred_GND
    return mean_GD, scatter_GDD / (count_G1[..., None] - 1).clamp(min=1)


@full_precision
def gaussian_mmd(z_ND: Tensor, member_GN: Tensor) -> Tensor:
    """Mean over pairs of groups of the squared MMD; 0 for one group.

    The kernel is the sum of exp(-gamma |a - b|^2) over ``GAMMAS``; its means include the diagonal.
    """
    member_GN = member_GN.to(z_ND.dtype)
    share_GN = member_GN / member_GN.sum(1, keepdim=True).clamp(min=1)
    mean_GG = share_GN @ _kernel(z_ND) @ share_GN.mT
    groups = len(mean_GG)
    return 2 * (groups * mean_GG.diagonal().sum() - mean_GG.sum()) / (groups * max(groups - 1, 1))


# --- between two samples ---------------------------------------------------------------------------


def pairs(z_EBD: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides [P, B, D] of every pair of rows."""
    first_P, second_P = torch.triu_indices(len(z_EBD), len(z_EBD), 1, device=z_EBD.device)
    return z_EBD[first_P], z_EBD[second_P]


def mean_pair(distance_P: Tensor) -> Tensor:
    """Mean over the pairs; 0 where there is none."""
    return distance_P.sum() / max(len(distance_P), 1)


def worst_pair(distance_P: Tensor) -> Tensor:
    """Largest distance of a pair; 0 where there is none."""
    return distance_P.amax() if len(distance_P) else distance_P.sum()


@full_precision
def adaptive_mmd(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Squared MMD under kernels as wide as the two samples are; the means include the diagonal.

    >>> adaptive_mmd(torch.zeros(2, 1), torch.ones(3, 1)) > adaptive_mmd(torch.zeros(2, 1), torch.zeros(3, 1))
    tensor(True)
    """
    kernel = adaptive_kernel(torch.cat([x_ND, y_MD], -2))
    N = x_ND.shape[-2]
    xx, yy, xy = kernel[..., :N, :N], kernel[..., N:, N:], kernel[..., :N, N:]
    return xx.mean((-2, -1)) + yy.mean((-2, -1)) - 2 * xy.mean((-2, -1))


@full_precision
def adaptive_kernel(z_ND: Tensor) -> Tensor:
    """Sum [..., N, N] of five Gaussian kernels around the mean squared distance b of the vectors.

    It is sum_i exp(-|a - b|^2 / (2^i b)), i = -2..2, where b passes no gradient.
    """
    squared_NN = squared_distances(z_ND, z_ND)
    N = z_ND.shape[-2]
    mean = squared_NN.detach().sum((-2, -1), keepdim=True) / max(N * (N - 1), 1)
    scaled_NN = squared_NN / mean.clamp(min=1e-30)  # alike to the last bit: all kernels are 1
    return torch.stack([(-scaled_NN / 2.0**i).exp() for i in range(-2, 3)]).sum(0)


@full_precision
def sinkhorn_divergence(x_ND: Tensor, y_MD: Tensor, eps: Tensor | float, iterations: int = 50) -> Tensor:
    """Entropic optimal transport less what it costs to transport each sample to itself; 0 for equal ones.

    >>> x = torch.tensor([[0.0], [4.0]])
    >>> sinkhorn_divergence(x, x + 1, 0.1)
    tensor(0.5000)
    """
    cost = partial(entropic_ot, eps=eps, iterations=iterations)
    return (cost(x_ND, y_MD) + cost(y_MD, x_ND) - cost(x_ND, x_ND) - cost(y_MD, y_MD)) / 2


@full_precision
def entropic_ot(x_ND: Tensor, y_MD: Tensor, eps: Tensor | float, iterations: int = 50) -> Tensor:
    """Cost of optimal transport between uniform weights, at |a - b|^2 / 2, with eps times the entropy.

    Sinkhorn's iterations in the log domain: eps falls geometrically from the squared diameter over the first
    half of them. Before they have converged they favour one side a little, hence both orders above. The
    gradient is that of the cost under the plan found (the envelope theorem), so that no iteration is stored
    for it.
    """
    cost_NM = squared_distances(x_ND, y_MD) / 2
    fixed_NM = cost_NM.detach()
    N, M = fixed_NM.shape[-2:]
    eps = torch.as_tensor(eps).to(fixed_NM)
    start = (2 * fixed_NM.amax((-2, -1), keepdim=True) / eps).clamp(min=1)
    f_N1, g_1M = torch.zeros_like(fixed_NM[..., :1]), torch.zeros_like(fixed_NM[..., :1, :])
    for iteration in range(iterations):
        now = eps * start ** max(0.0, 1 - 2 * iteration / iterations)
        f_N1 = now * (math.log(M) - ((g_1M - fixed_NM) / now).logsumexp(-1, keepdim=True))
        g_1M = now * (math.log(N) - ((f_N1 - fixed_NM) / now).logsumexp(-2, keepdim=True))
    plan_NM = ((f_N1 + g_1M - fixed_NM) / eps).exp() / (N * M)
    value = f_N1.mean((-2, -1)) + g_1M.mean((-2, -1))
    return value + (plan_NM * (cost_NM - fixed_NM)).sum((-2, -1))


# --- who belongs to a group ------------------------------------------------------------------------


def rows(z_EBD: Tensor) -> Tensor:
    """Membership [E, E*B] of the flattened vectors in their rows.

    >>> rows(torch.zeros(2, 2, 5))
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 1.]])
    """
    return torch.eye(z_EBD.shape[0], device=z_EBD.device).repeat_interleave(z_EBD.shape[1], 1)


def cuts(E: int, B: int, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) per row: where it is cut."""
    return torch.rand(E, generator=generator)


def random_halves(cut_E: Tensor, size: int) -> Tensor:
    """Membership [2, E*B]: the first floor(cut_e B) examples of every row, and all the others.

    >>> random_halves(torch.tensor([0.5, 0.0]), 3)
    tensor([[1., 0., 0., 0., 0., 0.],
            [0., 1., 1., 1., 1., 1.]])
    """
    first_EB = torch.arange(size, device=cut_E.device) < (cut_E * size).floor()[:, None]
    return torch.stack([first_EB, ~first_EB]).flatten(1).to(cut_E.dtype)


def both_have_two(member_GN: Tensor) -> Tensor:
    """1 where every group holds at least two vectors, else 0."""
    return (member_GN.sum(1) > 1).all().to(member_GN.dtype)


@full_precision
def squared_distances(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Squared Euclidean distances [..., N, M], by a matrix product."""
    centre = (x_ND.mean(-2, keepdim=True) + y_MD.mean(-2, keepdim=True)) / 2  # the same with less rounding
    x_ND, y_MD = x_ND - centre, y_MD - centre
    x_N1, y_M1 = x_ND.square().sum(-1, keepdim=True), y_MD.square().sum(-1, keepdim=True)
    return (x_N1 + y_M1.mT - 2 * x_ND @ y_MD.mT).clamp(min=0)


def _kernel(z_ND: Tensor) -> Tensor:
    squared_NN = squared_distances(z_ND, z_ND)
    return torch.stack([(-gamma * squared_NN).exp() for gamma in GAMMAS]).sum(0)
