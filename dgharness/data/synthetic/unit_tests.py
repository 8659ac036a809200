"""Linear unit tests of invariance: 1 is a regression, 2 cows and camels, 3 a small margin; s: scrambled.

Paper: Aubin, Slowik, Arjovsky, Bottou, Lopez-Paz, Linear unit-tests for invariance discovery, NeurIPS 2020
workshop on causal discovery and causality-inspired machine learning, arXiv 2102.10867.
Agrees with: facebookresearch/InvarianceUnitTests (``scripts/datasets.py``), drawn from streams of its own; an
odd number of examples stays odd in example 3 (there it loses one).

In training and validation the spurious block of the inputs goes with the label; in the test split it is
permuted among the examples of each environment, so that its marginal stays and its link is gone. The
oracle trains and validates on permuted data as well. The scrambled variants turn all inputs by one matrix.

Shapes: N examples, I invariant inputs, S spurious inputs, F = I + S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of, orthogonal
from dgharness.data.tasks import classification, regression
from dgharness.hparams import Hparams
from dgharness.seeds import generator

SPLITS = ("train", "val", "test")

# environment number, examples, stream -> invariant block, spurious block, targets
Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def example_1(
    envs: int = 3,
    n: int = 10_000,
    d_inv: int = 5,
    d_spu: int = 5,
    scramble: bool = False,
    oracle: bool = False,
    seed: int = 0,
) -> Generated:
    """Regression on causes, beside effects of the target; all noise but the effects' differs by environment.

    x = σ ε, ỹ = x W_xy + σ ε', z = ỹ W_yz + ε''; the target is the sum of ỹ.
    """
    stream = generator(seed, "generation/weights")
    w_xy = torch.randn(d_inv, d_inv, generator=stream) / d_inv
    w_yz = torch.randn(d_inv, d_spu, generator=stream) / max(d_spu, 1)
    sigma_E = _known_first((0.1, 1.5, 2.0), [10**u for u in _uniform(envs, -2, 1, seed, "sigma")])

    def draw(env: int, n: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x_NI = sigma_E[env] * torch.randn(n, d_inv, generator=stream)
        y_NI = x_NI @ w_xy + sigma_E[env] * torch.randn(n, d_inv, generator=stream)
        z_NS = y_NI @ w_yz + torch.randn(n, d_spu, generator=stream)
        return x_NI, z_NS, y_NI.sum(1)

    solution_F = torch.cat([w_xy.sum(1), torch.zeros(d_spu)])
    return _generated(draw, envs, n, d_inv + d_spu, scramble, oracle, seed, solution_F)


def example_2(
    envs: int = 3,
    n: int = 10_000,
    d_inv: int = 5,
    d_spu: int = 5,
    scramble: bool = False,
    oracle: bool = False,
    seed: int = 0,
) -> Generated:
    """Cows and camels: the label is the sign of a faint foreground, the background is a hundred times larger.

    The foreground is positive with probability s, and the background has its sign with probability p.
    """
    p_E = _known_first((0.95, 0.97, 0.99), _uniform(envs, 0.9, 1.0, seed, "p"))
    s_E = _known_first((0.3, 0.5, 0.7), _uniform(envs, 0.3, 0.7, seed, "s"))
    foreground, background = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, -1, 1])

    def draw(env: int, n: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        p, s = p_E[env], s_E[env]
        weights = torch.tensor([p * s, (1 - p) * s, p * (1 - s), (1 - p) * (1 - s)])
        j_N1 = torch.multinomial(weights, n, replacement=True, generator=stream)[:, None]
        x_NI = torch.randn(n, d_inv, generator=stream) / math.sqrt(10) + foreground[j_N1]
        z_NS = torch.randn(n, d_spu, generator=stream) / math.sqrt(10) + background[j_N1]
        return 0.01 * x_NI, z_NS, (x_NI.sum(1) > 0).long()

    return _generated(draw, envs, n, d_inv + d_spu, scramble, oracle, seed)


def example_3(
    envs: int = 3,
    n: int = 10_000,
    d_inv: int = 5,
    d_spu: int = 5,
    scramble: bool = False,
    oracle: bool = False,
    seed: int = 0,
) -> Generated:
    """A small invariant margin beside a large spurious one, whose direction differs by environment.

    Class 0 lies about (0.1, μ_e), class 1 about (-0.1, -μ_e), both with noise of 0.1; μ_e ~ N(0, I).
    """
    mu_ES = [torch.randn(d_spu, generator=generator(seed, "generation/mu", env)) for env in range(envs)]

    def draw(env: int, n: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        y_N = (torch.arange(n) >= n // 2).long()
        sign_N1 = 1.0 - 2.0 * y_N[:, None]
        x_NI = 0.1 * torch.randn(n, d_inv, generator=stream) + 0.1 * sign_N1
        z_NS = 0.1 * torch.randn(n, d_spu, generator=stream) + sign_N1 * mu_ES[env]
        return x_NI, z_NS, y_N

    return _generated(draw, envs, n, d_inv + d_spu, scramble, oracle, seed)


def _generated(
    draw: Draw,
    envs: int,
    n: int,
    width: int,
    scramble: bool,
    oracle: bool,
    seed: int,
    solution_F: Tensor | None = None,
) -> Generated:
    mixing_FF = orthogonal(width, generator(seed, "generation/scramble")) if scramble else torch.eye(width)
    splits: dict[str, dict[str, Examples]] = {split: {} for split in SPLITS}
    for split, env in ((split, env) for split in SPLITS for env in range(envs)):
        x_NI, z_NS, y_N = draw(env, n, generator(seed, f"generation/{split}", env))
        if oracle or split == "test":
            z_NS = z_NS[torch.randperm(n, generator=generator(seed, f"generation/{split}/permuted", env))]
        splits[split][f"E{env}"] = Examples(torch.cat([x_NI, z_NS], 1) @ mixing_FF, y_N)
    return Generated(splits, mixing_FF, None if solution_F is None else mixing_FF.T @ solution_F)


def _known_first(known: Sequence[float], drawn: Sequence[float]) -> list[float]:
    """The published values of the first environments, and draws for all further ones."""
    return [*known, *drawn[len(known) :]][: len(drawn)]


def _uniform(envs: int, low: float, high: float, seed: int, name: str) -> list[float]:
    """One draw for each environment, which does not depend on how many there are."""
    return [
        low + (high - low) * torch.rand(1, generator=generator(seed, f"generation/{name}", env)).item()
        for env in range(envs)
    ]


class UnitTestOptions(Hparams):
    """Sizes, and whether an oracle trains."""

    envs: PositiveInt = 3
    """Environments; those after the third are drawn."""
    n: PositiveInt = 10_000
    """Examples of each environment in each of training, validation and test."""
    d_inv: PositiveInt = 5
    """Invariant inputs."""
    d_spu: NonNegativeInt = 5
    """Spurious inputs; without any, every method should equal the oracle."""
    oracle: bool = False
    """Permute the spurious inputs in training and validation too: nothing is left to be misled by."""


def load(
    number: int, scramble: bool, argument: str | None, root: Path | None, seed: int, options: UnitTestOptions
) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    generated = (example_1, example_2, example_3)[number - 1](
        **options.model_dump(), scramble=scramble, seed=seed
    )
    return dataset_of(
        f"synthetic:unit-test-{number}{'s' if scramble else ''}",
        generated,
        regression() if number == 1 else classification(2),
        Defaults(model="linear", steps=10_000, eval_every=500, protocol="official"),
        groups=("domain",) if number == 1 else ("y",),
        levels={} if number == 1 else {"y": ("0", "1")},
    )


def _spec(number: int, scramble: bool) -> DatasetSpec:
    return DatasetSpec(partial(load, number, scramble), UnitTestOptions, doc=__doc__ or "")


unit_test_1, unit_test_1s = _spec(1, False), _spec(1, True)
unit_test_2, unit_test_2s = _spec(2, False), _spec(2, True)
unit_test_3, unit_test_3s = _spec(3, False), _spec(3, True)
