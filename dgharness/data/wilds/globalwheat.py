"""Wheat heads in photographs of fields, from sessions (a place, a time, a camera) that training did not see.

The boxes are in pixels of 1024 x 1024; they shrink with the images where data.size is smaller. WILDS trains
Faster R-CNN; the detector here is another one, ``dgharness.models.fcos``, by the same evaluation.

Paper: David et al., Global Wheat Head Dataset 2021, arXiv:2105.07660; Koh et al., WILDS: A Benchmark of
in-the-Wild Distribution Shifts, ICML 2021, arXiv:2012.07421

Shapes: M rows of the manifest, N images of a batch, G boxes of an image at most (rows of NaN where it has
fewer), K detections of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.images import ImageOptions, image_dataset
from dgharness.data.task_detection import detection
from dgharness.data.wilds.load import (
    Official,
    WildsOptions,
    manifest_of,
    open_wilds,
    readable,
)
from dgharness.hparams import Annotated

PIXELS = 1024  # of a side


class GlobalWheatOptions(WildsOptions, ImageOptions):
    size: Annotated[int, Field(ge=1)] = PIXELS
    """Side in pixels to which every image is brought."""
    augment: Literal[False] = False
    """Not possible here: the boxes would have to move with the pixels."""
    unlabeled: Literal[""] = ""
    """Not available here."""


def load(argument: str | None, root: Path | None, seed: int, options: GlobalWheatOptions) -> Dataset:
    """Images and the boxes of their wheat heads."""
    source = open_wilds("globalwheat", root, options.split_scheme)
    manifest = manifest_of(source, ["session"]).assign(
        row=np.arange(len(source)), path=[f"images/{name}" for name in source._image_array]
    )
    dataset = image_dataset(
        "wilds:globalwheat",
        Path(source.data_dir),
        manifest,
        options,
        task=detection(options.size),
        defaults=Defaults(
            model="fcos-resnet50", eval_every=300, protocol="official", sampler="pooled", rows=1, batch_size=4
        ),
        groups=("domain",),
        official_metric="detection_acc_avg_dom",
        replicates=3,
        eval_batch=8,
    )
    row_M = dataset.manifest["row"].to_numpy()
    boxes_MG4 = padded([source.y_array[row]["boxes"] for row in row_M]) * options.size / PIXELS
    return dataclasses.replace(
        dataset, targets=boxes_MG4, official=_evaluation(source, row_M, PIXELS / options.size)
    )


def padded(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of every image, [M, G, 4], with rows of NaN where an image has fewer than another.

    >>> padded([torch.zeros(1, 4), torch.zeros(0, 4)]).isnan().any(-1)
    tensor([[False],
            [ True]])
    """
    most = max([1, *map(len, boxes)])
    count_M = torch.tensor([len(own) for own in boxes])
    boxes_MG4 = torch.full((len(boxes), most, 4), torch.nan)
    boxes_MG4[torch.arange(most) < count_M[:, None]] = torch.cat(list(boxes)).float()
    return boxes_MG4


def _evaluation(source: Any, row_M: np.ndarray, scale: float) -> Official:
    def evaluate(kept_NK6: Tensor, rows: np.ndarray) -> dict[str, float]:
        own = row_M[rows]
        found = [
            {"boxes": image[:, :4] * scale, "scores": image[:, 4]}
            for image in (kept_K6[~kept_K6[:, 4].isnan()] for kept_K6 in kept_NK6)
        ]
        scores, _ = source.eval(
            found, [source.y_array[row] for row in own], source.metadata_array[torch.from_numpy(own)]
        )
        return readable(scores)

    return evaluate


globalwheat = DatasetSpec(
    load,
    GlobalWheatOptions,
    layout="""globalwheat_v1.1/
  RELEASE_v1.1.txt
  official_train.csv, official_val.csv, official_test.csv, fixed_train_val.csv, fixed_train_test.csv (and, for
    the other split schemes, fixed_test_train.csv, fixed_test_test.csv, mixed_train_train.csv,
    mixed_train_test.csv): image_name, BoxesString, domain
  metadata_domain.csv, with semicolons: name, country, location, development_stage of all 47 sessions
  images/<image_name>""",
    doc=__doc__,
)
"""Wheat heads in photographs of fields, taken in sessions that training did not see."""
