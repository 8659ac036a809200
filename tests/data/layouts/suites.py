"""The suites: CIFAR's binary files with corrupted arrays, folders of ImageNet, and corrupted photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from layouts import Layout

SMALL = ("model.name=mlp", "model.width=8", "model.depth=1", "train.batch_size=4")
BLURS = [f"{name}_blur" for name in ("defocus", "glass", "motion", "zoom")]
NOISES = [f"{name}_noise" for name in ("gaussian", "shot", "impulse")]
WEATHER = ["snow", "frost", "fog", "brightness"]
DIGITAL = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
CORRUPTIONS = [*NOISES, *BLURS, *WEATHER, *DIGITAL]
WNIDS = ("n01440764", "n01443537", "n01484850")


def cifar(
    root: Path, corrupted: str, folder: str, files: dict[str, int], labels: int, names: str, classes: int
):
    """Six images in every binary file; two images a severity in every array."""
    random = np.random.RandomState(0)
    (root / folder).mkdir(parents=True)
    (root / folder / names).write_text("\n".join(f"class{c}" for c in range(classes)) + "\n\n")
    for file, count in files.items():
        table = random.randint(0, 256, (count, labels + 3072)).astype(np.uint8)
        table[:, labels - 1] = np.arange(count) % min(classes, 3)
        (root / folder / file).write_bytes(table.tobytes())
    (root / corrupted).mkdir()
    np.save(root / corrupted / "labels.npy", np.tile(np.array([0, 1], np.uint8), 5))
    for name in CORRUPTIONS:
        array = random.randint(0, 256, (10, 32, 32, 3)).astype(np.uint8)
        np.save(root / corrupted / f"{name}.npy", array)


def cifar_10(root: Path) -> None:
    files = {**{f"data_batch_{n}.bin": 6 for n in range(1, 6)}, "test_batch.bin": 3}
    cifar(root, "CIFAR-10-C", "cifar-10-batches-bin", files, 1, "batches.meta.txt", 10)


def cifar_100(root: Path) -> None:
    files = {"train.bin": 20, "test.bin": 3}
    cifar(root, "CIFAR-100-C", "cifar-100-binary", files, 2, "fine_label_names.txt", 100)


def pictures(folder: Path, names: tuple[str, ...], each: int, suffix: str = "jpg") -> None:
    random = np.random.RandomState(len(str(folder.name)))
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.randint(0, 256, (14, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}")


def imagenet(root: Path, folder: str, names: tuple[str, ...], suffix: str = "jpg") -> None:
    pictures(root / "imagenet" / "train", WNIDS, 3, "JPEG")
    pictures(root / "imagenet" / "val", WNIDS, 2, "JPEG")
    pictures(root / folder, names, 2, suffix)


def imagenet_v2(root: Path) -> None:
    imagenet(root, "imagenetv2-matched-frequency-format-val", ("0", "1", "2"), "jpeg")


def imagenet_r(root: Path) -> None:
    imagenet(root, "imagenet-r", WNIDS[1:])
    (root / "imagenet-r" / "README.txt").write_text("beside the classes")


def imagenet_a(root: Path) -> None:
    imagenet(root, "imagenet-a", WNIDS[:2])


def imagenet_sketch(root: Path) -> None:
    imagenet(root, "sketch", WNIDS, "JPEG")


def photographs(root: Path) -> None:
    for domain in ("art", "photo"):
        pictures(root / "photos" / domain, ("cat", "dog"), 5, "png")


SIZE = ("data.size=16", "data.augment=false")
LAYOUTS = {
    "corrupted": Layout(
        photographs, (*SMALL, *SIZE, "data.severities=[1, 5]"), argument="folder:{root}/photos"
    ),
    "cifar-10-c": Layout(cifar_10, SMALL),
    "cifar-100-c": Layout(cifar_100, SMALL),
    "imagenet-v2": Layout(imagenet_v2, (*SMALL, *SIZE)),
    "imagenet-r": Layout(imagenet_r, (*SMALL, *SIZE)),
    "imagenet-a": Layout(imagenet_a, (*SMALL, *SIZE)),
    "imagenet-sketch": Layout(imagenet_sketch, (*SMALL, *SIZE)),
}
