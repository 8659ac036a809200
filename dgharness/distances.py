"""Distances between groups of feature vectors, as the matching penalties use them.

Who belongs to a group is a 0/1 weight and never a slice, so that many trials can train at once. All sums
run in at least float32, also where the model itself runs in bfloat16.

Shapes: G groups, E rows of a batch, B examples per row, N vectors, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
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


def _kernel(z_ND: Tensor) -> Tensor:
    z_ND = z_ND - z_ND.mean(0)  # the same distances with less rounding
    norm_N = z_ND.square().sum(1)
    squared_NN = (norm_N[:, None] + norm_N - 2 * z_ND @ z_ND.mT).clamp(min=0)
    return torch.stack([(-gamma * squared_NN).exp() for gamma in GAMMAS]).sum(0)
