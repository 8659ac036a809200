"""DomainBed's datasets: folders of tiny images, and the two of WILDS by their own metadata."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dgharness.data.domainbed.spawrious import BREEDS, LOCATIONS, ROOT
from layouts import Layout

SETS = ("data.size=8", "model.name=mlp", "model.width=8", "train.batch_size=4")
FOLDERS = {  # name -> folder, domains, classes, images of each
    "PACS": ("PACS", ("art_painting", "cartoon", "photo", "sketch"), 7, 2),
    "VLCS": ("VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007"), 5, 2),
    "OfficeHome": ("office_home", ("Art", "Clipart", "Product", "Real World"), 65, 1),
    "TerraIncognita": (
        "terra_incognita",
        ("location_38", "location_43", "location_46", "location_100"),
        10,
        2,
    ),
    "DomainNet": ("domain_net", ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"), 345, 1),
    "SVIRO": (
        "sviro",
        ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"),
        7,
        2,
    ),
}
SPAWRIOUS = [f"Spawrious{kind}_{level}" for kind in ("O2O", "M2M") for level in ("easy", "medium", "hard")]


def write_images(paths: Iterable[Path]) -> None:
    """Tiny images, each of a colour of its own."""
    stream = np.random.default_rng(0)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), tuple(stream.integers(0, 256, 3).tolist())).save(path)


def write_folders(folder: str, domains: tuple[str, ...], classes: int, images: int, root: Path) -> None:
    write_images(
        root / folder / domain / f"class_{label:03}" / f"{number}.png"
        for domain in domains
        for label in range(classes)
        for number in range(images)
    )


def write_spawrious(root: Path) -> None:
    """Three images of each breed in each place, in both halves."""
    write_images(
        root / ROOT / str(half) / location / breed / f"{number}.png"
        for half in (0, 1)
        for location in LOCATIONS
        for breed in BREEDS
        for number in range(3)
    )


def write_camelyon(root: Path) -> None:
    """Twelve patches of each hospital, of two slides."""
    folder, rows = root / "camelyon17_v1.0", np.arange(60)
    center = rows % 5
    table = pd.DataFrame(
        {
            "patient": [f"{number:03}" for number in 20 * center],
            "node": 0,
            "x_coord": rows,
            "y_coord": 7,
            "tumor": rows // 5 % 2,
            "slide": 10 * center + rows // 5 % 2,
            "center": center,
            "split": rows // 10 % 2,
        }
    )
    names = [f"patient_{patient}_node_0" for patient in table["patient"]]
    write_images(
        folder / "patches" / name / f"patch_{name}_x_{x}_y_7.png" for name, x in zip(names, rows, strict=True)
    )
    table.to_csv(folder / "metadata.csv")
    (folder / "RELEASE_v1.0.txt").touch()


def write_fmow(root: Path) -> None:
    """Sixty images of five continents and elsewhere, of which some are sequestered."""
    folder, rows = root / "fmow_v1.1", np.arange(66)
    countries = np.array(["CHN", "FRA", "KEN", "USA", "AUS", "ATA"])
    regions = ["Asia", "Europe", "Africa", "Americas", "Oceania"]
    split = np.array(["train", "val", "test"])[rows // 6 % 3]
    year = np.array([2008, 2014, 2016])[rows // 6 % 3]
    table = pd.DataFrame(
        {
            "split": np.where(rows % 11 == 10, "seq", split),
            "category": np.where(rows // 6 % 2, "airport", "zoo"),
            "country_code": countries[rows % 6],
            "timestamp": [f"{y}-05-02T10:11:12Z" for y in year],
        }
    )
    write_images(folder / "images" / f"rgb_img_{row}.png" for row in rows)
    table.to_csv(folder / "rgb_metadata.csv", index=False)
    codes = pd.DataFrame({"alpha-3": countries[:5], "region": regions})
    codes.to_csv(folder / "country_code_mapping.csv", index=False)
    (folder / "RELEASE_v1.1.txt").touch()


LAYOUTS = {
    **{f"domainbed:{name}": Layout(partial(write_folders, *how), SETS) for name, how in FOLDERS.items()},
    **{f"domainbed:{name}": Layout(write_spawrious, SETS) for name in SPAWRIOUS},
    "domainbed:WILDSCamelyon": Layout(write_camelyon, SETS),
    "domainbed:WILDSFMoW": Layout(write_fmow, SETS),
}
