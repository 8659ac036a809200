"""Slabs: coordinates that all tell the label, and differ in how simple a function of them it takes.

Paper: Shah, Tamuly, Raghunathan, Jain, Netrapalli, The Pitfalls of Simplicity Bias in Neural Networks,
NeurIPS 2020, arXiv 2006.07710; with domains: Mahajan, Tople, Sharma, Domain Generalization using Causal
Matching, ICML 2021, arXiv 2006.07500.
Agrees with: harshays/simplicitybiaspitfalls (``scripts/gendata.py``) and microsoft/robustdg
(``utils/slab_data.py``), drawn from streams of its own; a slab coordinate that is wrong is drawn as for the
other class, where the scripts give the two slabs of one class equal shares.

A linear coordinate has the label's sign and leaves a margin. A coordinate of k slabs alternates between
the classes: k - 1 thresholds are needed to read it. Domains differ in how many examples have a linear
coordinate that says nothing, so that only the slabs predict equally well in all of them.

Shapes: N examples, F coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from dgharness.data.coloring import Probability
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of, orthogonal
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.seeds import generator

MARGIN = 0.1  # between slabs half of it on either side; coordinates lie in [-1, 1]
# slabs -> for each class, the share of the ring that lies so many slabs from the centre
RINGS = {
    3: ({0: 1.0}, {1: 1.0}),
    5: ({0: 3 / 4, 2: 1 / 4}, {1: 1.0}),
    7: ({0: 1 / 2, 2: 1 / 2}, {1: 7 / 8, 3: 1 / 8}),
}


def slabs_of(
    linear: int = 1,
    slabs: Sequence[int] = (7,),
    corruption: Sequence[float] = (0.0, 0.1, 0.9),
    corrupt: Literal["margin", "flip"] = "margin",
    slab_noise: float = 0.0,
    rotate: bool = False,
    n: int = 12_500,
    seed: int = 0,
) -> Generated:
    """Linear coordinates, then one of so many slabs for every entry of ``slabs``; a domain per corruption.

    In a domain the first linear coordinate of exactly that part of the examples is drawn anew within the
    margin, or has its sign flipped. Attribute ``slab``: the slab of the first slab coordinate, 0 leftmost.
    """
    width = linear + len(slabs)
    mixing_FF = orthogonal(width, generator(seed, "generation/rotation")) if rotate else torch.eye(width)
    domains = {}
    for number, part in enumerate(corruption):
        stream = generator(seed, "generation/train", number)
        y_N = torch.randint(2, (n,), generator=stream)
        lines = [_line(y_N, stream) for _ in range(linear)]
        if linear:
            wrong_N = _exactly(part, n, stream)
            inside_N = MARGIN * (2 * torch.rand(n, generator=stream) - 1)
            lines[0] = torch.where(wrong_N, inside_N if corrupt == "margin" else -lines[0], lines[0])
        rings = [_slab(k, y_N ^ _exactly(slab_noise, n, stream).long(), stream) for k in slabs]
        attributes = {"slab": slab_number(rings[0], slabs[0])} if slabs else {}
        x_NF = torch.stack([*lines, *rings], 1) @ mixing_FF
        domains[f"corrupt {100 * part:g}%"] = Examples(x_NF, y_N, attributes)
    return Generated({"train": domains}, mixing_FF)


def slab_width(k: int) -> float:
    """Width of each of k slabs in [-1, 1] with a gap of two margins between them.

    >>> [round(slab_width(k), 4) for k in (3, 5, 7)]
    [0.5333, 0.24, 0.1143]
    """
    return (2 - 2 * MARGIN * (k - 1)) / k


def slab_number(x_N: Tensor, k: int) -> Tensor:
    """Which of the k slabs, from the left, a coordinate lies in.

    >>> slab_number(torch.tensor([-1.0, 0.0, 0.9]), 5).tolist()
    [0, 2, 4]
    """
    return ((x_N + 1 + MARGIN) / (slab_width(k) + 2 * MARGIN)).long().clamp(0, k - 1)


def _line(y_N: Tensor, stream: torch.Generator) -> Tensor:
    return (2 * y_N - 1) * (MARGIN + (1 - MARGIN) * torch.rand(len(y_N), generator=stream))


def _slab(k: int, y_N: Tensor, stream: torch.Generator) -> Tensor:
    """One coordinate of k slabs: a ring by the class's shares, a side, and a place within the slab."""
    share_2R = torch.tensor([[shares.get(ring, 0.0) for ring in range(k // 2 + 1)] for shares in RINGS[k]])
    ring_N = torch.multinomial(share_2R[y_N], 1, generator=stream)[:, 0]
    side_N = 2 * torch.randint(2, (len(y_N),), generator=stream) - 1
    within_N = slab_width(k) * (torch.rand(len(y_N), generator=stream) - 0.5)
    return side_N * (ring_N * (slab_width(k) + 2 * MARGIN) + within_N)


def _exactly(part: float, n: int, stream: torch.Generator) -> Tensor:
    """True for exactly that part of n examples."""
    return torch.randperm(n, generator=stream) < round(part * n)


class SlabOptions(Hparams):
    """The coordinates, and what the domains do to the first."""

    linear: NonNegativeInt = 1
    """Linear coordinates."""
    slabs: tuple[Literal[3, 5, 7], ...] = (7,)
    """Slabs of every further coordinate."""
    corruption: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.0, 0.1, 0.9)
    """For each domain, the part of the examples whose first linear coordinate says nothing."""
    corrupt: Literal["margin", "flip"] = "margin"
    """What becomes of it: drawn anew within the margin, or its sign flipped."""
    slab_noise: Probability = 0.0
    """Part of the examples whose slab is one of the other class, coordinate by coordinate."""
    rotate: bool = False
    """Turn all coordinates by an orthogonal matrix."""
    n: PositiveInt = 12_500
    """Examples of each domain; a fifth of them is set apart."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: SlabOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    if not options.linear and not options.slabs:
        raise UsageError("data.linear=0 and data.slabs=[] leave no coordinate; ask for one at least")
    if len(set(options.corruption)) < len(options.corruption):
        raise UsageError(f"data.corruption={options.corruption} must not name a value twice")
    return dataset_of(
        "synthetic:slabs",
        slabs_of(**options.model_dump(), seed=trial_seed),
        classification(2),
        Defaults(model="mlp", steps=2000, eval_every=200),
        groups=("y",),
        levels={"y": ("0", "1"), "slab": [str(slab) for slab in range(max(options.slabs, default=0))]},
    )


slabs = DatasetSpec(load, SlabOptions, doc=__doc__)
