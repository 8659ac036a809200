"""``colored-mnist``: MNIST, colored (DomainBed's construction, drawn from the trial's own stream)."""

from __future__ import annotations

from pathlib import Path

from dgharness.data.coloring import ColoringOptions, colored
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.mnist import MnistOptions, read_mnist
from dgharness.seeds import generator


class ColoredMnistOptions(ColoringOptions, MnistOptions):
    """Where the images come from, and what is made of them."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: ColoredMnistOptions) -> Dataset:
    """Generate the dataset from the trial's own stream; needs MNIST's files under the data root."""
    return colored(
        "colored-mnist",
        *read_mnist("colored-mnist", root, options.download),
        generator(trial_seed, "generation"),
        options,
        Defaults(model="mnist-cnn", steps=5000, eval_every=100),
    )


colored_mnist = DatasetSpec(load, ColoredMnistOptions, doc=__doc__)
