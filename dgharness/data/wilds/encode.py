"""Where a transcription factor binds to the genome, in cell types and chromosomes that training did not see.

A window of 12,800 base pairs has five channels: which base each is, and how accessible the chromatin
is there. The 128 labels are those of bins of 200 base pairs in its central half; an ambiguous one is NaN. The
factor is MAX, or JUND with the split scheme tf.JUND.official.

Paper: Li, Quang and Guan, Anchor: trans-cell Type Prediction of Transcription Factor Binding Sites, Genome
Research 2019; the dataset is that of the ENCODE-DREAM challenge, in the form of the package wilds 2.0

Shapes: M rows of the manifest, N windows of a batch, S base pairs of a window, T bins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.tasks import multilabel
from dgharness.data.wilds.load import (
    WildsOptions,
    manifest_of,
    needs_extra,
    official_eval,
    open_wilds,
)

CHANNELS, WINDOW = 5, 12_800


class EncodeOptions(WildsOptions):
    unlabeled: Literal[""] = ""
    """Not available here."""


def load(argument: str | None, root: Path | None, seed: int, options: EncodeOptions) -> Dataset:
    """Windows of the genome as several cell types have it."""
    needs_extra("pyBigWig", "genomics", "wilds:encode")
    with _numbers_from_names():
        source = open_wilds("encode", root, options.split_scheme)
    targets = source.y_array.float()
    return Dataset(
        name="wilds:encode",
        manifest=manifest_of(source, ["celltype"], attributes=["chr"]),
        reader=Windows(source),
        task=multilabel(targets.shape[1]),
        input_shape=(CHANNELS, WINDOW),
        defaults=Defaults(model="sequence-unet", eval_every=300, protocol="official"),
        groups=("domain",),
        targets=targets,
        official=official_eval(source, lambda logits_NT: logits_NT),
        official_metric="avgprec-macro_all",
        eval_batch=128,
    )


class Windows:
    """A reader of windows [N, 5, S]: the sequence from memory, the accessibility from its file."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self, index_N: Tensor) -> Tensor:
        # One by one: the library behind the files takes one interval at a time.
        return torch.stack([self.source.get_input(row) for row in index_N.tolist()]).float()

    def to(self, device: torch.device) -> Windows:
        return self


@contextlib.contextmanager
def _numbers_from_names() -> Iterator[None]:
    """In here a column whose names were all replaced by numbers is one of numbers, as before pandas 3."""
    replace = pd.Series.replace

    def replaced(series: pd.Series, *args: Any, **kwargs: Any) -> pd.Series:
        return replace(series.astype(object), *args, **kwargs).infer_objects()

    pd.Series.replace = replaced  # type: ignore
    try:
        yield
    finally:
        pd.Series.replace = replace  # type: ignore[method-assign]


encode = DatasetSpec(
    load,
    EncodeOptions,
    layout="""encode_v1.0/
  RELEASE_v1.0.txt
  sequence.npz: for each chromosome (chr1 to chr22 and chrX) which base, [length, 4]
  labels/MAX/metadata_df.bed: chromosome, start, stop, cell type, by tabs
  labels/MAX/metadata_y.npy: [rows of metadata_df.bed, 128] of 0, 1 and 0.5 (ambiguous)
  DNase.MAX.<cell type>.official.bigwig, made from DNASE.<cell type>.fc.signal.bigwig where it is missing
  qn.<cell type>.npy
  and the same under labels/JUND and DNase.JUND for that factor""",
    doc=__doc__,
)
"""Where a transcription factor binds to the genome, in cell types that training did not see."""
