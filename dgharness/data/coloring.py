"""Digits coloured by a label that they only partly explain (ColoredMNIST; Arjovsky et al. 2019).

The label says whether the digit is below five, and is wrong with probability ``label_noise``. The colour
agrees with the label but for a flip whose probability differs between domains: within a training domain
it predicts the label better than the shape does, and in the last domain it lies.

Shapes: N digits, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.dataset import Dataset, Defaults, InMemory
from dgharness.data.digits import DIGITS, brightness, categorical
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams

COLORS = ("red", "green")  # channel 0, channel 1
Probability = Annotated[float, Field(ge=0, le=1)]


class ColoringOptions(Hparams):
    """How the labels and colours are drawn."""

    label_noise: Probability = 0.25
    """Probability that a label is flipped: no classifier by shape exceeds one minus this."""
    color_noise: tuple[Probability, ...] = (0.1, 0.2, 0.9)
    """For each domain, the probability that the colour disagrees with the label."""


def colored(
    name: str,
    digits_NHW: Tensor,
    labels_N: Tensor,
    generator: torch.Generator,
    options: ColoringOptions,
    defaults: Defaults,
    toy: bool = False,
) -> Dataset:
    """A coloured dataset of inputs [2, H, W], one domain for every entry of ``color_noise``.

    One permutation deals the uint8 digits out: domain i of K gets every K-th, from the i-th on. The
    channel of the other colour is zero. DomainBed's construction (``datasets.py``, ColoredMNIST).
    """
    domains = domain_names(options.color_noise)
    order_N = torch.randperm(len(digits_NHW), generator=generator)
    taken = [order_N[number :: len(domains)] for number in range(len(domains))]
    y, color = [], []
    for rows, color_noise in zip(taken, options.color_noise, strict=True):
        y.append((labels_N[rows] < 5) ^ _flips(options.label_noise, len(rows), generator))
        color.append(y[-1] ^ _flips(color_noise, len(rows), generator))
    order_N, color_N = torch.cat(taken), torch.cat(color)
    domain_N = torch.arange(len(domains)).repeat_interleave(torch.tensor([len(rows) for rows in taken]))
    manifest = pd.DataFrame(
        {
            "y": categorical(torch.cat(y), ("0", "1")),
            "domain": categorical(domain_N, domains),
            "color": categorical(color_N, COLORS),
            "digit": categorical(labels_N[order_N], DIGITS),
        }
    )
    return Dataset(
        name=name,
        manifest=manifest,
        reader=InMemory(_lit(digits_NHW[order_N], color_N.long())),
        task=classification(2),
        input_shape=(2, *digits_NHW.shape[1:]),
        defaults=defaults,
        groups=("y", "color"),
        prepare=brightness,
        toy=toy,
    )


def domain_names(color_noise: Sequence[float]) -> tuple[str, ...]:
    """How often the colour tells the truth (+) or lies (-), whichever is more often.

    >>> domain_names([0.1, 0.2, 0.9])
    ('+90%', '+80%', '-90%')
    """
    names = tuple(f"+{100 * (1 - p):g}%" if p <= 0.5 else f"-{100 * p:g}%" for p in color_noise)
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"data.color_noise={tuple(color_noise)} must name at least one domain, and none twice"
        )
    return names


def _flips(probability: float, n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) < probability


def _lit(digits_NHW: Tensor, color_N: Tensor) -> Tensor:
    x_N2HW = digits_NHW.new_zeros(len(digits_NHW), 2, *digits_NHW.shape[1:])
    x_N2HW[torch.arange(len(digits_NHW)), color_N] = digits_NHW
    return x_N2HW
