"""ImageNet-V2, -R, -A and -Sketch: other pictures of ImageNet's classes, to test on.

Training and validation are ImageNet's own; with ``data.train=false`` they are left out, and the suite can
only be scored. A suite of fewer than 1,000 classes restricts what is trained to them, or with
``data.outputs=all`` the choice among the outputs of a classifier of all classes, in the official accuracy.

Classes are named by their WordNet ids, in their order: as imagenet/imagenet_class_index.json says, or
imagenet/LOC_synset_mapping.txt, or else the folders of imagenet/train or imagenet/val.

Paper: Recht et al., Do ImageNet Classifiers Generalize to ImageNet? (V2, 2019); Hendrycks et al., The Many
    Faces of Robustness (R, 2021) and Natural Adversarial Examples (A, 2021); Wang et al., Learning Robust
    Global Representations by Penalizing Local Predictive Power (Sketch, 2019)
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.images import SUFFIXES, ImageOptions, image_dataset
from dgharness.data.protocols import OFFICIAL
from dgharness.data.suites import Accuracy, ClassOptions, with_classes
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError

IMAGENET = "imagenet"
CLASS_FILES = ("imagenet_class_index.json", "LOC_synset_mapping.txt")
LAYOUT = f"{IMAGENET}/train/<wnid>/<image> and {IMAGENET}/val/<wnid>/<image>"
DEFAULTS = Defaults(model="resnet50", steps=50_000, eval_every=5000, protocol="official", sampler="pooled")


class ImageNetOptions(ClassOptions, ImageOptions):
    train: bool = True
    """Whether ImageNet's own images are part of it, to train and validate on."""


class ImageNetV2Options(ImageNetOptions):
    variant: Literal["matched-frequency", "threshold-0.7", "top-images"] = "matched-frequency"
    """Which of the three published choices of images."""


def load_by_id(
    name: str,
    folder: str,
    argument: str | None,
    root: Path | None,
    trial_seed: int,
    options: ImageNetOptions,
) -> Dataset:
    """A suite whose folders are WordNet ids; nothing depends on the trial seed."""
    place = data_root(root)
    suite = listed(place, folder, name, "test")
    classes = class_list(place)
    if classes is None and options.outputs == "all":
        raise UsageError(f"data.outputs=all needs ImageNet's list of classes: {_put_a_list_in(place)}")
    return _dataset(name, place, suite, classes or sorted(set(suite["y"])), options)


def load_v2(argument: str | None, root: Path | None, trial_seed: int, options: ImageNetV2Options) -> Dataset:
    """ImageNet-V2, whose folders are the positions of the classes; nothing depends on the trial seed."""
    place = data_root(root)
    folder = f"imagenetv2-{options.variant.replace('-0.7', '0.7')}-format-val"
    suite, classes = listed(place, folder, options.variant, "test"), class_list(place)
    if classes is None:
        raise UsageError(
            f"the folders of {place / folder} are numbers, which only ImageNet's list of classes explains: "
            f"{_put_a_list_in(place)}"
        )
    numbers = {str(number): name for number, name in enumerate(classes)}
    if set(suite["y"]) != set(numbers):
        raise UsageError(
            f"{place / folder} has {suite['y'].nunique()} numbered folders, and ImageNet's list of classes "
            f"has {len(classes)} names, so that numbers and names do not belong together; both must be whole"
        )
    return _dataset("imagenet-v2", place, suite.assign(y=suite["y"].map(numbers)), classes, options)


