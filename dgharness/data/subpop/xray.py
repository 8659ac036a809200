"""Chest X-rays by the tables of SubpopBench, which need access to the original data.

Images are read where the original datasets have them, under ``chexpert/`` (CheXpert-v1.0-small) and
``MIMIC-CXR-JPG/``; SubpopBench's downsampled copies are not needed.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

from typing import Literal

from dgharness.data.subpop.images import AttributedImageOptions, Images, image_spec
from dgharness.data.subpop.table import LEFT_OUT, SPLITS, Table, defaults

PATIENTS = ("white male", "white female", "black male", "black female", "other male", "other female")
FINDING = ("finding", "no finding")
DEFAULTS = defaults("resnet50", 20000, 1000)


class MultisiteOptions(AttributedImageOptions):
    test_split: Literal["test", "deploy"] = "test"
    """What is reported: sites and patients mixed as in training, or the other way round (deploy)."""


chexpert = image_spec(
    "chexpert",
    Images(
        Table("chexpert/subpop_bench_meta/metadata_no_finding.csv", FINDING, "patient", PATIENTS),
        DEFAULTS,
        within=("chexpert",),
    ),
)
"""Chest X-rays with a finding or without, by race and sex of the patient (Irvin et al. 2019)."""

mimic_cxr = image_spec(
    "mimic-cxr",
    Images(
        Table("MIMIC-CXR-JPG/subpop_bench_meta/metadata_no_finding.csv", FINDING, "patient", PATIENTS),
        DEFAULTS,
        within=("MIMIC-CXR-JPG",),
    ),
)
"""Chest X-rays with a finding or without, by race and sex of the patient (Johnson et al. 2019)."""

cxr_multisite = image_spec(
    "cxr-multisite",
    Images(
        Table(
            "MIMIC-CXR-JPG/subpop_bench_meta/metadata_multisite.csv",
            ("no pneumonia", "pneumonia"),
            "site",
            ("MIMIC-CXR", "CheXpert"),
            splits=SPLITS | {"3": LEFT_OUT},
        ),
        DEFAULTS,
        within=("MIMIC-CXR-JPG", "chexpert"),
        further={"deploy": "3"},
        metric="auroc_worst_attribute",
    ),
    MultisiteOptions,
)
"""Pneumonia or not in chest X-rays; of two sites one has most of the sick, the other most of the healthy."""
