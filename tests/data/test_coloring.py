"""The coloured digits: what is drawn, with which rates, from which stream."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dgharness.data.colored_digits import colored_digits
from dgharness.data.coloring import ColoringOptions, colored, domain_names
from dgharness.data.dataset import Defaults
from dgharness.data.digits import BRIGHTEST, bundled_digits
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.seeds import generator

N = 30_000


@pytest.fixture(scope="module")
def many():
    """Enough one-pixel digits to measure rates; the pixel is 1 + the position, so that it can be traced."""
    digits_NHW = (torch.arange(N) % 251 + 1).to(torch.uint8).reshape(N, 1, 1)
    labels_N = torch.arange(N) % 10
    return colored("many", digits_NHW, labels_N, generator(0, "generation"), ColoringOptions(), Defaults())


def codes(dataset, column):
    return dataset.manifest[column].cat.codes.to_numpy()


def test_domains_are_named_by_how_often_the_colour_tells_the_truth(many):
    assert many.domains == ("+90%", "+80%", "-90%")


def test_a_quarter_of_the_labels_is_wrong_in_every_domain(many):
    wrong = codes(many, "y") != (codes(many, "digit") < 5)
    for name in many.domains:
        assert wrong[many.rows_of(name)].mean() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize(("domain", "rate"), [("+90%", 0.1), ("+80%", 0.2), ("-90%", 0.9)])
def test_the_colour_disagrees_with_the_label_at_the_domains_rate(many, domain, rate):
    rows = many.rows_of(domain)
    disagrees = codes(many, "y")[rows] != codes(many, "color")[rows]
    assert disagrees.mean() == pytest.approx(rate, abs=0.015)


def test_only_the_channel_of_the_colour_is_lit(many):
    x = many.reader(torch.arange(N))[:, :, 0, 0]
    color_N = torch.from_numpy(codes(many, "color").astype(np.int64))
    assert (x[torch.arange(N), color_N] > 0).all()
    assert (x[torch.arange(N), 1 - color_N] == 0).all()


def test_one_permutation_deals_every_digit_to_one_domain(many):
    order = torch.randperm(N, generator=generator(0, "generation"))
    dealt = torch.cat([order[i::3] for i in range(3)])
    assert np.array_equal(codes(many, "digit"), dealt % 10)
    assert torch.equal(many.reader(torch.arange(N)).amax((1, 2, 3)), (dealt % 251 + 1).to(torch.uint8))


def test_the_same_trial_gives_the_same_data_and_another_trial_other_data():
    load = colored_digits.load
    first, again, other = (load(None, None, seed, ColoringOptions()) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    rows = torch.arange(len(first.manifest))
    assert torch.equal(first.reader(rows), again.reader(rows))
    assert not torch.equal(first.reader(rows), other.reader(rows))


def test_no_global_random_state_is_read_or_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = colored_digits.load(None, None, 0, ColoringOptions())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert colored_digits.load(None, None, 0, ColoringOptions()).digest == first.digest


def test_colored_digits_are_the_bundled_digits_in_two_channels():
    dataset = colored_digits.load(None, None, 0, ColoringOptions())
    assert (dataset.toy, dataset.input_shape, dataset.groups) == (True, (2, 8, 8), ("y", "color"))
    assert list(dataset.manifest.columns) == ["y", "domain", "color", "digit"]
    x = dataset.prepare(dataset.reader(torch.arange(1797)))
    assert x.dtype == torch.float32 and x.min() == 0 and x.max() == 1
    assert np.bincount(codes(dataset, "domain")).tolist() == [599, 599, 599]


def test_the_bundled_digits_are_scikit_learns():
    images, labels = bundled_digits()
    theirs = load_digits()
    assert torch.equal(labels, torch.from_numpy(theirs.target))
    np.testing.assert_allclose(images.numpy() / 255, theirs.images / BRIGHTEST, atol=0.5 / 255)


def test_colored_digits_load_in_a_fraction_of_a_second():
    start = time.perf_counter()
    colored_digits.load(None, None, 0, ColoringOptions())
    assert time.perf_counter() - start < 0.5


def test_rates_can_be_chosen():
    options = ColoringOptions(label_noise=0, color_noise=(0, 1))
    dataset = colored_digits.load(None, None, 0, options)
    y, color = codes(dataset, "y"), codes(dataset, "color")
    assert np.array_equal(y, codes(dataset, "digit") < 5)
    assert np.array_equal(y != color, codes(dataset, "domain") == 1)
    assert dataset.domains == ("+100%", "-100%")


def test_two_domains_of_one_name_are_refused():
    with pytest.raises(UsageError, match=r"data\.color_noise=\(0\.1, 0\.1\).*none twice"):
        domain_names([0.1, 0.1])


def test_a_noise_that_is_no_probability_is_refused():
    with pytest.raises(UsageError, match=r"data\.label_noise=1\.5 is not valid"):
        checked(ColoringOptions, {"label_noise": 1.5}, "data")
