"""The ring of patches: what its pixels say of the class, patch by patch, and what a vote of them is worth."""

from __future__ import annotations

import math

import pytest
import torch

from dgharness.data.digits import bundled_digits
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.synthetic.multi_color_mnist import (
    PALETTE,
    MultiColorOptions,
    framed,
    multi_color_mnist,
    patched,
    ring,
)
from dgharness.errors import UsageError
from dgharness.hparams import checked

N = 12_000


def many(**options):
    """Blank digits of 8 x 8, as many as are needed to measure."""
    labels = torch.arange(N) % 10
    return patched(torch.zeros(N, 8, 8, dtype=torch.uint8), labels, **options)["train"]


def colors(x: torch.Tensor) -> torch.Tensor:
    """The class whose colour each patch has, [N, 32], read from the pixels; -1 for black."""
    row, column = ring()
    cell = x.shape[2] // 9
    pixels = x[:, :, row * cell, column * cell].transpose(1, 2)
    matches = (pixels[:, :, None] == torch.tensor(PALETTE, dtype=torch.uint8)).all(-1)
    return torch.where(matches.any(-1), matches.int().argmax(-1), -1)


def agreement(examples) -> torch.Tensor:
    """For each patch, how often it has the class's colour."""
    return (colors(examples.x) == examples.y_N[:, None]).double().mean(0)


@pytest.mark.parametrize("replaced", [0.0, 0.3, 0.8, 1.0])
def test_every_patch_keeps_the_class_s_colour_as_often_as_it_should(replaced):
    (examples,) = many(replaced=(replaced,)).values()
    expected = (1 - replaced) + replaced / 10
    # 32 patches are compared, so that four standard errors are exceeded once in 500 seeds.
    assert (agreement(examples) - expected).abs().max() < 4 * 0.5 / math.sqrt(N) * (replaced > 0) + 1e-9


def test_each_patch_has_a_strength_of_its_own():
    (examples,) = many(replaced=(0.2,), weakest=0.25).values()
    kept = 0.8 * torch.linspace(1, 0.25, 32, dtype=torch.float64)
    expected = kept + (1 - kept) / 10
    assert (agreement(examples) - expected).abs().max() < 4 * 0.5 / math.sqrt(N)


def test_patches_are_replaced_independently_of_one_another():
    (examples,) = many(replaced=(0.5,)).values()
    agrees = (colors(examples.x) == examples.y_N[:, None]).double()
    correlation = torch.corrcoef(agrees.T) - torch.eye(32)
    assert correlation.abs().max() < 5 / math.sqrt(N)


@pytest.mark.parametrize(
    ("replaced", "of_16", "of_32"),
    [(0.70, 0.889, 0.985), (0.80, 0.702, 0.887), (0.90, 0.394, 0.549)],
)
def test_a_plurality_vote_of_the_patches_is_as_often_right_as_it_must_be(replaced, of_16, of_32):
    for patches, expected in (((0, 16), of_16), ((16, 32), of_16), ((0, 32), of_32)):
        (examples,) = many(replaced=(replaced,), patches=patches).values()
        votes = torch.nn.functional.one_hot(colors(examples.x)[:, slice(*patches)], 10).sum(1)
        right = (votes.argmax(1) == examples.y_N).double().mean().item()
        assert right == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(N))


def test_hidden_patches_are_black_and_the_others_stay():
    (whole,), (part,) = many(replaced=(0.5,)).values(), many(replaced=(0.5,), patches=(16, 32)).values()
    assert (colors(part.x)[:, :16] == -1).all()
    assert torch.equal(colors(part.x)[:, 16:], colors(whole.x)[:, 16:])
    shown = (colors(part.x)[:, 16:] == part.y_N[:, None]).float().mean(1)
    assert torch.allclose(part.attributes["agreement"], shown)


def test_the_digit_stands_in_the_middle_and_the_ring_does_not_touch_it():
    digits = torch.randint(1, 256, (3, 28, 28), dtype=torch.uint8)
    image = framed(digits, torch.zeros(3, 32, dtype=torch.long))
    assert image.shape == (3, 3, 36, 36)
    assert torch.equal(image[:, :, 4:32, 4:32], digits[:, None].expand(-1, 3, -1, -1))
    rim = image.clone()
    rim[:, :, 4:32, 4:32] = 0
    assert torch.equal(rim.sum((2, 3))[0], torch.tensor(PALETTE[0]) * 32 * 16)
    assert framed(digits[:, :8, :8], torch.zeros(3, 32, dtype=torch.long)).shape == (3, 3, 18, 18)


def test_domains_share_out_the_digits():
    digits, labels = bundled_digits()
    generated = patched(digits, labels)
    assert list(generated["train"]) == ["replaced 0%", "replaced 10%", "replaced 80%"]
    assert [len(each.y_N) for each in generated["train"].values()] == [599, 599, 599]
    middles = torch.cat([each.x[:, 0, 5:13, 5:13] for each in generated["train"].values()]).flatten(1)
    assert sorted(map(tuple, middles.tolist())) == sorted(map(tuple, digits.flatten(1).tolist()))


def test_the_seed_decides_everything():
    one, again, other = (patched(*bundled_digits(), seed=seed)["train"]["replaced 80%"] for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_of_the_bundled_digits():
    dataset = multi_color_mnist.load(None, None, 0, MultiColorOptions())
    assert dataset.toy and dataset.input_shape == (3, 18, 18) and dataset.task.outputs == 10
    assert dataset.attributes_M["agreement"].dtype == torch.float32
    assert len(leave_one_domain_out(dataset, ["replaced 80%"], 0).train_domains) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replaced": (0.1, 0.1)}, "must not name a value twice"),
        ({"patches": (8, 8)}, "shows no patch; the first number must be the smaller"),
        ({"patches": (0, 33)}, r"data\.patches.*is not valid"),
        ({"digits": "mnist"}, "multi-color-mnist needs --data-root DIR with MNIST's files in DIR/MNIST/raw"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        multi_color_mnist.load(None, None, 0, checked(MultiColorOptions, options, "data"))
