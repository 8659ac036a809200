"""MNIST, coloured in agreement with the label, with four dials of subpopulation shift.

The label says whether the digit is five or more, and is wrong with probability ``flip_prob``; the colour
says what the label says, and is wrong with ``spur_prob``. Then examples of one colour are left out until
``attr_prob`` of the rest are green, and of one class until ``label_prob`` are of class 1. Of MNIST's 60,000
digits for training, 30,000 are for training here, 10,000 for validation and 20,000 for testing. The draws are
SubpopBench's own and not the trial's, so that everyone has the same examples.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023

Shapes: N examples, M rows of the manifest, H x W pixels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dgharness.data.coloring import COLORS, Probability
from dgharness.data.dataset import Dataset, DatasetSpec, InMemory
from dgharness.data.mnist import FILES, MnistOptions, read_mnist
from dgharness.data.protocols import OFFICIAL
from dgharness.data.subpop.table import SubpopOptions, defaults, subpopulations, with_domain
from dgharness.data.tasks import classification
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError
from dgharness.hparams import Annotated

SEED = 666  # SubpopBench's, of every split
DIGITS = {"train": (0, 30_000), "val": (30_000, 40_000), "test": (40_000, 60_000)}
MEAN, STD = (0.1307, 0.1307, 0.0), (0.3081, 0.3081, 0.3081)

Share = Annotated[float, Field(gt=0, lt=1)]


class CMnistOptions(MnistOptions, SubpopOptions):
    """The dials, where the images come from, and what training may know."""

    flip_prob: Probability = 0.25
    """Probability that a label is wrong."""
    spur_prob: Probability = 0.2
    """Probability that the colour disagrees with the label."""
    attr_prob: Share = 0.5
    """Share of green, before the labels are balanced."""
    label_prob: Share = 0.5
    """Share of class 1."""
    size: Annotated[int, Field(ge=1)] = 224
    """Side in pixels to which every image is brought."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: CMnistOptions) -> Dataset:
    """Colour the digits; needs MNIST's files under the data root. Nothing depends on the trial seed."""
    images_NHW, digit_N = read_mnist("subpop:cmnist", data_root(root), options.download)
    parts = []
    for split, (first, last) in DIGITS.items():
        kept, y, color = drawn(digit_N[first:last].numpy(), options)
        parts.append(pd.DataFrame({"row": first + kept, "y": y, "color": color, "split": split}))
    table = pd.concat(parts, ignore_index=True)
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical.from_codes(table["y"], pd.Index(["0", "1"])),
            "color": pd.Categorical.from_codes(table["color"], pd.Index(COLORS)),
            "split": pd.Categorical(table["split"], OFFICIAL),
        }
    )
    known = options.attributes == "known"
    manifest = with_domain(manifest, "color", known)
    row_M, color_M = (torch.from_numpy(table[name].to_numpy(copy=True)) for name in ("row", "color"))
    return Dataset(
        name="subpop:cmnist",
        manifest=manifest,
        reader=InMemory(_lit(images_NHW[row_M], color_M)),
        task=classification(2),
        input_shape=(3, options.size, options.size),
        profile="large",
        defaults=defaults("resnet50", 5000, 250),
        prepare=partial(_prepare, options.size),
        **subpopulations(manifest, "color", known),
    )


cmnist = DatasetSpec(
    load, CMnistOptions, layout="\n".join(f"MNIST/raw/{name}" for name in FILES), doc=__doc__
)


def drawn(digit_N: np.ndarray, options: CMnistOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which digits of a split are kept and in which order, and their labels and colours (0 or 1)."""
    rng = np.random.default_rng(SEED)
    y_N = (digit_N >= 5) ^ (rng.random(len(digit_N)) < options.flip_prob)
    color_N = y_N ^ (rng.random(len(digit_N)) < options.spur_prob)
    kept = np.arange(len(digit_N))
    for name, value_N in (("attr_prob", color_N), ("label_prob", y_N)):
        kept = _thinned(name, kept, value_N[kept], getattr(options, name), rng)
    return kept, y_N[kept].astype(np.int64), color_N[kept].astype(np.int64)


def _thinned(
    name: str, kept: np.ndarray, value_N: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Without some rows of one value, so that ``share`` of the rest are 1; at one half all are kept."""
    if share == 0.5:
        return kept
    rare_N = ~value_N if share > 0.5 else value_N
    rare = min(share, 1 - share)
    size = int((~rare_N).sum() * rare / (1 - rare))
    if size > rare_N.sum():
        raise UsageError(
            f"data.{name}={share} cannot be reached by leaving examples out, as {value_N.mean():.3f} of them "
            f"are 1; choose one half, or a value further from it"
        )
    some = rng.choice(np.nonzero(rare_N)[0], size=size, replace=False)
    order = np.concatenate([np.nonzero(~rare_N)[0], some])
    rng.shuffle(order)
    return kept[order]


def _lit(images_NHW: Tensor, color_N: Tensor) -> Tensor:
    """[N, 3, H, W]: the digit in the channel of its colour."""
    x_N3HW = images_NHW.new_zeros(len(images_NHW), 3, *images_NHW.shape[1:])
    x_N3HW[torch.arange(len(images_NHW)), color_N] = images_NHW
    return x_N3HW


def _prepare(size: int, x_N3HW: Tensor) -> Tensor:
    """Values 0..255 to SubpopBench's normalisation, at the size that the model takes."""
    x = F.interpolate(x_N3HW.float() / 255, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(value, device=x.device)[:, None, None] for value in (MEAN, STD))
    return (x - mean) / std
