"""Averages of the weights along training."""

from __future__ import annotations

import copy
from itertools import compress
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dgharness.hparams import Annotated, Hparams, Structural


class AveragingConfig(Hparams):
    """Which average of the weights is evaluated in place of the last ones."""

    name: Annotated[Literal["none", "sma"], Structural] = "none"
    """sma: the simple moving average of all weights from some update on."""
    start: Annotated[PositiveInt, Structural] = 100
    """The update from which on sma averages; until then it follows the weights."""


class SimpleMovingAverage:
    """The running mean of a module's parameters and buffers from update ``start`` on; before, a copy of them.

    Arpit et al., *Ensemble of Averages* (2022). As there, the copy made before the start counts too: after
    update t >= start it is the mean over the weights after updates start - 1 to t. Buffers that are not
    floating point are copied.
    """

    def __init__(self, module: nn.Module, start: int) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.start = start
        self.count = 1  # weights in the mean

    @torch.no_grad()
    def update(self, module: nn.Module, t: int) -> None:
        """Take in the weights as they are after update number ``t`` (the first is 1)."""
        means, latest = _tensors(self.module), _tensors(module)
        if t < self.start:
            torch._foreach_copy_(means, latest)
            return
        self.count += 1
        floating = [mean.is_floating_point() for mean in means]
        torch._foreach_lerp_(
            list(compress(means, floating)), list(compress(latest, floating)), 1 / self.count
        )
        for mean, now, is_floating in zip(means, latest, floating, strict=True):
            if not is_floating:
                mean.copy_(now)

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Begin again from these weights, as at the start."""
        torch._foreach_copy_(_tensors(self.module), _tensors(module))
        self.count = 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.count = state["count"]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
