"""Two Gaussian blobs under four kinds of shift, with the accuracy of the best classifier in closed form.

    from dgharness import spurious_blobs
    blobs = spurious_blobs("spurious", shifts=(0.0, 0.25, 1.0), seed=0)
    source = blobs["train"]["shift 0%"]
    source.x, source.y_N, source.attributes["attribute"]

Shapes: N examples, 2 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from dgharness.data.coloring import Probability
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.synthetic.environments import Examples, Generated, dataset_of
from dgharness.data.tasks import classification
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.seeds import generator

Kind = Literal["covariate", "concept", "spurious", "subpopulation"]


def spurious_blobs(
    kind: Kind = "spurious",
    shifts: Sequence[float] = (0.0, 0.25, 1.0),
    margin: float = 1.0,
    strength: float = 2.0,
    n: int = 1000,
    seed: int = 0,
) -> Generated:
    """A domain of ``n`` examples [N, 2] for every number in ``shifts``, each from 0 (no shift) to 1.

    A fair coin c = ±1 chooses the blob: the first input is N(c · margin, 1), the second N(0, 1), and the
    label is 1 for c = 1 and 0 otherwise. What a shift of s changes, with m the margin, g the strength and Φ
    the normal distribution function:

    - ``covariate``: the second input is N(g s, 1), whatever the label.
      Bayes accuracy Φ(m); the Bayes rule of shift 0 has the same.
    - ``concept``: the label is flipped with probability s.
      Bayes accuracy max(q, 1 - q) with q = (1 - s) Φ(m) + s Φ(-m); the rule of shift 0 has q.
    - ``spurious``: the second input is N(c g (1 - 2 s), 1): it goes with the label at 0, says nothing at 1/2,
      and lies at 1. Bayes accuracy Φ(√(m² + g² (1 - 2 s)²)); the rule of shift 0 has
      Φ((m² + g² (1 - 2 s)) / √(m² + g²)), and the first input alone Φ(m) in every domain.
    - ``subpopulation``: with probability s an example is of the minority, whose first input is N(c m / 2, 1)
      and whose second is N(g, 1), where the majority's is N(-g, 1).
      Bayes accuracy (1 - s) Φ(m) + s Φ(m / 2); the rule of shift 0 has the same, Φ(m / 2) on the minority.

    Attribute ``attribute`` is 1 where the label was flipped (``concept``), for the minority
    (``subpopulation``), and else where the second input is positive: groups are the label times it.
    Examples lie under ``["train"]["shift 25%"]``. A shift outside [0, 1], or one twice, is a UsageError.

    >>> blobs = spurious_blobs("concept", shifts=(0.0, 1.0), n=4)
    >>> list(blobs["train"]), blobs["train"]["shift 100%"].x.shape
    (['shift 0%', 'shift 100%'], torch.Size([4, 2]))
    """
    if len(set(shifts)) < len(shifts) or not all(0 <= shift <= 1 for shift in shifts):
        raise UsageError(f"data.shifts={tuple(shifts)} must be numbers from 0 to 1, and none twice")
    domains = {}
    for number, shift in enumerate(shifts):
        stream = generator(seed, "generation/train", number)
        coin_N, chance_N = torch.rand(2, n, generator=stream)
        y_N, chosen_N = coin_N < 0.5, chance_N < shift
        c_N = 2.0 * y_N - 1
        x_N2 = torch.randn(n, 2, generator=stream)
        x_N2[:, 0] += c_N * margin
        if kind == "covariate":
            x_N2[:, 1] += strength * shift
        elif kind == "concept":
            y_N = y_N ^ chosen_N
        elif kind == "spurious":
            x_N2[:, 1] += c_N * strength * (1 - 2 * shift)
        else:
            x_N2[:, 0] -= chosen_N * c_N * margin / 2
            x_N2[:, 1] += strength * (2.0 * chosen_N - 1)
        attribute_N = chosen_N if kind in ("concept", "subpopulation") else x_N2[:, 1] > 0
        domains[f"shift {100 * shift:g}%"] = Examples(x_N2, y_N.long(), {"attribute": attribute_N.long()})
    return Generated({"train": domains})


class BlobOptions(Hparams):
    """What shifts, and how far."""

    kind: Kind = "spurious"
    """What shifts: the second input, the labels, what the second input says of them, or the share of a
    minority."""
    shifts: Annotated[tuple[Probability, ...], Field(min_length=1)] = (0.0, 0.25, 1.0)
    """The dial, for each domain: 0 is no shift."""
    margin: PositiveFloat = 1.0
    """Distance of a blob's centre from the boundary, in standard deviations."""
    strength: NonNegativeFloat = 2.0
    """How far the second input moves."""
    n: PositiveInt = 1000
    """Examples of each domain."""


def load(argument: str | None, root: Path | None, trial_seed: int, options: BlobOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return dataset_of(
        "synthetic:spurious-blobs",
        spurious_blobs(**options.model_dump(), seed=trial_seed),
        classification(2),
        Defaults(model="linear", steps=2000, eval_every=200),
        groups=("y", "attribute"),
        levels={"y": ("0", "1"), "attribute": ("0", "1")},
    )


blobs = DatasetSpec(load, BlobOptions, doc=__doc__)
