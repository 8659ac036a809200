"""``irm-colored-mnist``: Colored MNIST as in the IRM paper, with its own environments and test images.

Paper: Arjovsky, Bottou, Gulrajani, Lopez-Paz, Invariant Risk Minimization, 2019, section 5.2,
arXiv 1907.02893.
Agrees with: facebookresearch/InvariantRiskMinimization (``code/colored_mnist/main.py``), drawn from streams
of its own. The validation part is an addition: the paper has none and reports training accuracy. It is made
of MNIST's own test images, which the paper does not use, coloured as the training environments are.

Of MNIST's training images the first 50,000 are shuffled and dealt to the two training environments in turn,
and the last 10,000 are the test. Images are 14 x 14: every second pixel.

Shapes: N digits, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.coloring import COLORS, ColoringOptions, Probability, domain_names
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import DIGITS, brightness
from dgharness.data.mnist import MnistOptions, read_mnist
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.seeds import generator

TRAINED, TESTED, UNUSED = slice(50_000), slice(50_000, 60_000), slice(60_000, 70_000)


def irm_environments(
    digits_NHW: Tensor,
    labels_N: Tensor,
    color_noise: Sequence[float] = (0.2, 0.1, 0.9),
    label_noise: float = 0.25,
    grayscale: bool = False,
    seed: int = 0,
) -> Generated:
    """Images [N, 2, 14, 14] as uint8 (one channel if ``grayscale``), and labels: is the digit below five?

    ``color_noise`` is the probability that the colour disagrees with the (noisy) label, the last one for the
    test. Attributes: ``color`` (the channel that is lit) and ``digit``. ``digits_NHW`` are MNIST's 70,000.
    """
    names = domain_names(color_noise)
    envs = len(names) - 1
    order_N = torch.randperm(TRAINED.stop, generator=generator(seed, "generation/order"))
    unused_N = torch.arange(70_000)[UNUSED]
    rows = {
        "train": {name: order_N[number::envs] for number, name in enumerate(names[:-1])},
        "val": {name: unused_N[number::envs] for number, name in enumerate(names[:-1])},
        "test": {names[-1]: torch.arange(70_000)[TESTED]},
    }

    def environment(split: str, name: str, rows_N: Tensor) -> Examples:
        stream = generator(seed, f"generation/{split}/{name}")
        y_N = (labels_N[rows_N] < 5) ^ (torch.rand(len(rows_N), generator=stream) < label_noise)
        wrong_N = torch.rand(len(rows_N), generator=stream) < color_noise[names.index(name)]
        color_N = y_N ^ wrong_N
        lit_NC = torch.ones(len(rows_N), 1) if grayscale else torch.stack([~color_N, color_N], 1)
        small_NHW = digits_NHW[rows_N][:, ::2, ::2]
        x = small_NHW[:, None] * lit_NC[:, :, None, None].to(torch.uint8)
        return Examples(x, y_N.long(), {"color": color_N.long(), "digit": labels_N[rows_N]})

    return Generated(
        {
            split: {name: environment(split, name, rows_N) for name, rows_N in by_name.items()}
            for split, by_name in rows.items()
        }
    )


class IrmColoredMnistOptions(ColoringOptions, MnistOptions):
    """Where the images come from, and what is made of them."""

    color_noise: Annotated[tuple[Probability, ...], Field(min_length=2)] = (0.2, 0.1, 0.9)
    """For each environment, the probability that the colour disagrees with the label; the last is tested."""
    grayscale: bool = False
    """One channel without colour, for the invariant predictor that the paper compares with."""


def load(
    argument: str | None, root: Path | None, trial_seed: int, options: IrmColoredMnistOptions
) -> Dataset:
    """Generate the dataset from the trial's own stream; needs MNIST's files under the data root."""
    return dataset_of(
        "irm-colored-mnist",
        irm_environments(
            *read_mnist("irm-colored-mnist", root, options.download),
            **options.model_dump(exclude={"download"}),
            seed=trial_seed,
        ),
        classification(2),
        Defaults(model="mlp", steps=501, eval_every=50, protocol="official"),
        groups=("y", "color"),
        levels={"y": ("0", "1"), "color": COLORS, "digit": DIGITS},
        prepare=brightness,
        toy=False,
    )


irm_colored_mnist = DatasetSpec(load, IrmColoredMnistOptions, doc=__doc__)
