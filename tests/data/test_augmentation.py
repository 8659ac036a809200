"""Batched augmentation against torchvision's one image at a time."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as reference

from dgharness.data import augmentation
from dgharness.data.augmentation import augment, crop, crop_boxes
from dgharness.seeds import generator

X = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))


def raw(n=16, side=24):
    return torch.randint(0, 256, (n, 3, side, side), generator=generator(0, "test")).to(torch.uint8)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (augmentation.brighten, reference.adjust_brightness, 0.7, 1.3),
        (augmentation.contrast, reference.adjust_contrast, 0.7, 1.3),
        (augmentation.saturate, reference.adjust_saturation, 0.7, 1.3),
        (augmentation.shift_hue, reference.adjust_hue, -0.3, 0.3),
    ],
)
def test_every_colour_change_is_torchvisions_with_a_factor_per_image(ours, theirs, low, high):
    factors = torch.linspace(low, high, len(X))
    expected = torch.stack([theirs(x, factor.item()) for x, factor in zip(X, factors, strict=True)])
    torch.testing.assert_close(ours(X, factors[:, None, None, None]), expected, atol=1e-5, rtol=0)


def test_the_hue_of_gray_and_of_ties_is_torchvisions():
    levels = torch.tensor([0.0, 0.5, 1.0])
    x = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 1)
    ours = augmentation.shift_hue(x, torch.full((1, 1, 1, 1), 0.2))
    torch.testing.assert_close(ours, reference.adjust_hue(x, 0.2), atol=1e-5, rtol=0)


def test_luminance_is_torchvisions():
    torch.testing.assert_close(augmentation.luminance(X), reference.rgb_to_grayscale(X), atol=1e-6, rtol=0)


def test_a_crop_is_torchvisions_resized_crop():
    boxes = torch.tensor([[0.1, 0.2, 0.8, 0.75], [0.0, 0.0, 1.0, 1.0]])  # left, top, width, height
    ours = crop(X[:2], boxes, torch.zeros(2))
    expected = reference.resized_crop(X[0], 4, 2, 15, 16, [20, 20], antialias=False)
    torch.testing.assert_close(ours[0, :, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], X[1], atol=1e-5, rtol=0)


def test_a_flip_mirrors_the_crop():
    boxes = crop_boxes(torch.rand(6, 22, generator=generator(0, "test")))
    plain, mirrored = crop(X, boxes, torch.zeros(6)), crop(X, boxes, torch.ones(6))
    torch.testing.assert_close(mirrored, plain.flip(3), atol=1e-4, rtol=0)


def test_crops_lie_inside_with_the_asked_area_and_ratio():
    left, top, width, height = crop_boxes(torch.rand(5000, 22, generator=generator(0, "t"))).unbind(1)
    whole = (width == 1) & (height == 1)
    area, ratio = (width * height)[~whole], (width / height)[~whole]
    assert (left >= 0).all() and (left + width <= 1 + 1e-6).all()
    assert (top >= 0).all() and (top + height <= 1 + 1e-6).all()
    assert area.min() >= 0.7 - 1e-5 and area.max() <= 1 + 1e-5
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    assert whole.float().mean() < 0.01


def test_the_same_generator_gives_the_same_images_and_leaves_the_input_alone():
    x = raw()
    before = x.clone()
    first, again, other = (augment(x, generator(seed, "augmentation")) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(x, before)


def test_the_result_has_the_shape_and_range_of_raw_images():
    result = augment(raw(), generator(0, "augmentation"))
    assert result.shape == (16, 3, 24, 24) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 255 and result.max() > 100


@pytest.fixture
def threads():
    """Sets the number of PyTorch's threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_nothing_but_the_speed(threads):
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(augment(raw(6, side=224), generator(0, "augmentation")))
        assert torch.get_num_threads() == count
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_float_image_is_left_alone():
    x = raw().float()
    before = x.clone()
    augment(x, generator(0, "augmentation"))
    assert torch.equal(x, before)


def test_an_image_does_not_depend_on_its_neighbours():
    x = raw(9)
    others = torch.cat([x[:5], 255 - x[5:]])
    first, second = (augment(batch, generator(0, "augmentation")) for batch in (x, others))
    assert torch.equal(first[:5], second[:5])


def test_a_tenth_becomes_gray_and_half_is_mirrored():
    x = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)
    x[:, 0, :, 1] = 200  # red on the right
    result = augment(x, generator(0, "augmentation"))
    gray = (result.amax(1) - result.amin(1)).amax((1, 2)) < 1e-3
    mirrored = (result.amax(1)[:, :, 0] > result.amax(1)[:, :, 1]).all(1)
    assert gray.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)
