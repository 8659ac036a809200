"""The rotated digits: the angles, and torchvision's rotation as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate as torchvision_rotate

from dgharness.data.digits import bundled_digits
from dgharness.data.rotated_digits import rotated_digits
from dgharness.data.rotating import RotatingOptions, rotate
from dgharness.errors import UsageError
from dgharness.seeds import generator


@pytest.mark.parametrize("angle", [15, 30, 45, 60, 75, 90, -20])
@pytest.mark.parametrize("side", [8, 28])
def test_rotation_is_torchvisions(angle, side):
    x = torch.randint(0, 256, (40, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = torchvision_rotate(x[:, None], angle, InterpolationMode.BILINEAR)[:, 0]
    # Values within rounding of one half may fall to either side.
    difference = (rotate(x, angle).int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


def test_zero_degrees_changes_nothing():
    images, _ = bundled_digits()
    assert torch.equal(rotate(images, 0), images)


def test_every_domain_holds_its_own_sixth_rotated_by_its_angle():
    dataset = rotated_digits.load(None, None, 3, RotatingOptions())
    images, labels = bundled_digits()
    order = torch.randperm(len(images), generator=generator(3, "generation"))
    assert dataset.domains == ("0", "15", "30", "45", "60", "75")
    for number, name in enumerate(dataset.domains):
        rows = torch.from_numpy(dataset.rows_of(name))
        expected = rotate(images[order[number::6]], float(name))
        assert torch.equal(dataset.reader(rows)[:, 0], expected)
        assert torch.equal(dataset.targets_M[rows], labels[order[number::6]])


def test_rotated_digits_are_a_toy_of_ten_classes_and_one_channel():
    dataset = rotated_digits.load(None, None, 0, RotatingOptions())
    assert (dataset.toy, dataset.input_shape, dataset.task.outputs) == (True, (1, 8, 8), 10)
    x = dataset.prepare(dataset.reader(torch.arange(1797)))
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert np.bincount(dataset.domain_M).tolist() == [300, 300, 300, 299, 299, 299]


def test_an_angle_named_twice_is_refused():
    with pytest.raises(UsageError, match=r"data\.angles=\(0\.0, 0\.0\).*none twice"):
        rotated_digits.load(None, None, 0, RotatingOptions(angles=(0, 0)))
