"""How wealthy a village is, from satellite images of eight bands, in countries that training did not see.

The images are numbers, normalised by whoever published them; they are read from their files as they are asked
for. The benchmark's five replicates are the folds A to E, in which other countries are held out; the trial
seeds 0 to 4 take them in turn.

Paper: Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021, arXiv:2012.07421

Shapes: N images of a batch, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.augmentation import COLOR_CHANGES
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.image_cache import THREADS
from dgharness.data.images import image_files
from dgharness.data.tasks import regression
from dgharness.data.wilds.load import WildsOptions, manifest_of, official_eval, open_wilds
from dgharness.data.wilds.unlabeled import unlabeled_manifest, with_unlabeled
from dgharness.errors import UsageError

CHANNELS = 8
RGB = (2, 1, 0)  # the first three bands are blue, green and red
JITTER = (0.8, 0.8, 0.8, 0.1)  # of brightness, contrast, saturation and hue
FOLDS = "ABCDE"
NAMES = {"urban": ("rural", "urban")}


class PovertyOptions(WildsOptions):
    fold: Literal["", "A", "B", "C", "D", "E"] = ""
    """Which countries are held out; empty takes the trial seed's: A for 0, B for 1, and so on in turn."""
    augment: bool = True
    """Mirroring and colour jitter of the bands red, green and blue in training, as the benchmark does."""
    no_nl: bool = False
    """Without the lights at night, the last of the eight channels, which then is 0."""


def load(argument: str | None, root: Path | None, seed: int, options: PovertyOptions) -> Dataset:
    """Wealth indices of clusters of households; of the five folds the one that is asked for."""
    arguments = {"fold": options.fold or FOLDS[seed % len(FOLDS)], "no_nl": options.no_nl}
    source = open_wilds("poverty", root, options.split_scheme, **arguments)
    manifest = manifest_of(source, ["country"], numbers=True, names=NAMES).assign(row=np.arange(len(source)))
    _refuse_nan(manifest["y"])
    manifest, reader = _images(Path(source.data_dir), manifest[manifest["split"].notna()], options.no_nl)
    dataset = Dataset(
        name="wilds:poverty",
        manifest=manifest,
        reader=reader,
        task=regression(),
        input_shape=reader.shape,
        profile="large",
        defaults=Defaults("resnet18", eval_every=300, protocol="official", rows=8, batch_size=8),
        groups=("urban",),
        augment=augment_visible if options.augment else None,
        official=official_eval(
            source, lambda outputs: outputs.mean(-1, keepdim=True), manifest["row"].to_numpy(copy=True)
        ),
        official_metric="r_wg",
        replicates=5,
    )
    if not options.unlabeled:
        return dataset
    further = open_wilds("poverty", root, options.split_scheme, unlabeled=True, **arguments)
    rows = unlabeled_manifest(further, options.unlabeled, ["country"])
    return with_unlabeled(dataset, *_images(Path(further.data_dir), rows, options.no_nl))


poverty = DatasetSpec(
    load,
    PovertyOptions,
    layout="""poverty_v1.1/
  RELEASE_v1.1.txt
  dhs_metadata.csv: country, wealthpooled, urban, ...
  images/landsat_poverty_img_<row of dhs_metadata.csv, from 0>.npz: x of [8, 224, 224]
poverty_unlabeled_v1.0/ (for data.unlabeled): unlabeled_metadata.csv with country, and images likewise""",
    doc=__doc__,
    version=2,  # 1 did not augment, and had fold A for every seed
)


