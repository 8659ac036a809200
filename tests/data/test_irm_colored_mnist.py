"""Colored MNIST as in the IRM paper: which images are trained on and tested, and how they are coloured."""

from __future__ import annotations

import pytest
import torch

from dgharness.data.irm_colored_mnist import IrmColoredMnistOptions, irm_colored_mnist, irm_environments
from dgharness.data.protocols import official
from dgharness.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    """70,000 images that carry their own number in three pixels, and a label each."""
    number = torch.arange(70_000)
    images = torch.zeros(70_000, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 2, 4], images[:, 4, 2] = number // 4096, number // 64 % 64, number % 64
    images[:, 1, 1], images[:, 26, 26] = 7, 255
    return images, (number * 7919) % 10


def numbers(examples):
    """Which images these are, whatever their colour."""
    x = examples.x.long().sum(1)
    return x[:, 0, 0] * 4096 + x[:, 1, 2] * 64 + x[:, 2, 1]


def test_training_images_are_dealt_in_turn_and_the_last_ten_thousand_tested(digits):
    generated = irm_environments(*digits)
    taken = {name: numbers(examples) for name, examples in generated["train"].items()}
    assert list(taken) == ["+80%", "+90%"] and [len(rows) for rows in taken.values()] == [25_000, 25_000]
    assert torch.equal(torch.cat(list(taken.values())).sort().values, torch.arange(50_000))
    assert not torch.equal(taken["+80%"], taken["+80%"].sort().values)  # shuffled
    assert torch.equal(numbers(generated["test"]["-90%"]), torch.arange(50_000, 60_000))
    validated = torch.cat([numbers(examples) for examples in generated["val"].values()])
    assert torch.equal(validated.sort().values, torch.arange(60_000, 70_000))


def test_labels_and_colours_are_wrong_as_often_as_stated(digits):
    generated = irm_environments(*digits)
    for split, rates in {"train": (0.2, 0.1), "val": (0.2, 0.1), "test": (0.9,)}.items():
        for rate, examples in zip(rates, generated[split].values(), strict=True):
            color, digit = examples.attributes["color"], examples.attributes["digit"]
            assert torch.equal(digit, digits[1][numbers(examples)])
            assert (color != examples.y_N).double().mean().item() == pytest.approx(rate, abs=0.015)
            flipped = (digit < 5).long() != examples.y_N
            assert flipped.double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_every_second_pixel_is_kept_in_the_channel_of_the_colour(digits):
    examples = irm_environments(*digits)["test"]["-90%"]
    color = examples.attributes["color"]
    assert examples.x.shape == (10_000, 2, 14, 14) and examples.x.dtype == torch.uint8
    lit = examples.x[torch.arange(10_000), color]
    assert torch.equal(lit, digits[0][50_000:60_000, ::2, ::2])
    assert examples.x[torch.arange(10_000), 1 - color].sum() == 0


def test_grayscale_is_the_same_without_the_colour(digits):
    coloured, gray = (irm_environments(*digits, grayscale=g)["train"]["+90%"] for g in (False, True))
    assert gray.x.shape == (25_000, 1, 14, 14) and torch.equal(gray.y_N, coloured.y_N)
    assert torch.equal(gray.x[:, 0], coloured.x.sum(1).to(torch.uint8))


def test_the_seed_decides_everything(digits):
    one, again, other = (irm_environments(*digits, seed=seed)["train"]["+90%"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.y_N, other.y_N)


def test_as_a_dataset_it_comes_with_its_split(digits, monkeypatch):
    monkeypatch.setattr("dgharness.data.irm_colored_mnist.read_mnist", lambda *arguments: digits)
    dataset = irm_colored_mnist.load(None, None, 0, IrmColoredMnistOptions())
    splits = official(dataset, ["-90%"], 0)
    assert splits.train_domains == ("+80%", "+90%") and not dataset.toy
    assert dataset.defaults.protocol == "official" and dataset.groups == ("y", "color")
    assert dataset.prepare(dataset.reader(torch.tensor([0]))).max() == 1.0


def test_without_the_files_the_message_names_the_option():
    with pytest.raises(UsageError, match="irm-colored-mnist needs --data-root DIR"):
        irm_colored_mnist.load(None, None, 0, IrmColoredMnistOptions())