def _dataset(
    name: str, root: Path, suite: pd.DataFrame, classes: Sequence[str], options: ImageNetOptions
) -> Dataset:
    frames = [suite]
    if options.train:
        used = classes if options.outputs == "all" else options.classes or sorted(set(suite["y"]))
        frames += [listed(root, f"{IMAGENET}/{split}", IMAGENET, split, used) for split in ("train", "val")]
    table = pd.concat(frames, ignore_index=True)
    if unknown := sorted(set(table["y"]) - set(classes)):
        raise UsageError(
            f"{root} has images of the class {unknown[0]!r}, which is not among ImageNet's {len(classes)}; "
            "classes are folders named by WordNet ids such as n01440764"
        )
    domains = list(dict.fromkeys(reversed(table["domain"].unique().tolist())))
    manifest, tested_C = with_classes(
        table.assign(
            y=pd.Categorical(table["y"], pd.Index(classes)),
            domain=pd.Categorical(table["domain"], domains),
            split=pd.Categorical(table["split"], OFFICIAL),
        ),
        options,
        offered=suite["y"].unique().tolist(),
    )
    dataset = image_dataset(
        name,
        root,
        manifest.reset_index(drop=True),
        options,
        fit="crop",
        defaults=DEFAULTS,
        official_metric="acc",
    )
    return dataclasses.replace(dataset, official=Accuracy(dataset.targets_M, tested_C))


# --- listing ---------------------------------------------------------------------------------------


def listed(
    root: Path, folder: str, domain: str, split: str, classes: Iterable[str] | None = None
) -> pd.DataFrame:
    """A row for every image of ``folder``/<class>/, sorted; of these classes, or of all that are there."""
    if not (root / folder).is_dir():
        without = ", or leave ImageNet itself out with --set data.train=false" if split != "test" else ""
        raise UsageError(f"there is no folder {root / folder}; put {folder}/<class>/<image> there{without}")
    y, paths = [], []
    for name in sorted(os.listdir(root / folder)) if classes is None else classes:
        if not (root / folder / name).is_dir():
            if classes is None:
                continue  # a README beside the classes
            raise UsageError(f"there is no folder {root / folder / name}, where images of that class belong")
        files = sorted(
            file for file in os.listdir(root / folder / name) if os.path.splitext(file)[1].lower() in SUFFIXES
        )
        y += [name] * len(files)
        paths += [f"{folder}/{name}/{file}" for file in files]
    if not paths:
        raise UsageError(f"{root / folder} holds no images; they belong in {folder}/<class>/<image>")
    return pd.DataFrame({"y": y, "domain": domain, "split": split, "path": paths})


def class_list(root: Path) -> list[str] | None:
    """The WordNet ids of ImageNet's classes in their order, from the first place that has them."""
    index, mapping = (root / IMAGENET / file for file in CLASS_FILES)
    if index.is_file():
        try:
            return sorted(wnid for wnid, _ in json.loads(index.read_text()).values())
        except (ValueError, AttributeError) as error:
            raise UsageError(
                f'{index} is not a list of classes as in {{"0": ["n01440764", "tench"], ...}} ({error})'
            ) from None
    if mapping.is_file():
        return sorted(line.split()[0] for line in mapping.read_text().splitlines() if line.strip())
    for split in ("train", "val"):
        if (root / IMAGENET / split).is_dir():
            return sorted(entry.name for entry in os.scandir(root / IMAGENET / split) if entry.is_dir())
    return None


def _put_a_list_in(root: Path) -> str:
    return f"put {' or '.join(CLASS_FILES)} (or the folders train/<wnid>) into {root / IMAGENET}"


def _by_id(name: str, folder: str, images: int) -> DatasetSpec:
    return DatasetSpec(
        partial(load_by_id, name, folder),
        ImageNetOptions,
        layout=f"{folder}/<wnid>/<image>; {LAYOUT}",
        counts={name: images},
        doc=__doc__,
    )


imagenet_v2 = DatasetSpec(
    load_v2,
    ImageNetV2Options,
    layout=f"imagenetv2-matched-frequency-format-val/<0..999>/<image>; {LAYOUT}",
    counts={"matched-frequency": 10_000},
    doc=__doc__,
)
"""Ten thousand new pictures of ImageNet's classes, collected as the first test set was."""

imagenet_r = _by_id("imagenet-r", "imagenet-r", 30_000)
"""Paintings, toys, tattoos and other renditions of 200 of ImageNet's classes."""

imagenet_a = _by_id("imagenet-a", "imagenet-a", 7_500)
"""Photographs of 200 of ImageNet's classes, chosen because a ResNet-50 errs on them."""

imagenet_sketch = _by_id("imagenet-sketch", "sketch", 50_889)
"""Black-and-white sketches of ImageNet's classes, about fifty of each."""
