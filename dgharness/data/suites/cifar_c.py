"""CIFAR-10-C and CIFAR-100-C: CIFAR's test images under common corruptions, in five severities each.

Training and validation are CIFAR's training images, a part of them held out by a fixed draw; its clean test
images are the split ``id_test``. The corrupted ones are the domains ``gaussian-noise-3`` and so on, read from
the published arrays as they are asked for.

Paper: Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations, ICLR 2019
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dgharness.data.corruptions import CORRUPTIONS, SEVERITIES
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.images import standardise
from dgharness.data.protocols import OFFICIAL
from dgharness.data.suites import (
    CLEAN,
    ClassOptions,
    CorruptionErrors,
    CorruptionOptions,
    chosen_corruptions,
    domain_name,
    with_classes,
)
from dgharness.data.suites.cifar_files import SIDE, Arrays, Cifar, Images, clean_images, corrupted_images
from dgharness.data.tasks import classification
from dgharness.data.wilds.load import data_root
from dgharness.seeds import generator

FURTHER = ("speckle-noise", "gaussian-blur", "spatter", "saturate")  # published beside the common fifteen
PADDING = 4  # pixels


class CifarCOptions(CorruptionOptions, ClassOptions):
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the training images that is kept for validation, the same for every trial."""
    augment: bool = True
    """Random shifts by up to four pixels and flips, in training only."""


def load(
    source: Cifar, argument: str | None, root: Path | None, trial_seed: int, options: CifarCOptions
) -> Dataset:
    """Map the arrays of the corruptions that were asked for; nothing depends on the trial seed."""
    place = data_root(root)
    kinds = chosen_corruptions(options, (*CORRUPTIONS, *FURTHER))
    clean, classes = clean_images(place, source)
    corrupted = corrupted_images(place, source, [name for name, _ in kinds], len(classes))
    table = rows_of(clean, corrupted, kinds, classes, options.holdout)
    table, tested_C = with_classes(table, options, classes)
    manifest = table[["y", "domain", "split"]].reset_index(drop=True)
    y_M, domain_M = (
        torch.from_numpy(manifest[name].cat.codes.to_numpy(np.int64, copy=True)) for name in ("y", "domain")
    )
    return Dataset(
        name=source.name,
        manifest=manifest,
        reader=Arrays(
            [part.pixels for part in (*clean, *corrupted.values())],
            torch.from_numpy(table[["part", "position"]].to_numpy(np.int64, copy=True)),
        ),
        task=classification(len(tested_C)),
        input_shape=(3, SIDE, SIDE),
        defaults=DEFAULTS,
        prepare=standardise,
        augment=shifted_and_flipped if options.augment else None,
        official=CorruptionErrors(
            y_M, tested_C, domain_M, {number: name for number, (name, _) in enumerate(kinds, start=1)}
        ),
        official_metric="mean_corruption_error",
        official_sign=-1,
    )


def rows_of(
    clean: Sequence[Images],
    corrupted: Mapping[str, Images],
    kinds: Sequence[tuple[str, int]],
    classes: Sequence[str],
    holdout: float,
) -> pd.DataFrame:
    """A row for every image: in which array it is and where, its class, domain and split."""
    frames = []
    for part, images in enumerate(clean):
        split = "id_test" if images is clean[-1] else "train"
        frames.append(_rows(part, np.arange(len(images.labels)), images, 0, split))
    for domain, (name, severity) in enumerate(kinds, start=1):
        images, part = corrupted[name], len(clean) + list(corrupted).index(name)
        block = len(images.labels) // len(SEVERITIES)
        frames.append(
            _rows(part, np.arange((severity - 1) * block, severity * block), images, domain, "test")
        )
    table = pd.concat(frames, ignore_index=True)
    training = np.flatnonzero(table["split"] == "train")
    order = torch.randperm(len(training), generator=generator(0, "cifar validation")).numpy()
    table.loc[training[order[: int(holdout * len(training))]], "split"] = "val"
    domains = [CLEAN, *(domain_name(*kind) for kind in kinds)]
    return table.assign(
        y=pd.Categorical.from_codes(table["y"], pd.Index(classes)),
        domain=pd.Categorical.from_codes(table["domain"], pd.Index(domains)),
        split=pd.Categorical(table["split"], OFFICIAL),
    )


def _rows(part: int, position_N: np.ndarray, images: Images, domain: int, split: str) -> pd.DataFrame:
    y_N = images.labels[position_N]
    return pd.DataFrame({"part": part, "position": position_N, "y": y_N, "domain": domain, "split": split})


def shifted_and_flipped(x_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to four pixels each way, black coming in, and mirrored every other time."""
    n, _, h, w = x_N3HW.shape
    shift_2N = torch.randint(2 * PADDING + 1, (2, n), generator=generator)
    flip_N1 = torch.rand(n, 1, generator=generator) < 0.5
    rows_NH = shift_2N[0, :, None] + torch.arange(h)
    columns_NW = shift_2N[1, :, None] + torch.where(flip_N1, torch.arange(w).flip(0), torch.arange(w))
    padded_NHW3 = F.pad(x_N3HW, [PADDING] * 4).permute(0, 2, 3, 1)
    at = (torch.arange(n)[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :])
    return padded_NHW3[tuple(each.to(x_N3HW.device) for each in at)].permute(0, 3, 1, 2)


# --- the two of them -------------------------------------------------------------------------------

DEFAULTS = Defaults(model="resnet18", steps=50_000, eval_every=2500, protocol="official", sampler="pooled")
DOMAINS = [domain_name(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def _spec(source: Cifar) -> DatasetSpec:
    return DatasetSpec(
        partial(load, source),
        CifarCOptions,
        layout=source.layout,
        counts={CLEAN: 60_000, **dict.fromkeys(DOMAINS, 10_000)},
        doc=__doc__,
    )


cifar_10_c = _spec(
    Cifar(
        name="cifar-10-c",
        corrupted="CIFAR-10-C",
        binary="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        class_names="batches.meta.txt",
        label_bytes=1,
        python="cifar-10-batches-py",
        torchvision="CIFAR10",
    )
)
"""CIFAR-10's test images under fifteen common corruptions, in five severities each."""

cifar_100_c = _spec(
    Cifar(
        name="cifar-100-c",
        corrupted="CIFAR-100-C",
        binary="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        class_names="fine_label_names.txt",
        label_bytes=2,
        python="cifar-100-python",
        torchvision="CIFAR100",
    )
)
"""CIFAR-100's test images under fifteen common corruptions, in five severities each."""
