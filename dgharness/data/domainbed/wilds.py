"""Two datasets of WILDS as DomainBed splits them: every hospital or region is a domain.

The official splits play no part: a held-out hospital is tested on its examples of all splits, and the others
are split by chance. The numbers say nothing of those of ``wilds:camelyon17`` and ``wilds:fmow``.

Paper: Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.images import PHOTOGRAPHS, ImageOptions, image_dataset
from dgharness.data.wilds.load import manifest_of, open_wilds

HOSPITALS = (59436, 34904, 85054, 129838, 146722)  # patches of each
DEFAULTS = replace(PHOTOGRAPHS, eval_every=100)


def _load_camelyon(
    argument: str | None, root: Path | None, trial_seed: int, options: ImageOptions
) -> Dataset:
    source = open_wilds("camelyon17", root)
    manifest = _unsplit(source, "hospital", ["slide"]).assign(path=list(source._input_array))
    manifest["domain"] = manifest["domain"].cat.rename_categories(lambda number: f"hospital_{number}")
    return image_dataset(
        "domainbed:WILDSCamelyon", Path(source.data_dir), manifest, options, defaults=DEFAULTS
    )


def _load_fmow(argument: str | None, root: Path | None, trial_seed: int, options: ImageOptions) -> Dataset:
    source = open_wilds("fmow", root)
    paths = [f"images/rgb_img_{number}.png" for number in source.full_idxs]
    manifest = _unsplit(source, "region", ["year"]).assign(path=paths)
    return image_dataset("domainbed:WILDSFMoW", Path(source.data_dir), manifest, options, defaults=DEFAULTS)


def _unsplit(source: Any, domain: str, attributes: list[str]) -> pd.DataFrame:
    return manifest_of(source, domain=[domain], attributes=attributes).drop(columns="split")


WILDSCamelyon = DatasetSpec(
    _load_camelyon,
    ImageOptions,
    layout="camelyon17_v1.0/ as wilds:camelyon17 has it",
    counts={f"hospital_{number}": count for number, count in enumerate(HOSPITALS)},
    doc=__doc__,
)
"""Tumour or not in patches of lymph nodes, leaving one of five hospitals out (Bandi et al. 2018)."""

WILDSFMoW = DatasetSpec(_load_fmow, ImageOptions, layout="fmow_v1.1/ as wilds:fmow has it", doc=__doc__)
"""Use of land or building from space, 62 kinds, leaving one of six regions out (Christie et al. 2018)."""
