"""Optimizers, learning-rate schedules, and the one optimization step that everything goes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer

from dgharness.hparams import Annotated, Hparams, Neutral, Structural

HEAD = "model.classifier."  # the parameters that ``head_lr_multiplier`` is about


class OptimizerConfig(Hparams):
    """Which optimizer, and how its learning rate moves."""

    name: Annotated[Literal["adam", "adamw", "sgd", "sam", "rk2", "rk4"], Structural] = "adam"
    """The optimizer; sam is sharpness-aware minimization around Adam and costs two passes per step; rk2 and
    rk4 are Runge-Kutta steps along the gradient, without momentum, and cost two and four (unverified:
    written from secondary sources)."""
    lr: PositiveFloat | None = None
    """Learning rate; unset, that of the dataset's profile."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay (decoupled in adamw only); unset, that of the dataset's profile."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of sgd."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of Adam's mean gradient."""
    sam_rho: NonNegativeFloat = 0.05
    """Radius of the neighbourhood in which sam looks for the worst weights."""
    schedule: Annotated[Literal["constant", "step", "cosine", "linear"], Structural] = "constant"
    """Course of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: Annotated[NonNegativeInt, Structural] = 0
    """Updates over which the learning rate rises linearly to its full value."""
    decay_every: Annotated[PositiveInt, Structural] = 1000
    """Updates between two decays of the step schedule."""
    decay_epochs: Annotated[PositiveFloat | None, Structural, Neutral(None)] = None
    """Passes over the training data between two decays, in place of decay_every."""
    decay_factor: Annotated[PositiveFloat, Structural] = 0.1
    """What one decay of the step schedule multiplies the learning rate by."""
    clip_norm: Annotated[NonNegativeFloat, Structural] = 0.0
    """Largest norm of the gradient over all parameters of one optimizer; 0 is no clipping."""
    head_lr_multiplier: Annotated[PositiveFloat, Structural] = 1.0
    """Learning rate of the classifier, relative to that of everything else."""


def make_optimizer(
    config: OptimizerConfig,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    multipliers: Mapping[str, float] | None = None,
    *,
    lr: float | None = None,
    lr_multiplier: float = 1.0,
    weight_decay: float | None = None,
    betas: tuple[float, float] | None = None,
) -> Optimizer:
    """The configured optimizer over those parameters that train; one group per learning-rate multiplier.

    ``multipliers`` are by prefix of the parameters' names; what follows them replaces the configuration's.
    Each group keeps ``base_lr``, what ``set_lr`` scales, and ``lr_multiplier``.
    """
    assert config.lr is not None and config.weight_decay is not None, "lr and weight_decay are not resolved"
    multipliers = {HEAD: config.head_lr_multiplier} if multipliers is None else multipliers
    by_multiplier: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            own = [factor for prefix, factor in multipliers.items() if name.startswith(prefix)]
            by_multiplier.setdefault(lr_multiplier * math.prod(own), []).append(parameter)
    lr = config.lr if lr is None else lr
    groups = [
        {"params": parameters, "lr": lr * by, "base_lr": lr * by, "lr_multiplier": by}
        for by, parameters in by_multiplier.items()
    ]
    betas = (config.beta1, 0.999) if betas is None else betas
    on_cuda = all(parameter.is_cuda for parameters in by_multiplier.values() for parameter in parameters)
    shared: dict[str, Any] = {
        "lr": lr,
        "weight_decay": config.weight_decay if weight_decay is None else weight_decay,
        "fused": True if on_cuda else None,
    }
    match config.name:
        case "rk2" | "rk4":
            return RungeKutta(groups, lr, shared["weight_decay"], order=2 if config.name == "rk2" else 4)
        case "sgd":
            return torch.optim.SGD(groups, momentum=config.momentum, **shared)
        case "adamw":
            return torch.optim.AdamW(groups, betas=betas, **shared)
        case "adam":
            return torch.optim.Adam(groups, betas=betas, **shared)
        case "sam":
            return Sam(torch.optim.Adam(groups, betas=betas, **shared), config.sam_rho)


class Sam(Optimizer):
    """Sharpness-aware minimization: the base optimizer steps on the gradient at the worst nearby weights.

    Foret et al. (2021): the gradient at ``w + rho * g / ||g||``, with g the gradient at w, over all
    parameters together. State and parameter groups are those of the base optimizer.
    """

    evaluations = 2

    def __init__(self, base: Optimizer, rho: float) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.rho = base, rho
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` clears the gradients, computes the loss and new ones, returns the loss."""
        assert closure is not None, "SAM evaluates the loss itself: give step() a closure"
        with torch.enable_grad():
            loss = closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in weights]
        here = [p.clone() for p in weights]
        scale = self.rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))
        with torch.enable_grad():
            closure()
        torch._foreach_copy_(weights, here)  # a copy, since subtracting would not give the same numbers
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:  # torch's own would lose these two in a copy
        return {**super().__getstate__(), "base": self.base, "rho": self.rho}

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state


