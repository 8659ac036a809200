"""What the synthetic constructions share: generated environments, and the dataset made of them.

Shapes: N examples, F inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, Defaults, InMemory
from dgharness.data.digits import categorical
from dgharness.data.tasks import Task


@dataclass(frozen=True)
class Examples:
    """Examples of one environment in one split."""

    x: Tensor  # [N, F] but for images
    y_N: Tensor  # float32 in regression, classes as int64
    attributes: Mapping[str, Tensor] = field(default_factory=dict)  # [N] each: codes or numbers


@dataclass(frozen=True)
class Generated:
    """What a construction gives: examples by split and environment, and what is known about them."""

    splits: Mapping[str, Mapping[str, Examples]]
    mixing_FF: Tensor | None = None  # every input is its coordinates times this
    solution_F: Tensor | None = None  # coefficients of the causal predictor, where it is linear

    def __getitem__(self, split: str) -> Mapping[str, Examples]:
        return self.splits[split]


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """The orthogonal factor of a Gaussian matrix.

    >>> q = orthogonal(3, torch.Generator().manual_seed(0))
    >>> torch.allclose(q @ q.T, torch.eye(3), atol=1e-6)
    True
    """
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


def dataset_of(
    name: str,
    generated: Generated,
    task: Task,
    defaults: Defaults,
    groups: Sequence[str],
    levels: Mapping[str, Sequence[str]],
    **further: Any,
) -> Dataset:
    """The dataset of generated examples: environments are domains, several splits are a column ``split``.

    ``levels`` names the values of the attributes that are categories, and of ``y`` unless it is a number;
    ``further`` are more fields of the dataset. It counts as a toy unless they say otherwise.
    """
    cells = [
        (split, env, found) for split, by_env in generated.splits.items() for env, found in by_env.items()
    ]
    sizes = torch.tensor([len(found.y_N) for _, _, found in cells])
    columns = {"y": torch.cat([found.y_N for _, _, found in cells])}
    for attribute in cells[0][2].attributes:
        columns[attribute] = torch.cat([found.attributes[attribute] for _, _, found in cells])

    def by_cell(names: Sequence[str]) -> pd.Categorical[str]:
        known = list(dict.fromkeys(names))
        return categorical(torch.tensor([known.index(one) for one in names]).repeat_interleave(sizes), known)

    table: dict[str, object] = {
        attribute: categorical(column, levels[attribute]) if attribute in levels else column.numpy()
        for attribute, column in columns.items()
    }
    table["domain"] = by_cell([env for _, env, _ in cells])
    if len(generated.splits) > 1:
        table["split"] = by_cell([split for split, _, _ in cells])
    x = torch.cat([found.x for _, _, found in cells])
    return Dataset(
        name=name,
        manifest=pd.DataFrame(table),
        reader=InMemory(x),
        task=task,
        input_shape=tuple(x.shape[1:]),
        defaults=defaults,
        groups=tuple(groups),
        **{"toy": True, **further},
    )
