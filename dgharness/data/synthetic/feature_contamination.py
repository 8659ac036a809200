"""Feature contamination: a network picks up background that says nothing about the label.

Paper: Zhang, Zhao, Chen, Jiang, Chen, Feature Contamination: Neural Networks Learn Uncorrelated Features and
Fail to Generalize, ICML 2024, arXiv 2406.03345.
Agrees with: trzhang0116/feature-contamination (``toy.py``), drawn from streams of its own: the test examples
are the training examples with another background. The validation part, fresh draws, is an addition.

The core decides the label; the background is independent of it, positive in training and negative in the
test. Both are embedded in a larger space by orthonormal directions.

Shapes: N examples, F inputs, W = core_dim + background_dim coordinates.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.seeds import generator

POSITIVE, NEGATIVE = "positive background", "negative background"


def contaminated(
    n: int = 1000,
    core_dim: int = 32,
    background_dim: int = 32,
    input_dim: int = 256,
    nonlinear: bool = True,
    seed: int = 0,
) -> Generated:
    """Class 1 and class 0 are the unit sphere and the sphere of radius 2, or U[0, 1] and U[-1, 0] if linear.

    ``mixing_FF`` is the embedding [W, F], the core's rows first: weights [H, F] times its transpose are the
    weights on core and background.
    """
    width = core_dim + background_dim
    if input_dim < width:
        raise UsageError(
            f"data.input_dim={input_dim} cannot hold {core_dim} core and {background_dim} background "
            f"coordinates; it must be at least {width}"
        )
    gaussian_FW = torch.randn(input_dim, width, generator=generator(seed, "generation/embedding"))
    embedding_WF = torch.linalg.qr(gaussian_FW)[0].T.contiguous()
    y_N = (torch.arange(n) < n // 2).long()

    def core(split: str) -> Tensor:
        stream = generator(seed, f"generation/core/{split}")
        if nonlinear:
            x_NC = torch.randn(n, core_dim, generator=stream)
            return (2 - y_N)[:, None] * x_NC / x_NC.norm(dim=1, keepdim=True)
        return (2 * y_N - 1)[:, None] * torch.rand(n, core_dim, generator=stream)

    def examples(split: str, core_NC: Tensor, sign: int) -> Examples:
        stream = generator(seed, f"generation/background/{split}")
        background_NB = sign * torch.rand(n, background_dim, generator=stream)
        return Examples(torch.cat([core_NC, background_NB], 1) @ embedding_WF, y_N)

    trained_NC = core("train")
    splits = {
        "train": {POSITIVE: examples("train", trained_NC, 1)},
        "val": {POSITIVE: examples("val", core("val"), 1)},
        "test": {NEGATIVE: examples("test", trained_NC, -1)},
    }
    return Generated(splits, embedding_WF)


class FeatureContaminationOptions(Hparams):
    """Sizes, and how the core decides the label."""

    n: PositiveInt = 1000
    """Examples of each split, half of each class."""
    core_dim: PositiveInt = 32
    """Coordinates that decide the label."""
    background_dim: PositiveInt = 32
    """Coordinates that say nothing about it."""
    input_dim: PositiveInt = 256
    """Inputs, in which both are embedded."""
    nonlinear: bool = True
    """Classes are two spheres, which no hyperplane divides; otherwise two orthants."""


def load(
    argument: str | None, root: Path | None, trial_seed: int, options: FeatureContaminationOptions
) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return dataset_of(
        "synthetic:feature-contamination",
        contaminated(**options.model_dump(), seed=trial_seed),
        classification(2),
        Defaults(model="mlp", steps=2000, eval_every=200, protocol="official"),
        groups=("y",),
        levels={"y": ("0", "1")},
    )


feature_contamination = DatasetSpec(load, FeatureContaminationOptions, doc=__doc__)
