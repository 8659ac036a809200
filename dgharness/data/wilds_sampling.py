"""The two loaders of WILDS that do not just shuffle, draw for draw.

Koh et al., *WILDS: A Benchmark of in-the-Wild Distribution Shifts* (2021). With the same seed they give what
``wilds.common.data_loaders.GroupSampler`` gives after ``np.random.seed``, and what torch's
``WeightedRandomSampler`` gives, called as WILDS does, after ``torch.manual_seed``.

Shapes: L examples that may be drawn, G groups that have examples, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgharness.errors import UsageError


def group_batches(
    group_L: np.ndarray,
    groups_per_batch: int,
    per_group: int,
    seed: int,
    *,
    uniform: bool = True,
    distinct: bool = True,
) -> Iterator[np.ndarray]:
    """The batches of one epoch, each ``per_group`` examples of every group drawn, group after group.

    Groups are equally likely, or in proportion to their sizes if not ``uniform``, and differ if ``distinct``.
    A group no larger than ``per_group`` is drawn from with replacement. L // B batches make an epoch.
    """
    _, first_L, size_G = np.unique(group_L, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(first_L, kind="stable"), size_G.cumsum()[:-1])
    share_G = None if uniform else size_G / size_G.sum()
    stream = np.random.RandomState(seed)
    for _ in range(epoch_length(len(group_L), groups_per_batch * per_group)):
        groups = stream.choice(len(members), groups_per_batch, replace=not distinct, p=share_G)
        yield np.concatenate(
            [
                stream.choice(members[group], per_group, replace=len(members[group]) <= per_group)
                for group in groups
            ]
        )


def epoch_length(examples: int, batch: int) -> int:
    """Batches in an epoch of group batches; the examples must fill at least one."""
    if examples < batch:
        raise UsageError(
            f"the sampler wilds-group needs {batch} training examples to fill a batch, and there are "
            f"{examples}; lower train.batch_size or train.rows"
        )
    return examples // batch


def uniform_epoch(group_L: Tensor, seed: int) -> Tensor:
    """As many draws as there are examples, with replacement, every group as likely as the others."""
    count_G = torch.bincount(group_L).float()
    # WILDS takes the weights in single precision, and the draws depend on their last bit.
    weight_L = (1 / count_G)[group_L].double()
    return torch.multinomial(weight_L, len(group_L), True, generator=torch.Generator().manual_seed(seed))
