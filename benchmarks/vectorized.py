"""Vectorized trials for small models: many runs of one algorithm side by side, full batch, with Adam.

Rungs 1 and 2 are pure, so ``torch.func.vmap`` runs R trials as one; trials may differ in their initial
weights, their data, the learning rate, the weight decay and every number among the hyperparameters. One
trial is the run that ``Learner`` makes on the same full batch; ``tests/test_benchmark_evidence.py`` holds
it to that.

Shapes: R trials, E rows of the batch (domains), B examples per row, N = E*B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dgharness.models.model import Model
from dgharness.plugin import AlgorithmSpec, Dims, Step
from dgharness.testing.world import Stateless

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.Adam

State = dict[str, Tensor]


def train(
    spec: AlgorithmSpec,
    models: Sequence[Model],
    x: Tensor,
    y_EB: Tensor,
    hp: Any,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    lr_R: Tensor,
    weight_decay_R: Tensor,
    steps: int,
    numbers: Mapping[str, Tensor] | None = None,
    own_data: bool = False,
    compiled: bool = True,
) -> State:
    """The trained parameters and the buffers, stacked over trials.

    ``numbers`` are hyperparameters by trial, [R] each, in place of those of ``hp``. With ``own_data`` the
    inputs are [R, N, ...] and the targets [R, E, B]; otherwise all trials see the same. ``compiled`` needs a
    C++ compiler.
    """
    assert spec.objective is not None, "only rungs 1 and 2 run side by side"
    assert all(step == 0 for step, _ in spec.restarts(hp)), "nothing may change at a step: anneal_steps=0"
    rows, examples = y_EB.shape[-2:]
    objective = spec.objective(Dims(1, 1, rows, rows), hp)
    assert not objective.state_dict(), "an objective with state of its own runs in a Learner"
    rows_EB = torch.arange(rows)[:, None].expand(rows, examples)
    template = models[0]
    buffers = dict(template.named_buffers())
    weights = {
        name: torch.stack([model.get_parameter(name).detach() for model in models])
        for name, _ in template.named_parameters()
    }

    def trial(own_weights: State, own: Mapping[str, Tensor], x: Tensor, y_EB: Tensor) -> Tensor:
        step = Step(
            x=x,
            targets_EB=y_EB,
            domain_EB=rows_EB,
            group_EB=rows_EB,
            index_EB=rows_EB,
            model=Stateless(template, {**own_weights, **buffers}),
            loss=loss,
        )
        return objective(step, SimpleNamespace(**{**hp.model_dump(), **own}))[0]

    data = 0 if own_data else None
    gradient = torch.func.vmap(torch.func.grad(trial), in_dims=(0, 0, data, data))
    numbers = dict(numbers or {})
    if compiled:
        gradient = torch.compile(make_fx(gradient)(weights, numbers, x, y_EB))
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for t in range(1, steps + 1):
        gradients = gradient(weights, numbers, x, y_EB)
        for name, weight in weights.items():
            by_trial = (-1, *[1] * (weight.dim() - 1))
            g = gradients[name] + weight_decay_R.view(by_trial) * weight
            mean[name].lerp_(g, 1 - BETA1)
            square[name].mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            spread = square[name].sqrt().div_((1 - BETA2**t) ** 0.5).add_(EPSILON)
            weight.sub_(lr_R.view(by_trial) / (1 - BETA1**t) * mean[name] / spread)
    return weights


def predict(template: Model, weights: State, x: Tensor, own_data: bool = False) -> Tensor:
    """Outputs [R, N, C] of every trial."""
    buffers = dict(template.named_buffers())

    def trial(own_weights: State, x: Tensor) -> Tensor:
        return Stateless(template, {**own_weights, **buffers})(x)

    with torch.no_grad():
        return torch.func.vmap(trial, in_dims=(0, 0 if own_data else None))(weights, x)
