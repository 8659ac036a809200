"""The simple moving average of the weights."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from dgharness.training.averaging import SimpleMovingAverage


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def walk(module: nn.Module, seed: int) -> None:
    """Another set of weights, statistics and counts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    module.train()(torch.randn(8, 3))


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_average_of_equal_weights_is_those_weights() -> None:
    module = network()
    average = SimpleMovingAverage(module, start=2)
    for t in range(1, 20):
        average.update(module, t)
    assert_same(average.module.state_dict(), module.state_dict())


def test_before_the_start_the_average_follows_the_weights() -> None:
    module = network()
    average = SimpleMovingAverage(module, start=4)
    for t in range(1, 4):
        walk(module, t)
        average.update(module, t)
        assert_same(average.module.state_dict(), module.state_dict())
    assert average.count == 1


def test_from_the_start_it_is_the_mean_of_all_weights_since_the_last_copy_statistics_included() -> None:
    module, start, last = network(), 3, 9
    average, iterates = SimpleMovingAverage(module, start), {}
    for t in range(1, last + 1):
        walk(module, t)
        average.update(module, t)
        iterates[t] = snapshot(module)
    taken = [iterates[t] for t in range(start - 1, last + 1)]
    assert average.count == len(taken)
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in taken]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-6)
    assert "1.running_var" in average.module.state_dict()


def test_counters_are_copied_and_not_averaged() -> None:
    module = network()
    average = SimpleMovingAverage(module, start=1)
    for t in range(1, 6):
        walk(module, t)
        average.update(module, t)
    seen = average.module.get_buffer("1.num_batches_tracked")
    assert seen.item() == 5 and seen.dtype == torch.long


def test_averaging_leaves_the_trained_module_alone_and_does_not_train() -> None:
    module = network()
    before = snapshot(module)
    average = SimpleMovingAverage(module, start=1)
    average.update(module, 1)
    with torch.no_grad():
        average.module.get_parameter("0.weight").zero_()
    assert_same(module.state_dict(), before)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


@pytest.mark.parametrize("stop", [2, 6])
def test_a_reloaded_average_goes_on_bit_for_bit(stop: int) -> None:
    module = network()
    average = SimpleMovingAverage(module, start=4)
    for t in range(1, stop + 1):
        walk(module, t)
        average.update(module, t)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = SimpleMovingAverage(network(seed=99), start=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for t in range(stop + 1, 10):
        walk(module, t)
        average.update(module, t)
        resumed.update(module, t)
    assert resumed.count == average.count
    assert_same(resumed.module.state_dict(), average.module.state_dict())
