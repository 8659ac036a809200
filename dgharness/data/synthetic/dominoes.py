"""Dominoes: an image of two halves, of which the upper is easy to read and the lower decides.

Paper: Shah, Tamuly, Raghunathan, Jain, Netrapalli, The Pitfalls of Simplicity Bias in Neural Networks,
NeurIPS 2020, arXiv 2006.07710 (MNIST-CIFAR).

The label is the class of the lower image. The upper image, a 0 or a 1, goes with the label by a correlation
that differs between domains: at 1 it tells the label as well as the lower image does, at 0 it says nothing,
below 0 it lies. In the paper, trained at 1 and tested at 0, networks read the upper image alone.

Lower images are the bundled digits 7 and 9, which need no files, dresses and coats of Fashion-MNIST, or cars
and trucks of CIFAR-10; upper ones the bundled digits or MNIST.

Shapes: N dominoes, [C, H, W] the size of a half, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import brightness, bundled_digits
from dgharness.data.mnist import MnistOptions, read_mnist
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.seeds import generator

Half = tuple[Tensor, Tensor]  # images [N, C, H, W] of two classes, and their labels 0 and 1
NAME = "synthetic:dominoes"
TOPS = ("0", "1")
Lower = Literal["digits", "fashion-mnist", "cifar-10"]
CLASSES: dict[Lower, dict[str, int]] = {  # the two classes, and their numbers in the source
    "digits": {"7": 7, "9": 9},
    "fashion-mnist": {"dress": 3, "coat": 4},
    "cifar-10": {"car": 1, "truck": 9},
}
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_IMAGES, CIFAR_SHAPE = 10_000, (3, 32, 32)  # of each file


def tiled(
    upper: Half,
    lower: Half,
    correlations: Sequence[float] = (1.0, 0.8, 0.0),
    seed: int = 0,
) -> Generated:
    """A domain of dominoes [N, C, 2 H, W] for every correlation.

    Each lower image is used once: one permutation deals them out, and domain i of K gets every K-th, from the
    i-th on. Upper images are dealt out likewise and drawn from a domain's own, with replacement. Exactly
    (1 + correlation) / 2 of them, rounded, have the label's class: with balanced classes that is their
    correlation with the label. Attribute ``top``: the class of the upper image.
    """
    dealt = [
        torch.randperm(len(labels), generator=generator(seed, f"generation/{half}"))
        for half, (_, labels) in (("upper", upper), ("lower", lower))
    ]
    domains = {}
    for number, correlation in enumerate(correlations):
        stream = generator(seed, "generation/train", number)
        pool, rows = (order[number :: len(correlations)] for order in dealt)
        y_N = lower[1][rows]
        agrees_N = torch.randperm(len(rows), generator=stream) < round((1 + correlation) / 2 * len(rows))
        top_N = torch.where(agrees_N, y_N, 1 - y_N)
        pools = [pool[upper[1][pool] == label] for label in (0, 1)]
        if not all(len(own) for own in pools):
            raise UsageError(
                f"data.correlations asks for {len(correlations)} domains, and its upper images do not "
                "suffice for so many; name fewer"
            )
        draws = [own[torch.randint(len(own), (len(rows),), generator=stream)] for own in pools]
        drawn_N = torch.where(top_N == 1, draws[1], draws[0])
        x = torch.cat([upper[0][drawn_N], lower[0][rows]], dim=2)
        domains[f"correlation {correlation:g}"] = Examples(x, y_N, {"top": top_N})
    return Generated({"train": domains})


def halves(lower: Lower, root: Path | None, download: bool = False) -> tuple[Half, Half]:
    """The upper and the lower images, of one size; a UsageError names the files that are missing."""
    classes = tuple(CLASSES[lower].values())
    if lower == "digits":
        images_NHW, labels_N = bundled_digits()
        x = images_NHW[:, None]
        return of_classes(x, labels_N, (0, 1)), of_classes(x, labels_N, classes)
    digits_NHW, labels_N = read_mnist(NAME, root, download)
    tops, tops_N = of_classes(digits_NHW[:, None], labels_N, (0, 1))
    if lower == "fashion-mnist":
        clothes_NHW, labels_N = read_mnist(NAME, root, download, "FashionMNIST")
        return (tops, tops_N), of_classes(clothes_NHW[:, None], labels_N, classes)
    tops = F.pad(tops, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    return (tops, tops_N), of_classes(*read_cifar10(NAME, root), classes)


def of_classes(images: Tensor, labels_N: Tensor, classes: Sequence[int]) -> Half:
    """The images of two classes, and their labels 0 and 1."""
    first, second = (labels_N == number for number in classes)
    return images[first | second], second[first | second].long()


def read_cifar10(name: str, root: Path | None) -> tuple[Tensor, Tensor]:
    """Images [60000, 3, 32, 32] as uint8 and classes [60000], from the binary version of CIFAR-10."""
    if root is None:
        raise UsageError(f"{name} needs --data-root DIR with CIFAR-10 in DIR/{CIFAR_FOLDER}")
    folder = root / CIFAR_FOLDER
    if missing := [file for file in CIFAR_FILES if not (folder / file).is_file()]:
        raise UsageError(
            f"{name} misses {', '.join(missing)} in {folder}; unpack the binary version of CIFAR-10 there"
        )
    per_image = 1 + int(np.prod(CIFAR_SHAPE))  # the class, then the image
    parts = []
    for file in CIFAR_FILES:
        content = np.fromfile(folder / file, dtype=np.uint8)
        if content.size != CIFAR_IMAGES * per_image:
            raise UsageError(
                f"{folder / file} is not CIFAR-10's file of {CIFAR_IMAGES * per_image} bytes; fetch it again"
            )
        parts.append(content.reshape(CIFAR_IMAGES, per_image))
    table = np.concatenate(parts)
    return torch.from_numpy(table[:, 1:].reshape(-1, *CIFAR_SHAPE)), torch.from_numpy(table[:, 0]).long()


class DominoesOptions(MnistOptions):
    """What the dominoes are made of, and how the halves go together."""

    lower: Lower = "digits"
    """Lower images: digits (bundled), or fashion-mnist or cifar-10, which need files in the data root."""
    correlations: Annotated[tuple[Annotated[float, Field(ge=-1, le=1)], ...], Field(min_length=1)] = (
        1.0,
        0.8,
        0.0,
    )
    """The dial: for each domain, the correlation of the upper image's class with the label."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: DominoesOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    if len(set(options.correlations)) < len(options.correlations):
        raise UsageError(f"data.correlations={options.correlations} must not name a value twice")
    upper, lower = halves(options.lower, root, options.download)
    return dataset_of(
        NAME,
        tiled(upper, lower, options.correlations, trial_seed),
        classification(2),
        Defaults(model="mlp" if options.lower == "digits" else "mnist-cnn", steps=2000, eval_every=200),
        groups=("y", "top"),
        levels={"y": tuple(CLASSES[options.lower]), "top": TOPS},
        prepare=brightness,
    )


dominoes = DatasetSpec(load, DominoesOptions, doc=__doc__)
