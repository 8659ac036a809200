"""What runs: an algorithm with its update, and the lift of an objective to one.

Shapes: E rows of a batch, as in ``dgharness.step``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dgharness.step import Dims, Predictor, Source, Step

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Setup:
    """What an algorithm is built from."""

    model: Any
    dims: Dims
    hp: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    new_model: Callable[[], Any]  # another network, with its own initialisation
    optimizer: Any = None  # the configuration of the optimizers
    batch_size: Any = None  # examples per row as configured, or "all"; None where nobody said


class MakeOptimizer(Protocol):
    """Builds the configured optimizer; what is given here replaces what the configuration says."""

    def __call__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float | None = None,
        lr_multiplier: float = 1.0,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> torch.optim.Optimizer: ...


Descend = Callable[[str, Callable[[], Tensor]], None]


class Algorithm(nn.Module):
    """Rung 3: owns its networks and optimizers, and says what one update is."""

    finished: bool = False  # set it to end the loop early

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.model, self.hp, self.dims = setup.model, setup.hp, setup.dims

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by name; ``make`` builds the configured one over named parameters."""
        return {"model": make(self.named_parameters())}

    @abstractmethod
    def update(self, step: Step, descend: Descend) -> Metrics:
        """One update. ``descend(name, loss_fn)`` makes one step of that optimizer on ``loss_fn()``.

        ``loss_fn`` may be called more than once (SAM): what it computes must start from ``step.fresh()``.
        """

    def predictor(self, source: Source | None) -> Predictor:
        return self.model

    def end_stage(self, name: str, source: Source) -> Mapping[str, Tensor]:
        """Tensors to keep in the checkpoint from here on; later steps see them as ``step.handed_over``."""
        return {}


class Descent(Algorithm):
    """The lift from an objective to an algorithm: one optimizer descends its loss."""

    def __init__(self, setup: Setup, objective: nn.Module) -> None:
        super().__init__(setup)
        self.objective = objective

    @property
    def finished(self) -> bool:  # type: ignore[override]
        return getattr(self.objective, "finished", False)

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}

        def loss_fn() -> Tensor:
            now = step.fresh()
            loss, terms = self.objective(now, self.hp)
            if not metrics:
                risks = {"risks_E": now.risks_E} if "risks_E" in vars(now) else {}
                metrics.update({"loss": loss, **terms, **risks})
            return loss

        descend("model", loss_fn)
        return metrics

    def predictor(self, source: Source | None) -> Predictor:
        own = getattr(self.objective, "predictor", None)
        return own(self.model, self.hp, source) if own else self.model

    def end_stage(self, name: str, source: Source) -> Mapping[str, Tensor]:
        own = getattr(self.objective, "end_stage", None)
        return own(name, source) if own else {}


class Pure(nn.Module):
    """A function in the clothes of a module without parameters."""

    def __init__(self, fn: Callable[[Step, Any], tuple[Tensor, Metrics]]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, step: Step, hp: Any) -> tuple[Tensor, Metrics]:
        return self.fn(step, hp)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pure:
        return Pure(self.fn)
