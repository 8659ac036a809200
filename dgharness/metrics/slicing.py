"""Which example is in which slice: a domain, a group (of which it may be in several), a class, or all.

Shapes: N examples, K slices, P pairs of an example and a slice that it is in, V values of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slicing:
    """Pairs of an example and a slice, in the order of the slices."""

    names: tuple[str, ...]
    example_P: Tensor
    slice_P: Tensor  # not decreasing

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def count_K(self) -> Tensor:
        return torch.bincount(self.slice_P, minlength=len(self))

    @cached_property
    def start_K(self) -> Tensor:
        """The first pair of each slice."""
        return self.count_K.cumsum(0) - self.count_K

    def total(self, value_P: Tensor) -> Tensor:
        """Sums [..., K] over each slice of values [..., P]."""
        zeros = value_P.new_zeros(*value_P.shape[:-1], len(self))
        return zeros.index_add_(-1, self.slice_P, value_P)

    def mean(self, value_P: Tensor) -> Tensor:
        """Means [..., K] of values [..., P]; NaN for an empty slice."""
        return self.total(value_P) / self.count_K


def slicing(slices: Tensor, names: Sequence[str]) -> Slicing:
    """From the slice of each example [N] (-1: in none), or who is in which slice [N, K].

    >>> found = slicing(torch.tensor([1, -1, 0, 1]), ["a", "b"])
    >>> found.example_P, found.count_K
    (tensor([2, 0, 3]), tensor([1, 2]))
    """
    slices = slices.cpu()
    if slices.dim() == 2:
        slice_P, example_P = slices.T.nonzero().unbind(1)
        return Slicing(tuple(names), example_P, slice_P)
    order_N = slices.argsort(stable=True)
    example_P = order_N[int((slices < 0).sum()) :]
    return Slicing(tuple(names), example_P, slices[example_P])


def everything(n: int) -> Slicing:
    """One slice of all examples."""
    return Slicing(("",), torch.arange(n), torch.zeros(n, dtype=torch.long))
