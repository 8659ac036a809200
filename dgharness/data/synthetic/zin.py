"""ZIN's temporal toy: how far a spurious input can be trusted changes with time.

Paper: Lin, Zhu, Tan, Cui, ZIN: When and How to Learn Invariance Without Environment Partition?, NeurIPS 2022,
arXiv 2203.05818.
Agrees with: linyongver/ZIN_official (``data.py``, dataset ``logit_z``), drawn from streams of its own; the
validation part, a quarter of the training part's size, is an addition.

A fair label y sets the sign of the invariant inputs, wrongly with probability ``noise``, and that of the
spurious inputs, which is right with the environment's probability. Environments follow one another in
time, and the attribute ``time`` is all that a method without environment labels has to find them by.

Shapes: N examples, F = d_inv + d_spu inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from dgharness.data.coloring import Probability, domain_names
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.hparams import Hparams
from dgharness.seeds import generator


def temporal(
    agree_train: Sequence[float] = (0.999, 0.9),
    agree_test: Sequence[float] = (0.999, 0.8, 0.2, 0.001),
    noise: float = 0.1,
    d_inv: int = 5,
    d_spu: int = 5,
    n: int = 5000,
    seed: int = 0,
) -> Generated:
    """Examples in order of time: ``n`` for training and for the test, shared among their environments.

    Attributes: ``time`` (0 to 1 within the split) and ``spurious`` (0 or 1: the sign of those inputs).
    """
    sizes = {"train": (agree_train, n), "val": (agree_train, n // 4), "test": (agree_test, n)}
    splits: dict[str, dict[str, Examples]] = {}
    for split, (agreements, size) in sizes.items():
        each = size // len(agreements)
        names = domain_names([1 - agree for agree in agreements])
        splits[split] = {}
        for number, (name, agree) in enumerate(zip(names, agreements, strict=True)):
            stream = generator(seed, f"generation/{split}", number)
            y_N, inv_N, spu_N = torch.rand(3, each, generator=stream)
            y_N = y_N < 0.5
            inv_N, spu_N = y_N ^ (inv_N < noise), y_N ^ (spu_N >= agree)
            sign_NF = torch.cat([inv_N[:, None].expand(-1, d_inv), spu_N[:, None].expand(-1, d_spu)], 1)
            x_NF = torch.randn(each, d_inv + d_spu, generator=stream) + 2.0 * sign_NF - 1.0
            time_N = torch.arange(number * each, (number + 1) * each) / max(each * len(agreements) - 1, 1)
            splits[split][name] = Examples(x_NF, y_N.long(), {"time": time_N, "spurious": spu_N.long()})
    return Generated(splits, torch.eye(d_inv + d_spu))


Agreements = Annotated[tuple[Probability, ...], Field(min_length=1)]


class ZinOptions(Hparams):
    """How the spurious inputs agree with the label, and sizes."""

    agree_train: Agreements = (0.999, 0.9)
    """Probability that the spurious inputs have the label's sign, for each training environment in time."""
    agree_test: Agreements = (0.999, 0.8, 0.2, 0.001)
    """The same for the test environments."""
    noise: Probability = 0.1
    """Probability that the invariant inputs have the wrong sign."""
    d_inv: PositiveInt = 5
    """Invariant inputs."""
    d_spu: NonNegativeInt = 5
    """Spurious inputs."""
    n: Annotated[int, Field(ge=40)] = 5000
    """Examples for training, and as many for the test, shared among the environments."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: ZinOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return dataset_of(
        "synthetic:zin",
        temporal(**options.model_dump(), seed=trial_seed),
        classification(2),
        Defaults(model="linear", steps=10_000, eval_every=500, protocol="official"),
        groups=("y", "spurious"),
        levels={"y": ("0", "1"), "spurious": ("0", "1")},
    )


zin = DatasetSpec(load, ZinOptions, doc=__doc__)
