"""Train, measure and compare domain generalization algorithms.

>>> import dgharness
>>> config = dgharness.compose(sets=["train.steps=1000"], flags={"algorithm": "irmv1"})
>>> config.algorithm, config.train.steps
('irmv1', 1000)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgharness.config import RunConfig, compose
    from dgharness.data.synthetic.spurious_blobs import spurious_blobs
    from dgharness.errors import UsageError
    from dgharness.registry import load
    from dgharness.training.learner import Learner
    from dgharness.training.prepare import prepare
    from dgharness.training.run import resume, train

__version__ = "0.1.0"
__all__ = [
    "Learner",
    "RunConfig",
    "UsageError",
    "compose",
    "load",
    "prepare",
    "resume",
    "spurious_blobs",
    "train",
]

_HOME = {
    "Learner": "dgharness.training.learner",
    "RunConfig": "dgharness.config",
    "UsageError": "dgharness.errors",
    "compose": "dgharness.config",
    "load": "dgharness.registry",
    "prepare": "dgharness.training.prepare",
    "resume": "dgharness.training.run",
    "spurious_blobs": "dgharness.data.synthetic.spurious_blobs",
    "train": "dgharness.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import dgharness`` alone costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'dgharness' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
