"""MNIST from disk: the real thing when it is there, and a clear sentence when it is not."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from dgharness.data.colored_mnist import ColoredMnistOptions, colored_mnist
from dgharness.data.mnist import FILES, read_mnist
from dgharness.data.rotated_mnist import RotatedMnistOptions, rotated_mnist
from dgharness.errors import UsageError


def test_without_a_data_root_the_message_names_the_option_and_the_files():
    with pytest.raises(UsageError, match=r"colored-mnist needs --data-root DIR.*train-images-idx3-ubyte"):
        colored_mnist.load(None, None, 0, ColoredMnistOptions())


def test_missing_files_are_named_with_their_place(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in list(FILES)[:3]:
        (raw / name).touch()
    with pytest.raises(UsageError) as caught:
        rotated_mnist.load(None, tmp_path, 0, RotatedMnistOptions())
    assert "rotated-mnist misses t10k-labels-idx1-ubyte in" in str(caught.value)
    assert str(raw) in str(caught.value) and "data.download=true" in str(caught.value)
    assert "train-images" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(b"\0" * 100)
    with pytest.raises(UsageError, match="train-images-idx3-ubyte is not MNIST's file of 47040016 bytes"):
        read_mnist("colored-mnist", tmp_path)


@pytest.mark.parametrize("failure", [URLError("no route"), RuntimeError("Error downloading\n  x.gz")])
def test_a_failed_download_says_what_to_put_where(tmp_path: Path, monkeypatch, failure):
    def no_network(*arguments, **options):
        raise failure

    monkeypatch.setattr(torchvision.datasets, "MNIST", no_network)
    with pytest.raises(UsageError) as caught:
        read_mnist("colored-mnist", tmp_path, download=True)
    message = str(caught.value)
    assert "could not be downloaded" in message and "t10k-labels-idx1-ubyte" in message
    assert str(tmp_path / "MNIST" / "raw") in message and "\n" not in message


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *a, **k: pytest.fail("it tried to download"))
    with pytest.raises(UsageError):
        read_mnist("colored-mnist", tmp_path)


def test_real_files_read_as_torchvision_reads_them(real_data: Path):
    images, labels = read_mnist("colored-mnist", real_data)
    parts = [torchvision.datasets.MNIST(str(real_data), train=train) for train in (True, False)]
    assert torch.equal(images, torch.cat([part.data for part in parts]))
    assert torch.equal(labels, torch.cat([part.targets for part in parts]))


def test_real_colored_mnist_has_domainbeds_sizes_and_loads_quickly(real_data: Path):
    start = time.perf_counter()
    dataset = colored_mnist.load(None, real_data, 0, ColoredMnistOptions())
    assert time.perf_counter() - start < 4
    assert np.bincount(dataset.domain_M).tolist() == [23_334, 23_333, 23_333]
    assert (dataset.input_shape, dataset.defaults.model, dataset.toy) == ((2, 28, 28), "mnist-cnn", False)
    rows = torch.from_numpy(dataset.rows_of("-90%"))
    agree = dataset.targets_M[rows] == dataset.attributes_M["color"][rows]
    assert agree.float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_real_rotated_mnist_has_six_domains(real_data: Path):
    dataset = rotated_mnist.load(None, real_data, 0, RotatedMnistOptions())
    assert dataset.input_shape == (1, 28, 28)
    assert np.bincount(dataset.domain_M).tolist() == [11_667] * 4 + [11_666] * 2
