"""``rotated-mnist``: MNIST, rotated (DomainBed's construction, drawn from the trial's own stream)."""

from __future__ import annotations

from pathlib import Path

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.mnist import MnistOptions, read_mnist
from dgharness.data.rotating import RotatingOptions, rotated
from dgharness.seeds import generator


class RotatedMnistOptions(RotatingOptions, MnistOptions):
    """Where the images come from, and what is made of them."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: RotatedMnistOptions) -> Dataset:
    """Generate the dataset from the trial's own stream; needs MNIST's files under the data root."""
    return rotated(
        "rotated-mnist",
        *read_mnist("rotated-mnist", root, options.download),
        generator(trial_seed, "generation"),
        options,
        Defaults(model="mnist-cnn", steps=5000, eval_every=100),
    )


rotated_mnist = DatasetSpec(load, RotatedMnistOptions, doc=__doc__)
