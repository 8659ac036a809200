"""PovertyMap's replicates and its augmentation, against torchvision one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import wilds_images
from torchvision.transforms import functional as reference

from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.wilds.poverty import augment_visible, in_bytes
from dgharness.seeds import generator
from dgharness.training.prepare import load_dataset

RGB = [2, 1, 0]
CHANGES = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("poverty")
    wilds_images.poverty(root)
    return root


def poverty(root: Path, seed: int = 0, *sets: str) -> Dataset:
    config = compose(sets=["data.name=wilds:poverty", *(f"data.{each}" for each in sets)])
    return load_dataset(config.data, str(root), seed)


def images(n: int = 12, side: int = 10) -> torch.Tensor:
    """Normalised bands."""
    return torch.randn(n, 8, side, side, generator=generator(0, "test"))


# --- replicates ------------------------------------------------------------------------------------


def test_the_trial_seeds_take_the_folds_in_turn_unless_one_is_asked_for(root: Path):
    held_out = [
        frozenset(dataset.manifest.loc[dataset.manifest["split"] == "test", "country"])
        for dataset in (poverty(root, seed) for seed in range(6))
    ]
    assert len(set(held_out[:5])) == 5 and held_out[5] == held_out[0]
    for fold, countries in zip("ABCDE", held_out, strict=False):
        manifest = poverty(root, 3, f"fold={fold}").manifest
        assert frozenset(manifest.loc[manifest["split"] == "test", "country"]) == countries


# --- augmentation ----------------------------------------------------------------------------------


def test_training_augments_unless_told_otherwise(root: Path):
    assert poverty(root).augment is augment_visible
    assert poverty(root, 0, "augment=false").augment is None


def test_a_band_becomes_the_bytes_that_torchvision_makes_of_it():
    x_N3HW = 3 * images()[:, :3]
    expected = torch.stack([reference.to_tensor(reference.to_pil_image(x)) for x in x_N3HW])
    torch.testing.assert_close(in_bytes(x_N3HW), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_image_is_mirrored_and_recoloured_as_torchvision_does_with_what_was_drawn_for_it(seed: int):
    x_N8HW, stream = images(), generator(seed, "augmentation")
    augmented_N8HW = augment_visible(x_N8HW, generator(seed, "augmentation"))
    draws_N6 = torch.rand(len(x_N8HW), 6, generator=stream)
    order = torch.randperm(4, generator=stream).tolist()
    lowest, width = torch.tensor([0.2, 0.2, 0.2, -0.1]), torch.tensor([1.6, 1.6, 1.6, 0.2])
    for x, augmented, drawn in zip(x_N8HW, augmented_N8HW, draws_N6, strict=True):
        expected = in_bytes(x[RGB])
        expected = reference.hflip(expected) if drawn[4] < 0.5 else expected
        expected = reference.vflip(expected) if drawn[5] < 0.5 else expected
        for change in order:
            factor = (lowest + width * drawn[:4])[change].item()
            expected = CHANGES[change](expected, factor)
        torch.testing.assert_close(augmented[RGB], expected, atol=1e-5, rtol=0)
    assert set(np.sign(draws_N6[:, 4:].numpy() - 0.5).flatten()) == {-1, 1}


def test_the_other_bands_and_the_batch_itself_stay_as_they_are():
    x = images()
    before = x.clone()
    augmented = augment_visible(x, generator(0, "augmentation"))
    assert torch.equal(x, before) and torch.equal(augmented[:, 3:], x[:, 3:])
    assert augmented.shape == x.shape and augmented[:, :3].min() >= 0 and augmented[:, :3].max() <= 1


def test_half_of_the_images_are_mirrored_in_either_direction():
    x = torch.zeros(4000, 8, 2, 2)
    x[:, :3, 0, 1] = 0.5  # light in one corner
    light = augment_visible(x, generator(0, "augmentation"))[:, :3].sum(1).flatten(1).argmax(1)
    shares = torch.bincount(light, minlength=4) / len(x)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_the_same_generator_gives_the_same_images():
    first, again, other = (augment_visible(images(), generator(seed, "augmentation")) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