class RungeKutta(Optimizer):
    """One Runge-Kutta step along ``w' = -v(w)``, with v the gradient that the closure leaves.

    Acuna et al., "Domain Adversarial Training: A Game Perspective", ICLR 2022, arXiv:2202.05352: where
    gradients are reversed, v is the field of a game and the gradient of no one loss, and plain descent
    spirals outwards. Order 2 is Heun's method, order 4 the classical one. Weight decay is part of v, and
    there is no momentum, so the optimizer has no state. Unverified: the paper's results were not reproduced.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, *, order: Literal[2, 4]) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "order": order})

    @property
    def evaluations(self) -> int:
        """How often a step computes the loss."""
        return self.defaults["order"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` clears the gradients, computes the loss and new ones, returns the loss."""
        assert closure is not None, "Runge-Kutta evaluates the loss itself: give step() a closure"
        weights = [p for group in self.param_groups for p in group["params"]]
        here = [p.clone() for p in weights]
        losses: list[Any] = []

        def move(before: list[Tensor] | None = None, part: float = 1.0) -> list[Tensor]:
            """The displacement ``-lr * v`` at ``here``, or at a part of the displacement before."""
            if before is not None:
                torch._foreach_copy_(weights, torch._foreach_add(here, before, alpha=part))
            with torch.enable_grad():
                losses.append(closure())
            return [displacement for group in self.param_groups for displacement in _along(group)]

        if self.evaluations == 2:
            k1 = move()
            k2 = move(k1)
            sum_of_k, of = torch._foreach_add(k1, k2), 2
        else:
            k1 = move()
            k2 = move(k1, 0.5)
            k3 = move(k2, 0.5)
            k4 = move(k3)
            sum_of_k = torch._foreach_add(torch._foreach_add(k1, k4), torch._foreach_add(k2, k3), alpha=2)
            of = 6
        torch._foreach_copy_(weights, torch._foreach_add(here, sum_of_k, alpha=1 / of))
        return losses[0]


def _along(group: dict[str, Any]) -> Iterator[Tensor]:
    """``-lr * v`` of one parameter group; what has no gradient stays, as with every other optimizer."""
    for p in group["params"]:
        yield torch.zeros_like(p) if p.grad is None else -group["lr"] * (p.grad + group["weight_decay"] * p)


def lr_factor(config: OptimizerConfig, t: int, total: int) -> float:
    """What multiplies the learning rate of the update after ``t`` updates, of ``total`` in all.

    >>> config = OptimizerConfig(schedule="linear", warmup_steps=2)
    >>> [lr_factor(config, t, total=6) for t in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if t < config.warmup_steps:
        return (t + 1) / config.warmup_steps
    since = t - config.warmup_steps
    progress = min(1.0, since / max(1, total - config.warmup_steps))
    match config.schedule:
        case "constant":
            return 1.0
        case "step":
            return config.decay_factor ** (since // config.decay_every)
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return 1 - progress


def set_lr(optimizer: Optimizer, base_lr_override: float | None, factor: float) -> None:
    """Scale every group's learning rate: its own, or the override times the group's multiplier."""
    for group in optimizer.param_groups:
        if base_lr_override is None:
            group["lr"] = group["base_lr"] * factor
        else:
            group["lr"] = base_lr_override * group["lr_multiplier"] * factor


def restart(optimizer: Optimizer) -> None:
    """Forget every moment and step count, as if the optimizer had just been built."""
    optimizer.state.clear()


def descend(
    optimizer: Optimizer,
    loss_fn: Callable[[], Tensor],
    config: OptimizerConfig,
    buffers: Callable[[], Iterable[Tensor]],
    reseed: Callable[[], None],
) -> None:
    """One step of the optimizer on ``loss_fn()``.

    An optimizer that evaluates the loss several times (its ``evaluations``) sees the same function each
    time: ``reseed()`` comes before every evaluation, all start from the same buffers, and only what the
    first one does to the buffers lasts.
    """

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn()
        loss.backward()
        if config.clip_norm:
            everything = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(everything, config.clip_norm)
        return loss

    several = getattr(optimizer, "evaluations", 1) > 1
    evaluate: Any = _repeatable(closure, buffers, reseed) if several else closure
    optimizer.step(evaluate)


def _repeatable(
    closure: Callable[[], Tensor], buffers: Callable[[], Iterable[Tensor]], reseed: Callable[[], None]
) -> Callable[[], Tensor]:
    before = [buffer.clone() for buffer in buffers()]
    after: list[Tensor] | None = None

    def write(values: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(buffers(), values, strict=True):
                buffer.copy_(value)

    def repeatable() -> Tensor:
        nonlocal after
        reseed()
        if after is None:
            loss = closure()
            after = [buffer.clone() for buffer in buffers()]
        else:
            write(before)
            loss = closure()
            write(after)
        return loss

    return repeatable
