"""The image datasets of WILDS.

Koh et al., *WILDS: A Benchmark of in-the-Wild Distribution Shifts* (2021).
"""

from __future__ import annotations

from pathlib import Path

from dgharness.data.augmentation import augment
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.images import ImageOptions, image_dataset
from dgharness.data.wilds.load import WildsOptions, manifest_of, official_eval, open_wilds


class WildsImageOptions(WildsOptions, ImageOptions):
    size: int = 96
    augment: bool = False


def _load_camelyon17(
    argument: str | None, root: Path | None, seed: int, options: WildsImageOptions
) -> Dataset:
    source = open_wilds("camelyon17", root, options.split_scheme)
    manifest = manifest_of(source, domain=["hospital"]).assign(path=list(source._input_array))
    return image_dataset(
        "camelyon17",
        Path(source.data_dir),
        manifest,
        options,
        defaults=Defaults(model="resnet50", protocol="official"),
        augment=augment,
        official=official_eval(source, lambda logits_NC: logits_NC.argmax(-1)),
        official_metric="acc_avg",
        replicates=10,
    )


camelyon17 = DatasetSpec(_load_camelyon17, WildsImageOptions, doc=__doc__)
"""Tumour or not in patches of lymph-node slides from five hospitals."""
