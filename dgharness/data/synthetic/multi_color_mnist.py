"""Digits in a ring of 32 coloured patches, each of which goes with the class on its own account.

Paper: Lin, Tan, Hao, Wong, Dong, Zhang, Yang, Zhang, Spurious Feature Diversification Improves
Out-of-distribution Generalization, ICLR 2024, arXiv 2309.17230 (MultiColorMNIST), from its description.

Every class has a colour. A patch bears the colour of the image's class unless it is replaced, independently
of all other patches, by the colour of a class drawn at random. The paper replaces none in training and 70 to
90 in a hundred in the test; a second training domain, and patches that go with the class less closely than
others (``weakest``), are additions. ``patches`` blanks all but some: two models that see half of them each
learn different spurious features.

Shapes: N images, H x H pixels of a digit, P = 32 patches, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.coloring import Probability
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import DIGITS, brightness, bundled_digits
from dgharness.data.mnist import MnistOptions, read_mnist
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.seeds import generator

PATCHES = 32
CELLS = PATCHES // 4 + 1  # along a side of the image; those on its border are the patches
PALETTE = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
)  # fmt: skip


def patched(
    digits_NHH: Tensor,
    labels_N: Tensor,
    replaced: Sequence[float] = (0.0, 0.1, 0.8),
    weakest: float = 1.0,
    patches: tuple[int, int] = (0, PATCHES),
    seed: int = 0,
) -> Generated:
    """A domain of uint8 images [N, 3, S, S] for every probability ``replaced`` that a patch lost its colour.

    Patch p keeps the class's colour with (1 - replaced) times a strength that falls evenly from 1, for the
    first patch, to ``weakest``, for the last; a colour drawn in its place is the class's one time in ten.
    Patches go clockwise from the upper left corner; those outside ``patches``, as in Python's ranges, are
    black. One permutation deals the digits out: domain i of K gets every K-th, from the i-th on. Attribute
    ``agreement``: the share of the visible patches that have the class's colour.
    """
    order_N = torch.randperm(len(digits_NHH), generator=generator(seed, "generation/order"))
    strength_P = torch.linspace(1.0, weakest, PATCHES)
    domains = {}
    for number, probability in enumerate(replaced):
        rows = order_N[number :: len(replaced)]
        stream = generator(seed, "generation/train", number)
        y_N1 = labels_N[rows][:, None]
        kept_NP = torch.rand(len(rows), PATCHES, generator=stream) < (1 - probability) * strength_P
        drawn_NP = torch.randint(len(PALETTE), (len(rows), PATCHES), generator=stream)
        color_NP = torch.where(kept_NP, y_N1, drawn_NP)
        agreement_N = (color_NP == y_N1)[:, slice(*patches)].float().mean(1)
        domains[f"replaced {100 * probability:g}%"] = Examples(
            framed(digits_NHH[rows], color_NP, patches), y_N1[:, 0], {"agreement": agreement_N}
        )
    return Generated({"train": domains})


def framed(digits_NHH: Tensor, color_NP: Tensor, patches: tuple[int, int] = (0, PATCHES)) -> Tensor:
    """White digits in the middle of a ring of patches, as uint8 [N, 3, S, S]; S is 36 for H = 28."""
    n, height = digits_NHH.shape[:2]
    cell = -(-height // (CELLS - 2))
    cells_N3CC = digits_NHH.new_zeros(n, 3, CELLS, CELLS)
    row_P, column_P = ring()
    shown = slice(*patches)
    cells_N3CC[:, :, row_P[shown], column_P[shown]] = torch.tensor(PALETTE, dtype=torch.uint8)[
        color_NP[:, shown]
    ].transpose(1, 2)
    image_N3SS = cells_N3CC.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    first = (CELLS * cell - height) // 2
    image_N3SS[:, :, first : first + height, first : first + height] = digits_NHH[:, None]
    return image_N3SS


def ring() -> tuple[Tensor, Tensor]:
    """Row and column of each patch in the grid of cells, clockwise from the upper left corner.

    >>> row, column = ring()
    >>> [(int(row[p]), int(column[p])) for p in (0, 8, 16, 24, 31)]
    [(0, 0), (0, 8), (8, 8), (8, 0), (1, 0)]
    """
    last = CELLS - 1
    up, zero = torch.arange(last), torch.zeros(last, dtype=torch.long)
    row_P = torch.cat([zero, up, zero + last, last - up])
    return row_P, row_P.roll(-last)


class MultiColorOptions(MnistOptions):
    """The digits, and how their patches are coloured."""

    digits: Literal["bundled", "mnist"] = "bundled"
    """scikit-learn's 1,797 digits of 8 x 8, or MNIST from the data root."""
    replaced: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.0, 0.1, 0.8)
    """The dial: for each domain, the probability that a patch has the colour of a class drawn at random."""
    weakest: Probability = 1.0
    """Strength of the last patch beside that of the first."""
    patches: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(le=PATCHES)]] = (0, PATCHES)
    """First visible patch, and the first one after the visible ones."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: MultiColorOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    if len(set(options.replaced)) < len(options.replaced):
        raise UsageError(f"data.replaced={options.replaced} must not name a value twice")
    if options.patches[0] >= options.patches[1]:
        raise UsageError(
            f"data.patches={options.patches} shows no patch; the first number must be the smaller"
        )
    name = "synthetic:multi-color-mnist"
    return dataset_of(
        name,
        patched(
            *(bundled_digits() if options.digits == "bundled" else read_mnist(name, root, options.download)),
            options.replaced,
            options.weakest,
            options.patches,
            trial_seed,
        ),
        classification(10),
        Defaults(model="mlp" if options.digits == "bundled" else "mnist-cnn", steps=2000, eval_every=200),
        groups=("y",),
        levels={"y": DIGITS},
        prepare=brightness,
    )


multi_color_mnist = DatasetSpec(load, MultiColorOptions, doc=__doc__)
