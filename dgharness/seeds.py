"""Where every random number comes from.

A stream is named by (trial seed, purpose, step), so that nothing but the step has to be remembered to
resume a run, and nothing drawn for one purpose shifts what is drawn for another. No stream depends on
the algorithm or its hyperparameters: comparisons are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_hash(*parts: object) -> int:
    """DomainBed's hash of anything printable to a seed in [0, 2^31): the same arguments, the same seed.

    >>> seed_hash(0, 0) == seed_hash(0, 0) != seed_hash(0, 1)
    True
    """
    return int(hashlib.md5(str(parts).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone.

    >>> 0 <= unit_hash("weight", 1, 2) < 1
    True
    """
    digest = hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()
    return int(digest[:13], 16) / 16**13


def generator(seed: int, stream: str, t: int = 0) -> torch.Generator:
    """The generator of one stream at one step, on the CPU so that every device draws the same numbers."""
    import torch

    return torch.Generator().manual_seed(seed_hash(seed, stream, t))


@contextmanager
def seeded(seed: int, stream: str, t: int = 0) -> Iterator[None]:
    """Draw from the global generators as this stream says, and leave them as they were found."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed_hash(seed, stream, t))
        yield
