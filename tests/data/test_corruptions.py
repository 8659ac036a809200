"""Common corruptions: what each does, how hard, and that an image is corrupted alike in every batch."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dgharness.data import filters
from dgharness.data.corruptions import (
    CORRUPTIONS,
    PARAMETERS,
    SEVERITIES,
    Streams,
    corrupt,
    elastic_transform,
)
from dgharness.errors import UsageError
from dgharness.seeds import generator

# Their tables trade one kind of distortion for another, shifts for blur or texture for cover, so that
# squared error does not order them.
NOT_ORDERED = {"glass-blur", "elastic-transform", "frost"}
# So like the severity before them (a wider kernel of the same standard deviation; fewer but larger flakes)
# that the angles and flakes which happen to be drawn decide.
ALIKE = {("motion-blur", 32, 4), ("snow", 80, 3)}
DRAWN = set(CORRUPTIONS) - {
    "defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "jpeg-compression"
}  # fmt: skip


def pictures(count: int, side: int) -> torch.Tensor:
    """Clouds of colour with edges: smooth in most places, as photographs are."""
    stream = generator(0, "pictures")

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count * 3, *shape, generator=stream)

    clouds = filters.fractal(uniform, count * 3, (side, side), 1.6).reshape(count, 3, side, side)
    clouds = torch.where(clouds[:, :1] > 0.5, clouds, 1 - 0.8 * clouds)
    return (clouds * 255).round().to(torch.uint8)


def distortion(x: torch.Tensor, y: torch.Tensor) -> float:
    return (x.double() - y.double()).square().mean().item()


@pytest.mark.parametrize("side", [8, 32, 80])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_row_is_corrupted_alike_in_every_batch(corruption, side):
    x, rows = pictures(7, side), [3, 11, 4, 1000, 0, 6, 7]
    for severity in SEVERITIES:
        together = corrupt(x, rows, corruption, severity)
        assert together.shape == x.shape and together.dtype == torch.uint8
        torch.manual_seed(severity)  # nothing is drawn from the global generator
        for batch in ([5], [4, 3, 0], [6, 5, 4, 3, 2, 1, 0]):
            alone = corrupt(x[batch], [rows[i] for i in batch], corruption, severity)
            assert torch.equal(alone, together[batch])


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_rows_and_severities_draw_numbers_of_their_own(corruption):
    x = pictures(1, 32).expand(2, -1, -1, -1)
    first, second = corrupt(x, [0, 1], corruption, 5)
    assert torch.equal(first, second) == (corruption not in DRAWN)
    assert not torch.equal(first, x[0])


@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("corruption", [name for name in CORRUPTIONS if name not in NOT_ORDERED])
def test_a_higher_severity_distorts_more(corruption, side):
    x = pictures(60, side)
    ordered = [severity for severity in SEVERITIES if (corruption, side, severity) not in ALIKE]
    found = [distortion(x, corrupt(x, range(60), corruption, severity)) for severity in ordered]
    assert found == sorted(set(found)) and found[0] > 0


@pytest.mark.parametrize("side", [32, 80])
@pytest.mark.parametrize("corruption", sorted(NOT_ORDERED))
def test_where_squared_error_does_not_order_the_severities_each_still_distorts(corruption, side):
    x = pictures(20, side)
    found = [distortion(x, corrupt(x, range(20), corruption, severity)) for severity in SEVERITIES]
    assert min(found) > 1 and len(set(found)) == 5


# --- what each of them does ------------------------------------------------------------------------


def test_small_images_take_the_parameters_of_cifar_10_c():
    x = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    wide = torch.full((1, 3, 65, 64), 100, dtype=torch.uint8)
    for image, table in ((x, "cifar-10-c"), (wide, "imagenet-c")):
        added = round(255 * PARAMETERS[table]["brightness"][3])
        assert (corrupt(image, [0], "brightness", 4) == 100 + added).all()
        assert torch.equal(corrupt(image, [0], "brightness", 4, table), corrupt(image, [0], "brightness", 4))
    assert not torch.equal(corrupt(x, [0], "brightness", 4, "imagenet-c"), corrupt(x, [0], "brightness", 4))


@pytest.mark.parametrize("table", PARAMETERS)
def test_every_corruption_has_five_severities(table):
    assert list(PARAMETERS[table]) == list(CORRUPTIONS)
    assert {len(parameters) for parameters in PARAMETERS[table].values()} == {5}


def test_gaussian_noise_has_the_standard_deviation_of_its_table():
    x = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    noise = corrupt(x, [0], "gaussian-noise", 1, "imagenet-c").double() - 128
    assert noise.std().item() == pytest.approx(0.08 * 255, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.5)


def test_shot_noise_has_the_mean_and_variance_of_photon_counts():
    x = torch.full((1, 3, 128, 128), 51, dtype=torch.uint8)  # 0.2 of 255
    y = corrupt(x, [0], "shot-noise", 1, "imagenet-c").double() / 255
    assert y.mean().item() == pytest.approx(0.2, rel=0.01)
    assert y.var().item() == pytest.approx(0.2 / 60, rel=0.05)


def test_impulse_noise_turns_its_share_of_the_colours_black_or_white_alike():
    x = torch.full((1, 3, 128, 128), 99, dtype=torch.uint8)
    y = corrupt(x, [0], "impulse-noise", 5, "imagenet-c")
    assert set(y.unique().tolist()) == {0, 99, 255}
    for colour in (0, 255):
        assert (y == colour).double().mean().item() == pytest.approx(0.27 / 2, rel=0.05)


def test_smoothing_is_scipys_gaussian_filter():
    x = torch.rand(2, 3, 20, 30)
    for sigma in (0.25, 1.1, 6.0):
        expected = ndimage.gaussian_filter(
            x.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4
        )
        np.testing.assert_allclose(filters.blurred(x, sigma), expected, atol=1e-6)
    wide = ndimage.gaussian_filter(x.double().numpy(), (0, 0, 40, 40), mode="reflect", truncate=3)
    np.testing.assert_allclose(filters.blurred(x, 40, 3, filters.mirrored), wide, atol=1e-6)


def test_defocus_blur_is_a_convolution_mirrored_at_the_border():
    x = torch.rand(1, 3, 12, 17)
    kernel = torch.rand(5, 5, dtype=torch.float64)
    kernel = kernel + kernel.flip(0, 1)
    expected = ndimage.convolve(x[0].double().numpy(), kernel[None].numpy(), mode="mirror")
    np.testing.assert_allclose(filters.filtered(x, kernel)[0], expected, atol=1e-5)
    black = torch.zeros(1, 3, 41, 41, dtype=torch.uint8)
    black[:, :, 20, 20] = 255
    disk = corrupt(black, [0], "defocus-blur", 3, "imagenet-c")[0, 0].double() / 255  # of radius 6
    place = torch.arange(41) - 20
    distance = (place[:, None] ** 2 + place**2).double().sqrt()
    assert (disk[distance < 5] == disk[20, 20]).all() and (disk[distance > 7.5] == 0).all()


def test_zoom_is_scipys_of_the_middle_of_the_image():
    x = torch.rand(1, 1, 30, 30)
    for factor in (1.0, 1.07, 1.3, 2.5):
        inner = int(np.ceil(30 / factor))
        top = (30 - inner) // 2
        large = ndimage.zoom(x[0, 0, top : top + inner, top : top + inner].double().numpy(), factor, order=1)
        cut = (len(large) - 30) // 2
        found = filters.zoomed(x, factor)[0, 0]
        np.testing.assert_allclose(found, large[cut : cut + 30, cut : cut + 30], atol=1e-5)


def test_motion_blur_trails_in_the_direction_of_the_angle():
    x = torch.zeros(2, 1, 21, 21)
    x[:, :, 10, 10] = 1
    across, down = filters.smeared(x, 3, 2.0, torch.tensor([0.0, 90.0]))[:, 0]
    weights = np.exp(-0.5 * (np.arange(7) / 2.0) ** 2)
    # A pixel takes the colours ahead of it, so that a point trails the other way.
    np.testing.assert_allclose(across[10, 4:11].flip(0), weights / weights.sum(), atol=1e-6)
    np.testing.assert_allclose(down[4:11, 10].flip(0), weights / weights.sum(), atol=1e-6)
    assert across.sum().item() == pytest.approx(1) and (across[:10] == 0).all() and (across[11:] == 0).all()


def test_brightness_is_more_value_in_hsv():
    x = pictures(1, 8)
    y = corrupt(x, [0], "brightness", 4, "imagenet-c")
    for place in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[0, :, *place] / 255).tolist())
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.4, 1)))
        np.testing.assert_allclose(y[0, :, *place], expected, atol=0.51)


def test_contrast_shrinks_towards_the_mean_of_each_channel():
    x = pictures(2, 16)
    mean = x.double().mean((2, 3), keepdim=True)
    expected = (mean + 0.3 * (x - mean)).round()
    assert (corrupt(x, [0, 1], "contrast", 2, "imagenet-c") - expected).abs().max() <= 1


def test_fog_is_never_brighter_than_the_brightest_colour():
    x = (pictures(4, 32) // 2).clamp(max=120)
    assert (corrupt(x, range(4), "fog", 5).amax((1, 2, 3)) <= x.amax((1, 2, 3))).all()


def test_the_affine_part_of_the_elastic_transform_takes_its_corners_where_they_were_drawn():
    x = torch.zeros(1, 1, 30, 30)
    x[:, :, 25, 25] = 1  # one of the corners: 30 // 2 + 30 // 3
    moved = elastic_transform(x, (0.0, 1.0, 4.0), streams(1))
    (row, column) = (moved[0, 0] == moved.max()).nonzero()[0].tolist()
    drawn = streams(1).uniform(-4, 4, 3, 2)[0, 0]
    assert [column, row] == pytest.approx((25 + drawn).tolist(), abs=1)
    same = elastic_transform(x, (0.0, 1.0, 0.0), streams(1))
    torch.testing.assert_close(same, x, atol=1e-4, rtol=0)


def test_pixelate_averages_squares_as_pillow_does():
    x = pictures(3, 32)
    for severity, share in enumerate(PARAMETERS["imagenet-c"]["pixelate"], start=1):
        y = corrupt(x, range(3), "pixelate", severity, "imagenet-c")
        for before, after in zip(x, y, strict=True):
            image = Image.fromarray(before.permute(1, 2, 0).numpy())
            small = image.resize((int(32 * share),) * 2, Image.Resampling.BOX)
            expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX), dtype=int)
            assert np.abs(after.permute(1, 2, 0).numpy() - expected).max() <= 2  # it rounds after each axis


def test_jpeg_is_that_of_pillow_at_the_quality_of_the_table():
    x = pictures(1, 48)
    file = io.BytesIO()
    Image.fromarray(x[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file))
    assert (corrupt(x, [0], "jpeg-compression", 5)[0].permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_fractal_noise_spans_0_to_1_and_is_smoother_the_larger_its_decay(channels):
    rough, smooth = (
        filters.fractal(streams(4 * channels).uniform, 4 * channels, (20, 33), decay) for decay in (1.1, 3.0)
    )
    for noise in (rough, smooth):
        assert noise.shape == (4 * channels, 20, 33) and noise.min() >= 0 and noise.max() <= 1
    assert smooth.diff(dim=-1).abs().mean() < rough.diff(dim=-1).abs().mean() / 3


def streams(count: int) -> Streams:
    return Streams(tuple(generator(0, "test", row) for row in range(count)))


# --- mistakes --------------------------------------------------------------------------------------


def test_an_unknown_corruption_or_severity_is_a_usage_error():
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UsageError, match="no corruption 'gausian-noise'; did you mean 'gaussian-noise'"):
        corrupt(x, [0], "gausian-noise", 1)
    with pytest.raises(UsageError, match="severities 1 to 5, and not 6"):
        corrupt(x, [0], "fog", 6)