def augment_visible(x_N8HW: Tensor, generator: torch.Generator) -> Tensor:
    """WILDS' ``poverty_train`` (examples/transforms.py): mirror and recolour the bands red, green and blue.

    Each image is mirrored in either direction with probability 1/2, and draws its own brightness, contrast
    and saturation from 0.2 to 1.8 and a turn of the hue by at most 0.1 of a circle; the five other bands stay
    as they are, as there. There too the three bands become bytes by way of 255 x, of which the whole part
    counts modulo 256: as they are normalised, most values wrap around, and training sees them in 0..1 where
    evaluation sees them as they are. Unlike there, colours are not rounded to bytes after every change, and
    the order of the four changes is drawn once for a batch.

    Paper: Koh et al., WILDS, ICML 2021, arXiv:2012.07421
    """
    draws_N6 = torch.rand(len(x_N8HW), 6, generator=generator)
    order = torch.randperm(4, generator=generator).tolist()
    factors_N4 = torch.tensor(JITTER) * (2 * draws_N6[:, :4] - 1) + torch.tensor([1.0, 1.0, 1.0, 0.0])
    mirrored_2N = (draws_N6[:, 4:] < 0.5).T.to(x_N8HW.device)
    factors_N4 = factors_N4.to(x_N8HW.device)
    x_N3HW = in_bytes(x_N8HW[:, RGB])
    for axis, chosen_N in zip((3, 2), mirrored_2N, strict=True):
        x_N3HW[chosen_N] = x_N3HW[chosen_N].flip(axis)
    for change in order:
        x_N3HW = COLOR_CHANGES[change](x_N3HW, factors_N4[:, change, None, None, None])
    augmented_N8HW = x_N8HW.clone()
    augmented_N8HW[:, RGB] = x_N3HW
    return augmented_N8HW


def in_bytes(x: Tensor) -> Tensor:
    """What a float is after a conversion to a byte and back, by way of 255 x.

    >>> 255 * in_bytes(torch.tensor([0.5, 1.7, -1.3]))
    tensor([127., 177., 181.])
    """
    return (255 * x).trunc_().remainder_(256).div_(255)


class Arrays:
    """A reader of the arrays ``x`` [8, H, W] of .npz files; a file of another shape is a UsageError."""

    def __init__(self, folder: Path, paths: Sequence[str], without_last: bool) -> None:
        self.folder, self.paths, self.without_last = folder, paths, without_last
        first = self._read(paths[0])
        self.shape = tuple(first.shape)
        if len(self.shape) != 3 or self.shape[0] != CHANNELS:
            raise UsageError(
                f"{folder / paths[0]} holds numbers of shape {list(self.shape)}, and wilds:poverty has "
                f"[{CHANNELS}, height, width]; replace the file"
            )

    def __call__(self, index_N: Tensor) -> Tensor:
        paths = [self.paths[row] for row in index_N.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            arrays = list(pool.map(self._read, paths))
        for path, x in zip(paths, arrays, strict=True):
            if x.shape != self.shape:
                raise UsageError(
                    f"{self.folder / path} holds numbers of shape {list(x.shape)}, and the others of "
                    f"{list(self.shape)}; replace the file"
                )
        return torch.stack(arrays)

    def _read(self, path: str) -> Tensor:
        try:
            x = torch.from_numpy(np.load(self.folder / path)["x"]).float()
        except Exception as error:  # damaged files raise almost anything; the reason is kept and shown
            raise UsageError(
                f"{self.folder / path} cannot be read as an .npz of x ({type(error).__name__}: {error}); "
                "replace the file"
            ) from error
        if self.without_last:
            x[-1] = 0
        return x

    def to(self, device: torch.device) -> Arrays:
        return self


def _images(folder: Path, manifest: pd.DataFrame, no_nl: bool) -> tuple[pd.DataFrame, Arrays]:
    """The manifest with the paths and sizes of its images, and their reader."""
    paths = [f"images/landsat_poverty_img_{row}.npz" for row in manifest["row"]]
    files = image_files(folder, paths)
    manifest = manifest.reset_index(drop=True).assign(path=paths, bytes=[file.bytes for file in files])
    return manifest, Arrays(folder, paths, no_nl)


def _refuse_nan(y: Any) -> None:
    if y.isna().any():
        raise UsageError(
            f"row {int(y.isna().to_numpy().argmax())} of wilds:poverty has no wealthpooled "
            f"({int(y.isna().sum())} such rows); complete dhs_metadata.csv"
        )
