"""A linear chain of causes and effects in environments of different noise.

Paper: Arjovsky, Bottou, Gulrajani, Lopez-Paz, Invariant Risk Minimization, 2019, section 5.1,
arXiv 1907.02893.
Agrees with: facebookresearch/InvariantRiskMinimization (``code/experiment_synthetic/sem.py``), drawn from
streams of its own.

An environment is the scale σ of noise. The causes x move with it; the target y = Σ ỹ is their sum with
noise; the effects z follow ỹ. Where σ differs, the regression on (x, z) differs, and only the coefficients
(1, 0) are the same everywhere. The paper's script fits IRM on all environments but the last, which
chooses the penalty's weight, and least squares on all.

Shapes: N examples, I causes (half of the inputs), F = 2 I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of, orthogonal
from dgharness.data.tasks import regression
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.seeds import generator


def chain(
    n: int = 1000,
    sigmas: Sequence[float] = (0.2, 2.0, 5.0),
    dim: int = 10,
    hidden: bool = False,
    hetero: bool = True,
    scramble: bool = False,
    seed: int = 0,
) -> Generated:
    """Examples of the split ``train``, and the coefficients of the causes.

    h = σ ε, x = h W_hx + σ ε', ỹ = x + h W_hy + ε'' and z = ỹ + h W_hz + ε''', where σ scales the noise of ỹ
    (``hetero``) or that of z. ``hidden`` draws the W_h, so that h confounds; otherwise W_hx = I and the
    others are 0.
    """
    half = dim // 2
    stream = generator(seed, "generation/weights")
    if hidden:
        w_hx, w_hy, w_hz = torch.randn(3, half, half, generator=stream) / dim
    else:
        w_hx, w_hy, w_hz = torch.eye(half), torch.zeros(half, half), torch.zeros(half, half)
    mixing_FF = orthogonal(dim, generator(seed, "generation/scramble")) if scramble else torch.eye(dim)
    environments = {}
    for number, sigma in enumerate(sigmas):
        noise = torch.randn(4, n, half, generator=generator(seed, "generation/train", number))
        scale_y, scale_z = (sigma, 1.0) if hetero else (1.0, sigma)
        h_NI = sigma * noise[0]
        x_NI = h_NI @ w_hx + sigma * noise[1]
        y_NI = x_NI + h_NI @ w_hy + scale_y * noise[2]
        z_NI = y_NI + h_NI @ w_hz + scale_z * noise[3]
        environments[f"sigma={sigma:g}"] = Examples(torch.cat([x_NI, z_NI], 1) @ mixing_FF, y_NI.sum(1))
    causal_F = torch.cat([torch.ones(half), torch.zeros(half)])
    return Generated({"train": environments}, mixing_FF, mixing_FF.T @ causal_F)


class LinearSemOptions(Hparams):
    """Sizes, and the paper's three switches."""

    n: PositiveInt = 1000
    """Examples of each environment."""
    sigmas: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.2, 2.0, 5.0)
    """Scale of the noise, one environment each."""
    dim: Annotated[int, Field(gt=0, multiple_of=2)] = 10
    """Inputs; half of them are causes, half effects."""
    hidden: bool = False
    """A hidden confounder moves causes, target and effects (the paper's P for partially observed)."""
    hetero: bool = True
    """The environment's noise is that of the target; otherwise that of the effects."""
    scramble: bool = False
    """Turn the inputs by an orthogonal matrix."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: LinearSemOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    if len(set(options.sigmas)) < len(options.sigmas):
        raise UsageError(f"data.sigmas={options.sigmas} must not name a value twice")
    return dataset_of(
        "synthetic:linear-sem",
        chain(**options.model_dump(), seed=trial_seed),
        regression(),
        Defaults(model="linear", steps=5000, eval_every=500),
        groups=("domain",),
        levels={},
    )


linear_sem = DatasetSpec(load, LinearSemOptions, doc=__doc__)
