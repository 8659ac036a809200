"""Which rows a minibatch holds: pure functions of the step, so that a resume needs only t.

Shapes: E rows of a batch, B examples per row, M rows of the manifest, L rows that may be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dgharness.errors import UsageError, did_you_mean
from dgharness.seeds import generator

BatchSize = int | Literal["all"]
Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Sampler:
    """``draw(t)`` is the index_EB of manifest rows after t updates; the same t, the same rows."""

    draw: Draw
    rows: Literal["domains", "groups", "mixed"]  # what a row of the batch is


def make_sampler(
    name: str,
    rows_by_domain: Sequence[np.ndarray],
    targets_M: Tensor,
    group_M: Tensor,
    batch_size: BatchSize,
    trial_seed: int,
) -> Sampler:
    """The sampler of that name over the training rows of each domain.

    - ``by-domain``: a row per domain, ``batch_size`` draws with replacement (DomainBed's). "all" takes as
      many as the smallest domain has: all of that one, a fresh subset without replacement of the others.
    - ``by-group``: the same by group; groups without examples are left out.
    - ``pooled``: one row of ``batch_size`` times the number of domains, in shuffled epochs over all rows.
    - ``balanced``: one row of that size, with replacement: every group is equally likely, and within it
      every class that it holds.
    - ``full``: one row of everything.

    Examples of unknown group (-1) take no part in ``by-group`` and ``balanced``.
    """
    if name not in SAMPLERS:
        raise UsageError(f"there is no sampler {name!r}; {did_you_mean(name, SAMPLERS)}")
    if batch_size != "all" and batch_size < 1:
        raise UsageError(f"train.batch_size={batch_size} must be at least 1, or all")
    pools = [torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)) for rows in rows_by_domain]
    if empty := [number for number, pool in enumerate(pools) if not len(pool)]:
        raise UsageError(f"training domain number {empty[0]} has no examples; leave it out")
    return SAMPLERS[name](Pools(pools, targets_M.cpu(), group_M.cpu()), batch_size, trial_seed)


@dataclass(frozen=True)
class Pools:
    """What may be drawn: the rows of each domain, and the labels and groups of the whole manifest."""

    domains: list[Tensor]
    targets_M: Tensor
    group_M: Tensor

    @property
    def rows_L(self) -> Tensor:
        return torch.cat(self.domains)

    def one_row(self, batch_size: BatchSize) -> int:
        """Examples per step of a batch of one row: as many as by-domain takes, or everything."""
        return len(self.rows_L) if batch_size == "all" else batch_size * len(self.domains)


def _by_domain(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    return Sampler(_rowwise(pools.domains, batch_size, seed), "domains")


def _by_group(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    return Sampler(_rowwise(_by_value(pools.rows_L, pools.group_M), batch_size, seed), "groups")


def _pooled(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    rows_L, per_step = pools.rows_L, pools.one_row(batch_size)

    @lru_cache(maxsize=2)
    def epoch(number: int) -> Tensor:
        return rows_L[torch.randperm(len(rows_L), generator=generator(seed, "order", number))]

    def draw(t: int) -> Tensor:
        # Epochs follow one another without a gap, so a batch may span the end of one.
        first, last = t * per_step, (t + 1) * per_step
        parts = []
        for number in range(first // len(rows_L), (last - 1) // len(rows_L) + 1):
            start = number * len(rows_L)
            parts.append(epoch(number)[max(first - start, 0) : last - start])
        return torch.cat(parts)[None]

    return Sampler(draw, "mixed")


def _balanced(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    if pools.targets_M.is_floating_point():
        raise UsageError(
            "the sampler balanced balances classes, and the targets here are numbers; use by-group"
        )
    groups = _by_value(pools.rows_L, pools.group_M)
    classes_of = [_by_value(rows_L, pools.targets_M) for rows_L in groups]
    counts = [len(classes) for classes in classes_of]
    take_class = _with_replacement(list(torch.arange(sum(counts)).split(counts)))
    take_row = _with_replacement([rows_L for classes in classes_of for rows_L in classes])
    per_step = pools.one_row(batch_size)

    def draw(t: int) -> Tensor:
        u_3B = torch.rand(3, per_step, generator=generator(seed, "order", t), dtype=torch.float64)
        group_B = (u_3B[0] * len(groups)).long()
        return take_row(take_class(group_B, u_3B[1]), u_3B[2])[None]

    return Sampler(draw, "mixed")


def _full(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    everything = pools.rows_L[None]
    return Sampler(lambda t: everything, "mixed")


SAMPLERS: dict[str, Callable[[Pools, BatchSize, int], Sampler]] = {
    "by-domain": _by_domain,
    "by-group": _by_group,
    "pooled": _pooled,
    "balanced": _balanced,
    "full": _full,
}


def _rowwise(pools: list[Tensor], batch_size: BatchSize, seed: int) -> Draw:
    if batch_size == "all":
        return _smallest_size(pools, seed)
    take, row_E1 = _with_replacement(pools), torch.arange(len(pools))[:, None]

    def draw(t: int) -> Tensor:
        stream = generator(seed, "order", t)
        return take(row_E1, torch.rand(len(pools), batch_size, generator=stream, dtype=torch.float64))

    return draw


def _smallest_size(pools: list[Tensor], seed: int) -> Draw:
    size = min(len(pool) for pool in pools)
    if all(len(pool) == size for pool in pools):
        everything = torch.stack(pools)
        return lambda t: everything

    def draw(t: int) -> Tensor:
        stream = generator(seed, "order", t)
        return torch.stack(
            [
                pool if len(pool) == size else pool[torch.randperm(len(pool), generator=stream)[:size]]
                for pool in pools
            ]
        )

    return draw


def _with_replacement(pools: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """``(pool number, u in [0, 1)) -> row`` for all pools at once; a loop over them would cost more."""
    rows_L = torch.cat(pools)
    sizes_E = torch.tensor([len(pool) for pool in pools])
    starts_E = sizes_E.cumsum(0) - sizes_E
    return lambda pool, u: rows_L[starts_E[pool] + (u * sizes_E[pool]).long()]


def _by_value(rows_L: Tensor, column_M: Tensor) -> list[Tensor]:
    """The rows apart by the value of a column, without those of unknown value (-1)."""
    apart = [rows_L[column_M[rows_L] == value] for value in column_M[rows_L].unique() if value >= 0]
    if not apart:
        raise UsageError(
            "the training examples have no known group; use the sampler by-domain, pooled or full"
        )
    return apart
