"""Domains as buckets of time: which are past and which are future, and the windows of a streaming evaluation.

Paper: Yao, Choi, Cao, Lee, Koh, Finn, Wild-Time: A Benchmark of in-the-Wild Distribution Shift over Time,
NeurIPS 2022, arXiv 2211.14238.

The manifest column ``time`` (a float, in any unit) says when an example is from. Fixed evaluation trains one
model on the past and scores it on every later domain. Streaming evaluation does so at each cut, from the
first on: train on all that lies before it, test on the next ``horizon`` domains, and average over the cuts.
Wild-Time keeps training one model as time goes on; here every cut has a model of its own.

    dgharness train --dataset NAME --set protocol.name=temporal --set protocol.cut=0.5
    dgharness sweep --dataset NAME -a erm,vrex --set protocol.name=temporal --set protocol.horizon=3

The first is fixed, the second streaming: the columns of its report are the cuts, ``average`` is their mean.

Shapes: M rows of the manifest.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset
from dgharness.errors import UsageError


class Span(NamedTuple):
    """When the first and the last example of a domain are from."""

    first: float
    last: float


def in_time_order(dataset: Dataset) -> dict[str, Span]:
    """The domains that have examples, from the earliest on, none beginning before the last one ended.

    A UsageError says so where there is no time, or where domains are no buckets of it.
    """
    if "time" not in dataset.manifest or not pd.api.types.is_float_dtype(dataset.manifest["time"].dtype):
        raise UsageError(
            f"the protocol temporal needs a manifest column named time that holds numbers (float), and "
            f"{dataset.name} has none; add it, or use --set protocol.name=leave-one-domain-out"
        )
    time_M = dataset.manifest["time"].to_numpy(np.float64)
    if (unknown := np.flatnonzero(~np.isfinite(time_M))).size:
        raise UsageError(
            f"{dataset.where(int(unknown[0]))} has no finite time, by which {dataset.name} is split; give it "
            "one or leave the row out"
        )
    by_domain = dataset.manifest.groupby("domain", observed=True)["time"].agg(["min", "max"])
    found = {
        str(name): Span(float(first), float(last))
        for name, first, last in by_domain.sort_values("min").itertuples()
    }
    for (earlier, span), (later, following) in pairwise(found.items()):
        if following.first <= span.last:
            raise UsageError(
                f"the domains {earlier!r} and {later!r} of {dataset.name} overlap in time: one ends at "
                f"{span.last:g} and the other begins at {following.first:g}; the protocol temporal needs "
                "domains that follow one another"
            )
    return found


def past(dataset: Dataset, targets: Collection[str]) -> tuple[str, ...]:
    """The domains before the earliest target, in the order of time."""
    order = list(in_time_order(dataset))
    if absent := [name for name in targets if name not in order]:
        raise UsageError(f"the target {absent[0]!r} of {dataset.name} has no examples; name another")
    before = order[: min(order.index(name) for name in targets)]
    if not before:
        raise UsageError(
            f"the target {order[0]!r} is the earliest domain of {dataset.name}, so that no past is left to "
            "train on; name later targets"
        )
    return tuple(before)


def future(dataset: Dataset, cut: float | None = None, horizon: int | None = None) -> tuple[str, ...]:
    """The domains from the cut on, or the first ``horizon`` of them, in the order of time.

    ``cut`` is a time between two domains; without it the earlier half of the domains is the past.
    """
    order = list(in_time_order(dataset))
    first = _first_after(dataset, cut)
    later = order[first : None if horizon is None else first + horizon]
    if horizon is not None and len(later) < horizon:
        raise UsageError(
            f"protocol.horizon={horizon} asks for {horizon} domains from the cut on, and {dataset.name} has "
            f"{len(later)} there; take a shorter horizon or an earlier cut"
        )
    return tuple(later)


def streaming(dataset: Dataset, horizon: int, cut: float | None = None) -> list[tuple[str, ...]]:
    """The targets at each cut of a streaming evaluation, ``horizon`` domains each.

    The first are those of ``future``; then the cut moves on by one domain, while so many are left.
    """
    first_window = future(dataset, cut, horizon)
    order = list(in_time_order(dataset))
    starts = range(order.index(first_window[0]), len(order) - horizon + 1)
    return [tuple(order[start : start + horizon]) for start in starts]


def _first_after(dataset: Dataset, cut: float | None) -> int:
    spans = in_time_order(dataset)
    if len(spans) < 2:
        raise UsageError(
            f"{dataset.name} has the single domain {next(iter(spans), None)!r}; the protocol temporal needs "
            "a past and a future"
        )
    if cut is None:
        return (len(spans) + 1) // 2
    for name, span in spans.items():
        if span.first < cut <= span.last:
            raise UsageError(
                f"protocol.cut={cut:g} lies within the domain {name!r} of {dataset.name}, {span.first:g} to "
                f"{span.last:g}; cut between two domains"
            )
    first = sum(span.last < cut for span in spans.values())
    if first in (0, len(spans)):
        raise UsageError(
            f"protocol.cut={cut:g} leaves {dataset.name} no {'future' if first else 'past'}; its domains "
            f"begin at {', '.join(f'{span.first:g}' for span in spans.values())}"
        )
    return first
