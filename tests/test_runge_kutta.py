"""Runge-Kutta steps: the published growth factors on a bilinear game, their order, and what a stage sees."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from small_runs import assert_a_resumed_run_is_an_uninterrupted_one
from torch import Tensor, nn

from dgharness.training.optimizers import OptimizerConfig, descend, make_optimizer, restart, set_lr

NAMES = {"rk2": 2, "rk4": 4}
each = pytest.mark.parametrize("name", NAMES)


def config(name: str, lr: float = 0.1, **given: float) -> OptimizerConfig:
    return OptimizerConfig(name=name, lr=lr, weight_decay=given.pop("weight_decay", 0.0), **given)


def step(optimizer: torch.optim.Optimizer, loss_fn: Callable[[], Tensor], settings: OptimizerConfig) -> None:
    descend(optimizer, loss_fn, settings, list, lambda: None)


def double(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


# --- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0, 2.5])
@pytest.mark.parametrize(
    ("name", "growth"),
    [("rk2", lambda eta: 1 + eta**4 / 4), ("rk4", lambda eta: 1 - eta**6 / 72 + eta**8 / 576)],
)
def test_a_bilinear_game_grows_by_the_published_factor(
    name: str, growth: Callable[[float], float], eta: float
) -> None:
    """min_x max_y xy, whose field is (y, -x): the squared distance to the solution, step by step."""
    x, y = double(0.6), double(-0.8)
    settings = config(name, lr=eta)
    optimizer = make_optimizer(settings, [("x", x), ("y", y)])
    for _ in range(3):
        before = x.item() ** 2 + y.item() ** 2
        step(optimizer, lambda: (x * y.detach() - x.detach() * y).sum(), settings)
        assert (x.item() ** 2 + y.item() ** 2) / before == pytest.approx(growth(eta), rel=1e-12)


@each
def test_halving_the_step_divides_the_error_by_two_to_the_order(name: str) -> None:
    """w' = -sin(w), whose solution at time 1 from w = 2 is known."""
    exact = 2 * math.atan(math.exp(-1.0) * math.tan(1.0))
    errors = []
    for steps in (8, 16, 32):
        w, settings = double(2.0), config(name, lr=1 / steps)
        optimizer = make_optimizer(settings, [("w", w)])
        for _ in range(steps):
            step(optimizer, lambda w=w: -w.cos().sum(), settings)
        errors.append(abs(w.item() - exact))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2 ** NAMES[name], rel=0.15)


@each
def test_weight_decay_is_part_of_the_field(name: str) -> None:
    decayed, penalised = double(1.0, -2.0), double(1.0, -2.0)
    for w, settings, extra in (
        (decayed, config(name, weight_decay=0.3), 0.0),
        (penalised, config(name), 0.3),
    ):
        optimizer = make_optimizer(settings, [("w", w)])
        for _ in range(3):
            step(optimizer, lambda w=w, a=extra: w.cos().sum() + a / 2 * w.square().sum(), settings)
    torch.testing.assert_close(decayed, penalised, rtol=1e-12, atol=0)


@each
def test_every_parameter_group_moves_at_its_own_rate(name: str) -> None:
    """With a rate of 0 a group stays, and the other moves as if it were alone."""
    a, b, alone = double(1.0), double(1.0), double(1.0)
    settings = config(name)
    optimizer = make_optimizer(settings, [("a.w", a), ("b.w", b)], {"b.": 0.0})
    step(optimizer, lambda: (a * a * b).sum(), settings)
    single = make_optimizer(settings, [("w", alone)])
    step(single, lambda: (alone * alone).sum(), settings)
    assert b.item() == 1 and a.item() == alone.item() != 1
    set_lr(optimizer, None, 0.0)
    moved = a.item()
    step(optimizer, lambda: (a * a * b).sum(), settings)
    assert a.item() == moved


@each
def test_a_parameter_without_a_gradient_stays(name: str) -> None:
    used, unused = double(1.0), double(2.0)
    settings = config(name, weight_decay=0.1)
    step(make_optimizer(settings, [("a", used), ("b", unused)]), lambda: used.square().sum(), settings)
    assert used.item() < 1 and unused.item() == 2


# --- what a stage sees -----------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


@each
def test_all_stages_see_the_same_noise_and_buffers_and_only_the_first_moves_the_buffers(name: str) -> None:
    module = network()
    settings = config(name)
    optimizer = make_optimizer(settings, module.named_parameters())
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
    starts, noises, ends = [], [], []

    def loss_fn() -> Tensor:
        starts.append([buffer.clone() for buffer in module.buffers()])
        noises.append(torch.rand(3))
        loss = module(x).square().mean()
        ends.append([buffer.clone() for buffer in module.buffers()])
        return loss

    descend(optimizer, loss_fn, settings, module.buffers, lambda: torch.manual_seed(3))
    assert len(starts) == NAMES[name]
    for start, noise in zip(starts, noises, strict=True):
        assert noise.equal(noises[0])
        assert all(one.equal(other) for one, other in zip(start, starts[0], strict=True))
    assert all(one.equal(other) for one, other in zip(module.buffers(), ends[0], strict=True))


@each
def test_it_has_no_state_to_lose(name: str) -> None:
    module = network()
    settings = config(name)
    optimizer = make_optimizer(settings, module.named_parameters())
    loss = lambda m: lambda: m[0](torch.ones(2, 5)).square().mean()  # noqa: E731
    step(optimizer, loss(module), settings)
    twin, copied = copy.deepcopy((module, optimizer))
    reloaded, third = make_optimizer(settings, (found := copy.deepcopy(module)).named_parameters()), found
    reloaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    restart(optimizer)
    for each_optimizer, own in ((optimizer, module), (copied, twin), (reloaded, third)):
        step(each_optimizer, loss(own), settings)
    assert module[0].weight.equal(twin[0].weight) and module[0].weight.equal(third[0].weight)


# --- whole runs ------------------------------------------------------------------------------------


@each
def test_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, name):
    settings = {"hp": {"anneal_steps": 5}, "optimizer": {"name": name}, "model": {"dropout": 0.5}}
    assert_a_resumed_run_is_an_uninterrupted_one(mlflow_store, tmp_path, "irmv1", **settings)
