"""Which rows a minibatch holds: pure functions of the step, so that a resume needs only t.

Shapes: E rows of a batch, B examples per row, M rows of the manifest, L rows that may be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dgharness.data.wilds_sampling import epoch_length, group_batches, uniform_epoch
from dgharness.errors import UsageError, did_you_mean
from dgharness.seeds import generator, seed_hash

BatchSize = int | Literal["all"]
Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Sampler:
    """``draw(t)`` is the index_EB of manifest rows after t updates; the same t, the same rows."""

    draw: Draw
    rows: Literal["domains", "groups", "drawn", "mixed"]  # what a row is; drawn: a domain or group anew


def make_sampler(
    name: str,
    rows_by_domain: Sequence[np.ndarray],
    targets_M: Tensor,
    group_M: Tensor,
    batch_size: BatchSize,
    trial_seed: int,
    rows: int | None = None,
) -> Sampler:
    """The sampler of that name over the training rows of each domain.

    ``rows`` are the rows of a batch, by default one for every domain or group.

    - ``by-domain``: a row per domain, ``batch_size`` draws with replacement (DomainBed's). "all" takes as
      many as the smallest domain has: all of that one, a fresh subset without replacement of the others.
    - ``by-group``: the same by group; groups without examples are left out.
    - ``pooled``: one row of ``batch_size`` times the number of domains, in shuffled epochs over all rows.
    - ``balanced``: one row of that size, with replacement: every group is equally likely, and within it
      every class that it holds.
    - ``full``: one row of everything.
    - ``wilds-group``: a row per group of a draw of groups, as WILDS' group loader has it: mostly without
      replacement, so that an epoch of batches has as many examples as there are.
    - ``wilds-uniform``: one row, with replacement: every group is equally likely, as in the loader that WILDS
      has for GroupDRO. Its standard loader is ``pooled``.

    With fewer ``rows`` than there are domains or groups, ``by-domain`` and ``by-group`` draw so many
    different ones at each step. Where there is one row, it is ``batch_size`` times ``rows`` long. Examples of
    unknown group (-1) take no part where groups are drawn.
    """
    if name not in SAMPLERS:
        raise UsageError(f"there is no sampler {name!r}; {did_you_mean(name, SAMPLERS)}")
    if batch_size != "all" and batch_size < 1:
        raise UsageError(f"train.batch_size={batch_size} must be at least 1, or all")
    pools = [torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)) for rows in rows_by_domain]
    if empty := [number for number, pool in enumerate(pools) if not len(pool)]:
        raise UsageError(f"training domain number {empty[0]} has no examples; leave it out")
    return SAMPLERS[name](Pools(pools, targets_M.cpu(), group_M.cpu(), rows), batch_size, trial_seed)


@dataclass(frozen=True)
class Pools:
    """What may be drawn: the rows of each domain, and the labels and groups of the whole manifest."""

    domains: list[Tensor]
    targets_M: Tensor
    group_M: Tensor
    rows: int | None = None  # of a batch

    @property
    def rows_L(self) -> Tensor:
        return torch.cat(self.domains)

    def one_row(self, batch_size: BatchSize) -> int:
        """Examples per step of a batch of one row: as many as by-domain takes, or everything."""
        return len(self.rows_L) if batch_size == "all" else batch_size * (self.rows or len(self.domains))

    def drawn(self, what: str, available: int) -> int:
        """How many of the domains or groups take part in a step."""
        if self.rows is not None and self.rows > available:
            raise UsageError(
                f"train.rows={self.rows} asks for more different {what} in a batch than training has: there "
                f"are {available}"
            )
        return self.rows or available


def _by_domain(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    return _rowwise(pools.domains, "domains", pools, batch_size, seed)


def _by_group(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    return _rowwise(_by_value(pools.rows_L, pools.group_M), "groups", pools, batch_size, seed)


def _pooled(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    rows_L = pools.rows_L

    def epoch(number: int) -> Tensor:
        return rows_L[torch.randperm(len(rows_L), generator=generator(seed, "order", number))]

    return Sampler(_in_epochs(epoch, len(rows_L), pools.one_row(batch_size)), "mixed")


def _wilds_uniform(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    rows_L = torch.cat(_by_value(pools.rows_L, pools.group_M)).sort().values
    _, group_L = pools.group_M[rows_L].unique(return_inverse=True)

    def epoch(number: int) -> Tensor:
        return rows_L[uniform_epoch(group_L, _wilds_seed(seed, number))]

    return Sampler(_in_epochs(epoch, len(rows_L), pools.one_row(batch_size)), "mixed")


def _wilds_group(pools: Pools, batch_size: BatchSize, seed: int) -> Sampler:
    groups = _by_value(pools.rows_L, pools.group_M)
    rows_L = torch.cat(groups).sort().values
    group_L, rows = pools.group_M[rows_L].numpy(), pools.drawn("groups", len(groups))
    size = min(map(len, groups)) if batch_size == "all" else batch_size
    per_epoch = epoch_length(len(rows_L), rows * size)

    @lru_cache(maxsize=2)
    def epoch(number: int) -> Callable[[int], np.ndarray]:
        return _remembered(group_batches(group_L, rows, size, _wilds_seed(seed, number)))

    def draw(t: int) -> Tensor:
        number, place = divmod(t, per_epoch)
        return rows_L[torch.from_numpy(epoch(number)(place))].view(rows, size)

    return Sampler(draw, "drawn")


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
    "wilds-group": _wilds_group,
    "wilds-uniform": _wilds_uniform,
}


def _rowwise(
    rows_of: list[Tensor], what: Literal["domains", "groups"], pools: Pools, batch_size: BatchSize, seed: int
) -> Sampler:
    available, rows = len(rows_of), pools.drawn(what, len(rows_of))
    if rows == available and batch_size == "all":
        return Sampler(_smallest_size(rows_of, seed), what)
    size = min(map(len, rows_of)) if batch_size == "all" else batch_size
    take, all_E = _with_replacement(rows_of), torch.arange(available)

    def draw(t: int) -> Tensor:
        stream = generator(seed, "order", t)
        # In the order of the domains or groups, as where all of them take part.
        row_E = (
            all_E if rows == available else torch.randperm(available, generator=stream)[:rows].sort().values
        )
        if batch_size == "all":
            return torch.stack([_subset(rows_of[row], size, stream) for row in row_E.tolist()])
        return take(row_E[:, None], torch.rand(rows, size, generator=stream, dtype=torch.float64))

    return Sampler(draw, what if rows == available else "drawn")


def _smallest_size(pools: list[Tensor], seed: int) -> Draw:
    size = min(len(pool) for pool in pools)
    if all(len(pool) == size for pool in pools):
        everything = torch.stack(pools)
        return lambda t: everything

    def draw(t: int) -> Tensor:
        stream = generator(seed, "order", t)
        return torch.stack([_subset(pool, size, stream) for pool in pools])

    return draw


def _subset(pool: Tensor, size: int, stream: torch.Generator) -> Tensor:
    return pool if len(pool) == size else pool[torch.randperm(len(pool), generator=stream)[:size]]


def _in_epochs(epoch: Callable[[int], Tensor], length: int, per_step: int) -> Draw:
    """One row a step out of epochs that follow one another without a gap: it may span the end of one."""
    epoch = lru_cache(maxsize=2)(epoch)

    def draw(t: int) -> Tensor:
        first, last = t * per_step, (t + 1) * per_step
        parts = []
        for number in range(first // length, (last - 1) // length + 1):
            start = number * length
            parts.append(epoch(number)[max(first - start, 0) : last - start])
        return torch.cat(parts)[None]

    return draw


def _remembered(batches: Iterator[np.ndarray]) -> Callable[[int], np.ndarray]:
    """What comes at a place, drawn when it is first asked for."""
    seen: list[np.ndarray] = []

    def at(place: int) -> np.ndarray:
        while len(seen) <= place:
            seen.append(next(batches))
        return seen[place]

    return at


def _wilds_seed(trial_seed: int, epoch: int) -> int:
    """The first epoch is that of WILDS under the trial's seed; every later one has a stream of its own."""
    return seed_hash(trial_seed, "order", epoch) if epoch else trial_seed


def _with_replacement(pools: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """``(pool number, u in [0, 1)) -> row`` for all pools at once; a loop over them would cost more."""
    rows_L = torch.cat(pools)
    sizes_E = torch.tensor([len(pool) for pool in pools])
    starts_E = sizes_E.cumsum(0) - sizes_E
    return lambda pool, u: rows_L[starts_E[pool] + (u * sizes_E[pool]).long()]


def _by_value(rows_L: Tensor, column_M: Tensor) -> list[Tensor]:
    """The rows apart by the value of a column, without those of unknown value (-1)."""
    known_L = rows_L[column_M[rows_L] >= 0]
    if not len(known_L):
        raise UsageError(
            "the training examples have no known group; use the sampler by-domain, pooled or full"
        )
    value_L, order_L = column_M[known_L].sort(stable=True)
    return list(known_L[order_L].split(value_L.unique_consecutive(return_counts=True)[1].tolist()))
