"""The image datasets of WILDS.

Images are brought to the size that the benchmark trains on: as they are (camelyon17, fmow, rxrx1), squashed
(iwildcam), cut to the square in their middle (celebA, bdd100k), or squashed and then cut (waterbirds,
domainnet). ``domain`` is what WILDS groups by in training, less the label where that is part of it: a domain
of one class could not be held out. The groups that algorithms see are WILDS' in full.

Paper: Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021, arXiv:2012.07421;
    Sagawa et al., Extending the WILDS Benchmark for Unsupervised Adaptation, ICLR 2022, for what is unlabeled
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.tasks import multilabel
from dgharness.data.wilds.image_sets import (
    ImageSet,
    Side,
    WildsImageOptions,
    load,
    standardise_each,
    turn_and_flip,
)

LEADERBOARD = 3  # replicates, unless its rules say otherwise

# --- Camelyon17 -------------------------------------------------------------------------------------


class Camelyon17Options(WildsImageOptions):
    size: Side = 96


_CAMELYON17 = ImageSet(
    "camelyon17",
    paths=lambda source: source._input_array,
    domain=("hospital",),
    groups=("slide",),
    model="densenet121",
    metric="acc_avg",
    rows=2,
    batch_size=16,
    replicates=10,
)
camelyon17 = DatasetSpec(
    partial(load, _CAMELYON17),
    Camelyon17Options,
    layout="""camelyon17_v1.0/
  RELEASE_v1.0.txt
  metadata.csv: an index, patient, node, x_coord, y_coord, tumor, slide, center, split
  patches/patient_<patient>_node_<node>/patch_patient_<patient>_node_<node>_x_<x_coord>_y_<y_coord>.png
camelyon17_unlabeled_v1.0/ (for data.unlabeled): the same files""",
    counts={"0": 59436, "1": 34904, "2": 85054, "3": 129838, "4": 146722},
    doc=__doc__,
)
"""Tumour or not in patches of lymph-node slides from five hospitals."""

# --- iWildCam ---------------------------------------------------------------------------------------


class IWildCamOptions(WildsImageOptions):
    size: Side = 448


def _iwildcam_paths(source: Any) -> list[str]:
    folder = "images" if source.dataset_name == "iwildcam_unlabeled" else "train"
    return [f"{folder}/{name}" for name in source._input_array]


_IWILDCAM = ImageSet(
    "iwildcam",
    paths=_iwildcam_paths,
    domain=("location",),
    groups=("y",),
    attributes=("location", "year", "month", "hour"),
    model="resnet50",
    metric="F1-macro_all",
    rows=2,
    batch_size=8,
    replicates=LEADERBOARD,
)
iwildcam = DatasetSpec(
    partial(load, _IWILDCAM),
    IWildCamOptions,
    layout="""iwildcam_v2.0/
  RELEASE_v2.0.txt
  metadata.csv: split, location_remapped, sequence_remapped, y, datetime, filename
  train/<filename>, for all splits
