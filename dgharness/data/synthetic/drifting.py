"""A boundary that turns slowly: two classes, a continuous time, and domains that are buckets of it.

Paper: Hulten, Spencer, Domingos, Mining Time-Changing Data Streams, KDD 2001 (the rotating hyperplane).

Here with Gaussian inputs, a turn in one plane at constant speed, and an even time. Inputs never change:
x ~ N(0, I). At time t the label is the sign of x · w(t), where w(t) is the first axis turned by ``speed`` · t
degrees towards the second, and is wrong with probability ``noise``. The rule of time s is right at time t
with probability 1 - |θ|/π before noise, where θ is the angle between w(s) and w(t), in radians and at most
π. At speed 0 nothing shifts.

Shapes: N examples, F inputs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from dgharness.data.coloring import Probability
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.hparams import Hparams
from dgharness.seeds import generator


def turning(
    buckets: int = 10, speed: float = 90.0, noise: float = 0.05, dim: int = 10, n: int = 1000, seed: int = 0
) -> Generated:
    """Equal buckets of time from 0 to 1 with ``n`` examples each, evenly drawn. Attribute ``time``."""
    domains = {}
    for bucket in range(buckets):
        stream = generator(seed, "generation/train", bucket)
        time_N = (bucket + torch.rand(n, generator=stream, dtype=torch.float64)) / buckets
        x_NF = torch.randn(n, dim, generator=stream)
        wrong_N = torch.rand(n, generator=stream) < noise
        y_N = (x_NF[:, :2] * direction(time_N, speed)).sum(1) > 0
        examples = Examples(x_NF, (y_N ^ wrong_N).long(), {"time": time_N})
        domains[f"{bucket / buckets:.4g} to {(bucket + 1) / buckets:.4g}"] = examples
    return Generated({"train": domains})


def direction(time_N: Tensor, speed: float) -> Tensor:
    """w(t) in the plane of the first two inputs, [N, 2].

    >>> direction(torch.tensor([0.0, 1.0]), 90).round(decimals=4).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    angle_N = math.radians(speed) * time_N
    return torch.stack([angle_N.cos(), angle_N.sin()], 1)


class DriftingOptions(Hparams):
    """How fast the boundary turns, and sizes."""

    buckets: Annotated[int, Field(ge=2)] = 10
    """Domains, each an equal part of the time."""
    speed: NonNegativeFloat = 90.0
    """The dial: degrees by which the boundary turns from time 0 to time 1."""
    noise: Probability = 0.05
    """Probability that a label is wrong."""
    dim: Annotated[int, Field(ge=2)] = 10
    """Inputs; the boundary turns in the plane of the first two, the others say nothing."""
    n: PositiveInt = 1000
    """Examples of each domain."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: DriftingOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return dataset_of(
        "synthetic:drifting",
        turning(**options.model_dump(), seed=trial_seed),
        classification(2),
        Defaults(model="mlp", steps=2000, eval_every=200, protocol="temporal"),
        groups=("y",),
        levels={"y": ("0", "1")},
    )


drifting = DatasetSpec(load, DriftingOptions, doc=__doc__)
