"""Optimizers, schedules, and the step that everything goes through."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.training.optimizers import (
    OptimizerConfig,
    Sam,
    descend,
    lr_factor,
    make_optimizer,
    restart,
    set_lr,
)

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))


def config(**given: Any) -> OptimizerConfig:
    return OptimizerConfig(**{"lr": 1e-2, "weight_decay": 0.0, **given})


def network(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 2))


def squared_error(module: nn.Module) -> Callable[[], Tensor]:
    return lambda: (module(X) - Y).square().mean()


def train(module: nn.Module, optimizer: Optimizer, steps: int, **given: object) -> None:
    for t in range(steps):

        def reseed(t: int = t) -> None:
            torch.manual_seed(t)

        reseed()
        descend(optimizer, squared_error(module), config(**given), module.buffers, reseed)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), (_, expected) in zip(
        one.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(value, expected), name


def named(**values: Iterable[float]) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.tensor(list(value)))) for name, value in values.items()]


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


# --- which optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({}, lambda p: torch.optim.Adam(p, lr=1e-2)),
        (
            {"beta1": 0.5, "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, 1e-2, (0.5, 0.999), weight_decay=0.1),
        ),
        ({"name": "adamw", "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1)),
        ({"name": "sgd", "momentum": 0.8}, lambda p: torch.optim.SGD(p, 1e-2, momentum=0.8)),
    ],
    ids=["adam", "adam with options", "adamw", "sgd"],
)
def test_a_configured_step_is_the_plain_torch_step_bit_for_bit(
    given: dict[str, object], plain: Callable[[Iterable[Tensor]], Optimizer]
) -> None:
    ours, theirs = network(dropout=0.3), network(dropout=0.3)
    train(ours, make_optimizer(config(**given), ours.named_parameters()), steps=5)
    optimizer = plain(theirs.parameters())
    for t in range(5):
        torch.manual_seed(t)
        optimizer.zero_grad()
        squared_error(theirs)().backward()
        optimizer.step()
    assert_same(ours, theirs)


def test_parameters_that_do_not_train_are_left_out() -> None:
    module = network()
    module[0].requires_grad_(False)
    groups = make_optimizer(config(), module.named_parameters()).param_groups
    assert len(groups) == 1 and len(groups[0]["params"]) == 4


def test_the_head_learns_at_its_own_rate() -> None:
    parameters = named(**{"model.featurizer.w": [1.0], "model.classifier.w": [1.0], "classifier.w": [1.0]})
    optimizer = make_optimizer(config(name="sgd", momentum=0, head_lr_multiplier=10), parameters)
    for _, parameter in parameters:
        parameter.grad = torch.ones(1)
    optimizer.step()
    assert [p.item() for _, p in parameters] == pytest.approx([0.99, 0.9, 0.99])
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.01, 0.1]


def test_what_a_method_asks_for_replaces_the_configuration() -> None:
    parameters = named(**{"model.featurizer.w": [1.0], "critic.w": [1.0], "critic.head.w": [1.0]})
    own = make_optimizer(
        config(), parameters, {"critic.": 2.0, "critic.head.": 5.0}, weight_decay=0.3, betas=(0.5, 0.9)
    )
    assert [group["base_lr"] for group in own.param_groups] == pytest.approx([0.01, 0.02, 0.1])
    assert {(group["weight_decay"], group["betas"]) for group in own.param_groups} == {(0.3, (0.5, 0.9))}
    (group,) = make_optimizer(config(), parameters[:1], lr=0.5, lr_multiplier=0.1).param_groups
    assert (group["lr"], group["base_lr"], group["lr_multiplier"]) == pytest.approx((0.05, 0.05, 0.1))


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0), ("lr", -1), ("name", "adamm"), ("warmup_steps", -1), ("beta1", 1.0), ("decay_every", 0)],
)
def test_settings_outside_their_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"optimizer.{key}="):
        checked(OptimizerConfig, {key: value}, "optimizer")


# --- learning rate ---------------------------------------------------------------------------------


def factors(total: int, **given: object) -> list[float]:
    return [lr_factor(config(**given), t, total) for t in range(total)]


def test_the_constant_schedule_is_one_throughout() -> None:
    assert factors(4) == [1, 1, 1, 1]


def test_warm_up_rises_linearly_and_ends_at_the_full_rate() -> None:
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_step_schedule_decays_at_multiples_counted_from_the_end_of_the_warm_up() -> None:
    assert factors(8, schedule="step", decay_every=2, decay_factor=0.5, warmup_steps=1) == [
        *(1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125)
    ]


def test_the_cosine_schedule_halves_in_the_middle_and_would_be_zero_after_the_last_update() -> None:
    values = factors(10, schedule="cosine", warmup_steps=2)
    assert values[:3] == [0.5, 1, 1]
    assert values[6] == pytest.approx(0.5)
    assert values[9] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert lr_factor(config(schedule="cosine", warmup_steps=2), 10, 10) == 0
    assert lr_factor(config(schedule="cosine"), 11, 10) == 0


def test_the_linear_schedule_falls_evenly() -> None:
    assert factors(4, schedule="linear") == [1, 0.75, 0.5, 0.25]


def test_a_warm_up_longer_than_the_run_just_never_ends() -> None:
    assert factors(2, schedule="cosine", warmup_steps=4) == [0.25, 0.5]


def test_set_lr_scales_every_group_from_its_base_or_from_the_override() -> None:
    parameters = named(**{"model.featurizer.w": [1.0], "model.classifier.w": [1.0]})
    optimizer = make_optimizer(config(head_lr_multiplier=10), parameters)
    for _ in range(2):
        set_lr(optimizer, None, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.05]
    set_lr(optimizer, 1.0, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 5.0]


# --- clipping, other gradients, restarts -----------------------------------------------------------


def test_clipping_limits_the_norm_over_all_parameters_and_keeps_the_direction() -> None:
    parameters = named(**{"a": [1.0], "model.classifier.b": [1.0]})
    (_, a), (_, b) = parameters
    settings = config(name="sgd", momentum=0, lr=1, clip_norm=0.5, head_lr_multiplier=2)
    optimizer = make_optimizer(settings, parameters)
    descend(optimizer, lambda: (3 * a + 4 * b).sum(), settings, list, lambda: None)
    torch.testing.assert_close(torch.stack([gradient(a), gradient(b)]).flatten(), torch.tensor([0.3, 0.4]))
    assert (a.item(), b.item()) == pytest.approx((0.7, 0.2))


def test_clipping_leaves_a_small_gradient_alone() -> None:
    clipped, plain = network(), network()
    train(clipped, make_optimizer(config(), clipped.named_parameters()), steps=3, clip_norm=1e6)
    train(plain, make_optimizer(config(), plain.named_parameters()), steps=3)
    assert_same(clipped, plain)


def test_a_step_ignores_gradients_left_from_before() -> None:
    module, fresh = network(), network()
    optimizer = make_optimizer(config(), module.named_parameters())
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    train(module, optimizer, steps=1)
    train(fresh, make_optimizer(config(), fresh.named_parameters()), steps=1)
    assert_same(module, fresh)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "sam"])
def test_a_restarted_optimizer_is_a_new_one_bit_for_bit(name: str) -> None:
    module = network()
    optimizer = make_optimizer(config(name=name), module.named_parameters())
    train(module, optimizer, steps=4)
    twin, unrestarted = copy.deepcopy(module), copy.deepcopy((module, optimizer))
    restart(optimizer)
    train(module, optimizer, steps=3)
    train(twin, make_optimizer(config(name=name), twin.named_parameters()), steps=3)
    assert_same(module, twin)
    train(*unrestarted, steps=3)
    assert not torch.equal(module[0].weight, unrestarted[0][0].weight)


# --- SAM -------------------------------------------------------------------------------------------


def test_sam_steps_on_the_gradient_at_the_worst_nearby_weights() -> None:
    """L = (10 a^2 + b^2) / 2 at (1, 1) with rho .05: the gradient is (10.4975, 1.0050)."""
    w = nn.Parameter(torch.ones(2))
    optimizer = Sam(torch.optim.SGD([w], lr=1.0), rho=0.05)
    visited = []

    def loss_fn() -> Tensor:
        visited.append(w.detach().clone())
        return (torch.tensor([10.0, 1.0]) * w.square()).sum() / 2

    descend(optimizer, loss_fn, config(), list, lambda: None)
    torch.testing.assert_close(w.grad, torch.tensor([10.4975, 1.0050]), rtol=0, atol=5e-5)
    torch.testing.assert_close(w.detach(), 1 - gradient(w), rtol=0, atol=0)
    assert len(visited) == optimizer.evaluations == 2
    assert (visited[1] - visited[0]).norm().item() == pytest.approx(0.05, rel=1e-5)


def test_sam_with_radius_zero_is_its_base_optimizer_bit_for_bit() -> None:
    """Also says that both evaluations see the same noise and buffers, and that buffers move once."""
    sam, adam = network(dropout=0.5), network(dropout=0.5)
    train(sam, make_optimizer(config(name="sam", sam_rho=0), sam.named_parameters()), steps=5)
    train(adam, make_optimizer(config(), adam.named_parameters()), steps=5)
    assert_same(sam, adam)
    assert sam[1].num_batches_tracked.item() == 5


def test_every_evaluation_of_sam_starts_from_the_same_buffers_and_noise_and_only_the_first_is_kept() -> None:
    module = network(dropout=0.5)
    optimizer = make_optimizer(config(name="sam", sam_rho=0.5), module.named_parameters())
    starts, noises, ends = [], [], []

    def reseed() -> None:
        torch.manual_seed(3)

    def loss_fn() -> Tensor:
        starts.append([buffer.clone() for buffer in module.buffers()])
        noises.append(torch.rand(3))
        loss = squared_error(module)()
        ends.append([buffer.clone() for buffer in module.buffers()])
        return loss

    torch.rand(5)  # something else drew before
    descend(optimizer, loss_fn, config(), module.buffers, reseed)
    assert len(starts) == 2
    assert all(torch.equal(one, other) for one, other in zip(*starts, strict=True))
    assert torch.equal(*noises)
    assert not torch.equal(ends[0][0], ends[1][0])
    assert all(torch.equal(one, other) for one, other in zip(module.buffers(), ends[0], strict=True))


def test_a_buffer_that_is_replaced_rather_than_written_is_restored_too() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.count: Tensor
            self.register_buffer("count", torch.zeros(1))

        def forward(self) -> Tensor:
            self.count = self.count + 1
            return (self.count * self.w).sum()

    module = Counter()
    optimizer = make_optimizer(config(name="sam"), module.named_parameters())
    descend(optimizer, module, config(), module.buffers, lambda: None)
    assert module.count.item() == 1
    assert gradient(module.w).item() == 1


def test_sam_skips_parameters_without_a_gradient() -> None:
    parameters = named(used=[1.0], unused=[2.0])
    optimizer = make_optimizer(config(name="sam"), parameters)
    descend(optimizer, lambda: parameters[0][1].square().sum(), config(), list, lambda: None)
    assert parameters[0][1].item() < 1
    assert parameters[1][1].item() == 2


def test_sam_follows_the_learning_rate_that_is_set() -> None:
    (w,) = named(w=[1.0])
    optimizer = make_optimizer(config(name="sam"), [w])
    set_lr(optimizer, None, 0.0)
    descend(optimizer, lambda: w[1].square().sum(), config(), list, lambda: None)
    assert w[1].item() == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "sam"])
def test_a_reloaded_optimizer_goes_on_bit_for_bit(name: str) -> None:
    module = network()
    optimizer = make_optimizer(config(name=name), module.named_parameters())
    train(module, optimizer, steps=3)
    twin = copy.deepcopy(module)
    resumed = make_optimizer(config(name=name, lr=0.5), twin.named_parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, resumed):
        set_lr(each, None, 0.5)
    train(module, optimizer, steps=3)
    train(twin, resumed, steps=3)
    assert_same(module, twin)