iwildcam_unlabeled_v1.0/ (for data.unlabeled=extra)
  RELEASE_v1.0.txt
  metadata.csv: uid, location_remapped, sequence_remapped, y, datetime
  images/<uid>.jpg""",
    doc=__doc__,
)
"""Animal species, 182, in photographs of camera traps at 323 places."""

# --- FMoW -------------------------------------------------------------------------------------------

_FMOW = ImageSet(
    "fmow",
    paths=lambda source: [f"images/rgb_img_{number}.png" for number in source.full_idxs],
    domain=("year",),
    groups=("region",),
    names=lambda source: {"y": list(source.category_to_idx)},
    model="densenet121",
    metric="acc_worst_region",
    rows=8,
    batch_size=8,
    replicates=LEADERBOARD,
)
fmow = DatasetSpec(
    partial(load, _FMOW),
    WildsImageOptions,
    layout="""fmow_v1.1/ (unlabeled examples are in it)
  RELEASE_v1.1.txt
  rgb_metadata.csv: split, category, country_code, timestamp, ...
  country_code_mapping.csv: alpha-3, region
  images/rgb_img_<row of rgb_metadata.csv, from 0>.png""",
    doc=__doc__,
)
"""Use of land and buildings, 62 kinds, in satellite images over 16 years and five regions."""

# --- RxRx1 ------------------------------------------------------------------------------------------


class RxRx1Options(WildsImageOptions):
    size: Side = 256
    augment: bool = True
    """Quarter turns and mirroring in training, as the benchmark does."""


_RXRX1 = ImageSet(
    "rxrx1",
    paths=lambda source: source._input_array,
    domain=("experiment",),
    groups=("cell_type",),
    attributes=("cell_type", "experiment", "plate", "site"),
    model="resnet50",
    metric="acc_avg",
    rows=9,
    batch_size=8,
    replicates=LEADERBOARD,
    prepare=standardise_each,
    augment=turn_and_flip,
)
rxrx1 = DatasetSpec(
    partial(load, _RXRX1),
    RxRx1Options,
    layout="""rxrx1_v1.0/
  RELEASE_v1.0.txt
  metadata.csv: dataset, experiment, plate, well, site, cell_type, sirna_id
  images/<experiment>/Plate<plate>/<well>_s<site>.png""",
    doc=__doc__,
)
"""Genetic treatments, 1,139, of four types of cell under the microscope in 51 experiments."""

# --- DomainNet --------------------------------------------------------------------------------------

DomainNetDomain = Literal["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]


class DomainNetOptions(WildsImageOptions):
    source_domain: DomainNetDomain = "real"
    """Domain to train on; the package alone would take sketch, the benchmark trains on real."""
    target_domain: DomainNetDomain = "sketch"
    """Domain to validate and test on."""
    extra_domain: DomainNetDomain = "clipart"
    """Domain of data.unlabeled=extra."""
    sentry: bool = False
    """The 40 classes and four domains (without infograph and quickdraw) of SENTRY."""


_DOMAINNET = ImageSet(
    "domainnet",
    paths=lambda source: source._input_image_paths,
    domain=("domain",),
    groups=("category",),
    train_groups=("category",),
    attributes=("category",),
    arguments=lambda options: {
        "source_domain": options.source_domain,
        "target_domain": options.target_domain,
        "use_sentry": options.sentry,
    },
    unlabeled_arguments=lambda options: {"extra_domain": options.extra_domain},
    model="resnet50",
    metric="acc_avg",
    batch_size=96,
    fit="squash-crop",
)
domainnet = DatasetSpec(
    partial(load, _DOMAINNET),
    DomainNetOptions,
    layout="""domainnet_v1.0/ (unlabeled examples are in it)
  RELEASE_v1.0.txt
  metadata.csv, and for data.sentry sentry_metadata.csv: image_path, domain, split, category, y
  <image_path>""",
    doc=__doc__,
)
"""Objects, 345 kinds, from photographs to sketches: one domain to train on, another as the target."""

# --- CelebA and Waterbirds --------------------------------------------------------------------------


class CelebAOptions(WildsImageOptions):
    size: Side = 178


_CELEBA = ImageSet(
    "celebA",
    paths=lambda source: [f"img_align_celeba/{name}" for name in source._input_array],
    domain=("male",),
    groups=("male", "y"),
    train_groups=("male", "y"),
    names=lambda source: {"male": ["female", "male"]},
    model="resnet50",
    metric="acc_wg",
    fit="centre",
)
celebA = DatasetSpec(
    partial(load, _CELEBA),
    CelebAOptions,
    layout="""celebA_v1.0/
  RELEASE_v1.0.txt
  list_attr_celeba.csv: image_id and 40 attributes of -1 or 1, Blond_Hair and Male among them
  list_eval_partition.csv: image_id, partition
  img_align_celeba/<image_id>""",
    counts={"female": 118165, "male": 84434},
    doc=__doc__,
)
"""Blond hair or not in portraits, which hardly any man of the training data has."""

_WATERBIRDS = ImageSet(
    "waterbirds",
    paths=lambda source: source._input_array,
    domain=("background",),
    groups=("background", "y"),
    train_groups=("background", "y"),
    model="resnet50",
    metric="acc_wg",
    batch_size=64,
    fit="squash-crop",
)
waterbirds = DatasetSpec(
    partial(load, _WATERBIRDS),
    WildsImageOptions,
    layout="""waterbirds_v1.0/
  RELEASE_v1.0.txt
  metadata.csv: img_filename, y, split, place
  <img_filename>""",
    counts={"land": 7051, "water": 4737},
    doc=__doc__,
)
"""Waterbird or landbird, cut out and put on water or land that mostly fits in the training data."""

# --- BDD100K ----------------------------------------------------------------------------------------


class BDD100KOptions(WildsImageOptions):
    size: Side = 720


def _bdd100k(scheme: str) -> ImageSet:
    return ImageSet(
        "bdd100k",
        paths=lambda source: [f"images/{name}" for name in source._image_array],
        domain=(scheme,),
        groups=(scheme,),
        model="resnet50",
        metric="acc_all",
        fit="centre",
        predict=lambda logits: (logits > 0).float(),
        task=multilabel(9),
        targets=lambda source: torch.as_tensor(source.y_array),
    )


def _load_bdd100k(argument: str | None, root: Path | None, seed: int, options: BDD100KOptions) -> Dataset:
    by_place = options.split_scheme == "location"
    return load(_bdd100k("location" if by_place else "timeofday"), argument, root, seed, options)


bdd100k = DatasetSpec(
    _load_bdd100k,
    BDD100KOptions,
    layout="""bdd100k_v1.0/
  RELEASE_v1.0.txt
  timeofday_{train,val,test}.csv and location_{train,val,test}.csv: image, group, and of 0 or 1 bicycle, bus,
    car, motorcycle, pedestrian, rider, traffic light, traffic sign, truck
  images/<image>""",
    doc=__doc__,
)
"""What is in sight of a car, nine yes-or-no labels, by time of day or by place."""
