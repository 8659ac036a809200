"""Dominoes: which halves go together and how often, from the bundled digits and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dgharness.data.digits import bundled_digits
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.synthetic.dominoes import CIFAR_FILES, DominoesOptions, dominoes, halves, tiled
from dgharness.errors import UsageError


def numbered(n: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one pixel that say which they are, labelled 0 and 1 in turn."""
    return first + torch.arange(n)[:, None, None, None], torch.arange(n) % 2


def tops_and_bottoms(examples) -> tuple[torch.Tensor, torch.Tensor]:
    return examples.x[:, 0, 0, 0], examples.x[:, 0, 1, 0]


@pytest.mark.parametrize("correlation", [1.0, 0.8, 0.5, 0.0, -0.9, -1.0])
def test_the_upper_half_correlates_with_the_label_as_asked(correlation):
    (examples,) = tiled(numbered(50, 0), numbered(2000, 100), (correlation,))["train"].values()
    top, y = examples.attributes["top"], examples.y_N
    assert (top == y).sum().item() == round(2000 * (1 + correlation) / 2)
    signs = torch.stack([top, y]).double()
    # Only that as many agree is exact; that they are as many of either class is chance.
    assert torch.corrcoef(signs)[0, 1].item() == pytest.approx(correlation, abs=0.01)


def test_at_correlation_0_the_upper_half_says_nothing_of_the_label():
    (examples,) = tiled(numbered(50, 0), numbered(4000, 100), (0.0,))["train"].values()
    for label in (0, 1):
        share = examples.attributes["top"][examples.y_N == label].double().mean().item()
        assert share == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def test_halves_are_the_images_they_should_be():
    upper, lower = numbered(50, 0), numbered(300, 100)
    for examples in tiled(upper, lower)["train"].values():
        top, bottom = tops_and_bottoms(examples)
        assert torch.equal(top % 2, examples.attributes["top"])
        assert torch.equal((bottom - 100) % 2, examples.y_N)


def test_no_image_is_in_two_domains_and_every_lower_one_is_used_once():
    generated = tiled(numbered(60, 0), numbered(300, 100))
    tops, bottoms = zip(*map(tops_and_bottoms, generated["train"].values()), strict=True)
    assert sorted(torch.cat(bottoms).tolist()) == list(range(100, 400))
    for number, own in enumerate(tops):
        others = torch.cat([*tops[:number], *tops[number + 1 :]])
        assert not set(own.tolist()) & set(others.tolist())
        assert len(own.unique()) > 15  # of the twenty that this domain has


def test_bundled_digits_are_0_and_1_above_7_and_9():
    digits, labels = bundled_digits()
    upper, lower = halves("digits", None)
    assert torch.equal(upper[0][upper[1] == 1][:, 0], digits[labels == 1])
    assert torch.equal(lower[0][lower[1] == 0][:, 0], digits[labels == 7])
    assert torch.equal(lower[0][lower[1] == 1][:, 0], digits[labels == 9])


def write_idx(folder: Path, labels_of: dict[int, int]) -> None:
    """Files in MNIST's format: images of the number of their row, labels 9 but for those given."""
    folder.mkdir(parents=True)
    for name, rows in (("train", 60_000), ("t10k", 10_000)):
        labels = np.full(8 + rows, 9, dtype=np.uint8)
        for row, label in labels_of.items():
            labels[8 + row] = label
        labels.tofile(folder / f"{name}-labels-idx1-ubyte")
        with open(folder / f"{name}-images-idx3-ubyte", "wb") as file:
            file.truncate(16 + rows * 784)  # a hole: zeros that take no space
            for row in labels_of:
                file.seek(16 + row * 784)
                file.write(bytes([10 * labels_of[row] + 1] * 784))


def write_cifar(folder: Path) -> None:
    """The binary files: aeroplanes, but for two cars of brightness 50 and two trucks of 90 in each."""
    folder.mkdir()
    for name in CIFAR_FILES:
        with open(folder / name, "wb") as file:
            file.truncate(10_000 * 3073)
            for row, label in ((3, 1), (4, 9), (7, 1), (9, 9)):
                file.seek(row * 3073)
                file.write(bytes([label] + [{1: 50, 9: 90}[label]] * 3072))


def test_clothes_and_vehicles_are_read_from_their_files(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", {row: row % 2 for row in range(40)})
    write_idx(tmp_path / "FashionMNIST" / "raw", {row: 3 + row % 2 for row in range(20)})
    write_cifar(tmp_path / "cifar-10-batches-bin")

    clothes = dominoes.load(None, tmp_path, 0, DominoesOptions(lower="fashion-mnist"))
    assert clothes.input_shape == (1, 56, 28) and len(clothes.manifest) == 40
    assert list(clothes.manifest["y"].cat.categories) == ["dress", "coat"]
    x = clothes.reader(torch.arange(40))
    assert torch.equal(x[:, 0, 0, 0].long(), 1 + 10 * clothes.attributes_M["top"])
    assert torch.equal(x[:, 0, 28, 0].long(), 31 + 10 * clothes.targets_M)

    vehicles = dominoes.load(None, tmp_path, 0, DominoesOptions(lower="cifar-10"))
    assert vehicles.input_shape == (3, 64, 32) and len(vehicles.manifest) == 24
    x = vehicles.reader(torch.arange(24))
    assert (x[:, :, :2] == 0).all() and torch.equal(
        x[:, 2, 2, 2].long(), 1 + 10 * vehicles.attributes_M["top"]
    )
    assert torch.equal(x[:, 1, 32, 0].long(), 50 + 40 * vehicles.targets_M)


def test_missing_and_damaged_files_are_named(tmp_path):
    def load(lower, root=tmp_path):
        return dominoes.load(None, root, 0, DominoesOptions(lower=lower))

    with pytest.raises(
        UsageError, match="dominoes needs --data-root DIR with MNIST's files in DIR/MNIST/raw"
    ):
        load("cifar-10", None)
    write_idx(tmp_path / "MNIST" / "raw", {0: 0, 1: 1})
    with pytest.raises(UsageError, match=r"misses train-images-idx3-ubyte, .* in .*FashionMNIST/raw"):
        load("fashion-mnist")
    with pytest.raises(
        UsageError, match=r"misses data_batch_1\.bin, .*; unpack the binary version of CIFAR-10"
    ):
        load("cifar-10")
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"data_batch_3\.bin is not CIFAR-10's file of 30730000 bytes"):
        load("cifar-10")


def test_the_seed_decides_everything():
    one, again, other = (
        tiled(*halves("digits", None), seed=s)["train"]["correlation 0.8"] for s in (0, 0, 1)
    )
    assert torch.equal(one.x, again.x) and not torch.equal(one.x, other.x)


def test_as_a_dataset_groups_are_label_by_upper_half():
    dataset = dominoes.load(None, None, 0, DominoesOptions())
    assert dataset.domains == ("correlation 1", "correlation 0.8", "correlation 0")
    assert dataset.toy and dataset.input_shape == (1, 16, 8) and dataset.groups == ("y", "top")
    assert len(leave_one_domain_out(dataset, ["correlation 0"], 0).train_domains) == 2


def test_correlations_that_cannot_be_are_mistakes():
    with pytest.raises(UsageError, match="asks for 3 domains, and its upper images do not suffice"):
        tiled(numbered(4, 0), numbered(30, 100))
    with pytest.raises(UsageError, match="must not name a value twice"):
        dominoes.load(None, None, 0, DominoesOptions(correlations=(0.5, 0.5)))
