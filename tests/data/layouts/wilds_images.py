"""The image, regression and tabular datasets of WILDS, as their classes read them from disk."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from layouts import Layout

SIDE = 12
SMALL = ("model.name=mlp", "model.width=4", "model.depth=1", "train.batch_size=4", f"data.size={SIDE}")
# fmt: off
COUNTRIES = [
    "angola", "benin", "burkina_faso", "cameroon", "cote_d_ivoire", "democratic_republic_of_congo",
    "ethiopia", "ghana", "guinea", "kenya", "lesotho", "malawi", "mali", "mozambique", "nigeria", "rwanda",
    "senegal", "sierra_leone", "tanzania", "togo", "uganda", "zambia", "zimbabwe",
]
BDD_LABELS = [
    "bicycle", "bus", "car", "motorcycle", "pedestrian", "rider", "traffic light", "traffic sign", "truck",
]
# fmt: on
CELEBA_ATTRIBUTES = [f"Attribute_{number}" for number in range(38)]


def released(root: Path, name: str, version: str) -> Path:
    folder = root / f"{name}_v{version}"
    folder.mkdir(parents=True)
    (folder / f"RELEASE_v{version}.txt").write_text("complete\n")
    return folder


def pictures(
    folder: Path, paths: Iterable[str], width: int = SIDE, height: int = SIDE, seed: int = 0
) -> None:
    """Noise, another for every image."""
    stream = np.random.default_rng(seed)
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns))


# --- Camelyon17 -------------------------------------------------------------------------------------


def camelyon17(root: Path) -> None:
    """Five hospitals of two slides; slide 23 is the one that mixed-to-test moves."""
    rows = [
        (f"{center:03}", slide, 32 * number, 64, number % 2, 10 * center + slide, center, int(number > 4))
        for center in range(5)
        for slide in (0, 3)
        for number in range(6)
    ]
    columns = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
    _patches(released(root, "camelyon17", "1.0"), table(columns, rows))


def camelyon17_unlabeled(root: Path) -> None:
    """Four patches of every hospital, of slides of their own."""
    rows = [(f"{c:03}", 7, 32 * n, 0, -1, 10 * c + 5, c, -1) for c in range(5) for n in range(4)]
    columns = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
    _patches(released(root, "camelyon17_unlabeled", "1.0"), table(columns, rows))


def _patches(folder: Path, rows: pd.DataFrame) -> None:
    rows.to_csv(folder / "metadata.csv")
    for r in rows.itertuples():
        slide = f"patient_{r.patient}_node_{r.node}"
        pictures(folder / "patches" / slide, [f"patch_{slide}_x_{r.x_coord}_y_{r.y_coord}.png"], seed=r.Index)


# --- iWildCam ---------------------------------------------------------------------------------------


def iwildcam(root: Path) -> None:
    """Three locations to train on, one each for validation and test, four species; and unlabeled images."""
    folder = released(root, "iwildcam", "2.0")
    where = [("train", 0), ("train", 1), ("train", 2), ("id_val", 0), ("id_test", 1), ("val", 3), ("test", 4)]
    rows = table(
        ("split", "location_remapped", "y", "datetime"),
        (
            (split, location, species, f"20{12 + location}-0{1 + species}-11 0{species}:30:00.000")
            for split, location in where
            for species in (0, 1, 2, 3, 0)
        ),
    )
    rows["sequence_remapped"] = range(len(rows))
    rows["filename"] = [f"{number}.png" for number in rows.index]
    rows.to_csv(folder / "metadata.csv")
    pictures(folder / "train", rows["filename"])

    folder = released(root, "iwildcam_unlabeled", "1.0")
    rows = pd.DataFrame({"location_remapped": [1, 7, 8, 8], "sequence_remapped": range(4), "y": 99999})
    rows = rows.assign(uid=["a", "b", "c", "d"], datetime=["2013-01-01 10:00:00.000", None, None, None])
    rows.to_csv(folder / "metadata.csv")
    pictures(folder / "images", rows["uid"] + ".jpg")


# --- FMoW -------------------------------------------------------------------------------------------


def fmow(root: Path) -> None:
    """Every split, year and region there is, and a country of no region; dates with and without fractions."""
    folder = released(root, "fmow", "1.1")
    countries = {"CHN": "Asia", "DEU": "Europe", "KEN": "Africa", "BRA": "Americas", "FJI": "Oceania"}
    mapping = table(("alpha-3", "region"), countries.items())
    mapping.to_csv(folder / "country_code_mapping.csv", index=False)
    years, kinds = (2003, 2012, 2014, 2016, 2017), ("airport", "barn", "zoo")
    places = itertools.product(("train", "val", "test", "seq"), years, (*countries, "XXX"))
    rows = table(
        ("split", "timestamp", "country_code", "category"),
        (
            (split, f"{year}-08-02T09:10:11{'.123' if number % 3 else ''}Z", country, kinds[number % 3])
            for number, (split, year, country) in enumerate(places)
        ),
    )
    rows.to_csv(folder / "rgb_metadata.csv", index=False)
    pictures(folder, (f"images/rgb_img_{number}.png" for number in rows.index))


# --- RxRx1 ------------------------------------------------------------------------------------------


def rxrx1(root: Path) -> None:
    """Two types of cell, seven experiments of four treatments at two sites."""
    folder = released(root, "rxrx1", "1.0")
    experiments = {"HEPG2-01": "train", "HEPG2-02": "train", "HUVEC-01": "train", "HUVEC-02": "train"}
    experiments |= {"HEPG2-08": "val", "HEPG2-09": "test", "HUVEC-09": "test"}
    rows = table(
        ("cell_type", "dataset", "experiment", "plate", "well", "site", "sirna_id"),
        (
            (experiment[:5], split, experiment, 1 + treatment % 2, f"B0{treatment}", site, treatment)
            for experiment, split in experiments.items()
            for treatment in range(4)
            for site in (1, 2)
        ),
    )
    rows.to_csv(folder / "metadata.csv", index=False)
    names = (f"images/{r.experiment}/Plate{r.plate}/{r.well}_s{r.site}.png" for r in rows.itertuples())
    pictures(folder, names)


# --- DomainNet --------------------------------------------------------------------------------------


def domainnet(root: Path) -> None:
    """Three categories in four domains, and the same with the numbers of the 40-class version."""
    folder = released(root, "domainnet", "1.0")
    numbers = {"airplane": 1, "ant": 6, "zebra": 343}
    rows = table(
        ("image_path", "domain", "split", "category", "y"),
        (
            (f"{domain}/{category}/{split}_{number}.png", domain, split, category, numbers[category])
            for domain in ("clipart", "painting", "real", "sketch")
            for split in ("train", "test")
            for category in numbers
            for number in range(2)
        ),
    )
    rows.to_csv(folder / "metadata.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    sentry = rows.assign(y=rows["category"].map({"airplane": 0, "ant": 1, "zebra": 39}))
    sentry.to_csv(folder / "sentry_metadata.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    pictures(folder, rows["image_path"], width=15, height=11)


# --- CelebA, Waterbirds, BDD100K --------------------------------------------------------------------


def celebA(root: Path) -> None:
    folder = released(root, "celebA", "1.0")
    rows = list(itertools.product((0, 1, 2), (-1, 1), (-1, 1), range(2)))  # partition, blond, male
    names = [f"{number:06}.png" for number in range(len(rows))]
    attributes = pd.DataFrame({"image_id": names, **dict.fromkeys(CELEBA_ATTRIBUTES, -1)})
    attributes.insert(10, "Blond_Hair", [blond for _, blond, _, _ in rows])
    attributes.insert(21, "Male", [male for _, _, male, _ in rows])
    attributes.to_csv(folder / "list_attr_celeba.csv", index=False)
    partition = pd.DataFrame({"image_id": names, "partition": [split for split, _, _, _ in rows]})
    partition.to_csv(folder / "list_eval_partition.csv", index=False)
    pictures(folder / "img_align_celeba", names, width=SIDE, height=17)


def waterbirds(root: Path) -> None:
    folder = released(root, "waterbirds", "1.0")
    rows = table(("split", "y", "place", "number"), itertools.product((0, 1, 2), (0, 1), (0, 1), range(3)))
    rows["img_filename"] = [f"{1 + r.y:03}.Bird/Bird_{r.Index}.png" for r in rows.itertuples()]
    rows.assign(img_id=rows.index + 1, place_filename="/p.jpg").to_csv(folder / "metadata.csv", index=False)
    pictures(folder, rows["img_filename"], width=20, height=14)


def bdd100k(root: Path) -> None:
    folder = released(root, "bdd100k", "1.0")
    stream = np.random.default_rng(1)
    groups = {"timeofday": {"train": [0], "val": [0, 1], "test": [1, 2, 3]}}
    groups["location"] = {"train": [0], "val": [0, 1], "test": [1]}
    for scheme, splits in groups.items():
        for split, of_split in splits.items():
            names = [f"{split}_{number}.png" for number in range(8)]
            labels = {name: stream.integers(0, 2, len(names)) for name in BDD_LABELS}
            rows = pd.DataFrame({"image": names, "group": np.resize(of_split, len(names)), **labels})
            rows.to_csv(folder / f"{scheme}_{split}.csv", index=False)
            if scheme == "timeofday":
                pictures(folder / "images", names, width=21, height=SIDE)


# --- PovertyMap and SQF -----------------------------------------------------------------------------


def poverty(root: Path) -> None:
    """4,600 clusters, since 2,000 of the countries to train on are for evaluation; 16 images among them."""
    stream = np.random.default_rng(2)
    folder = released(root, "poverty", "1.1")
    rows = pd.DataFrame({"country": np.tile(COUNTRIES, 200), "urban": np.tile([True, False], 2300)})
    rows["wealthpooled"] = stream.normal(size=len(rows)) + rows["urban"]
    rows.to_csv(folder / "dhs_metadata.csv", index=False)
    _bands(folder, len(rows), stream)
    folder = released(root, "poverty_unlabeled", "1.0")
    pd.DataFrame({"country": COUNTRIES}).to_csv(folder / "unlabeled_metadata.csv", index=False)
    _bands(folder, len(COUNTRIES), stream)


def _bands(folder: Path, count: int, stream: np.random.Generator) -> None:
    (folder / "images").mkdir()
    names = [folder / "images" / f"landsat_poverty_img_{number}.npz" for number in range(count)]
    for name in names[:16]:
        np.savez(name, x=stream.normal(size=(8, SIDE, SIDE)).astype(np.float32))
    for number, name in enumerate(names[16:], 16):
        os.link(names[number % 16], name)


def sqf(root: Path) -> None:
    stream, n = np.random.default_rng(3), 800
    folder = released(root, "sqf", "1.0")
    year = stream.choice([2009, 2010, 2011, 2012], n)
    choices = {
        "suspected.crime": ["cpw", "cpw", "cpw", "robbery"],
        "suspect.race": ["black", "black", "white hispanic", "black hispanic", "white", "other"],
        "borough": ["Bronx", "Bronx", "Brooklyn", "Manhattan", "Queens", "Staten Island"],
        "found.weapon": [True, False, False],
        "precinct": [1, 14, 40],
        "inside.outside": ["inside", "outside"],
        "location.housing": ["housing", "transit", "neither"],
        **{
            name: [0, 1] for name in ("radio.run", "officer.uniform", "stopped.bc.bulge", "additional.report")
        },
    }
    rows = pd.DataFrame({name: stream.choice(values, n) for name, values in choices.items()})
    rows = rows.assign(year=year, **{"train.period": year <= 2010})
    for name in ("suspect.height", "suspect.weight", "suspect.age", "observation.period"):
        rows[name] = stream.normal(50, 9, n).round(1)
    rows.loc[5, "suspect.age"] = None  # such rows the class leaves out
    rows.to_csv(folder / "sqf.csv")


PROOF = "test_wilds.py::test_official_numbers_are_those_of_the_package_and_of_a_plain_recomputation"
FEW_DOMAINS = dict.fromkeys(("fmow", "rxrx1"), ("train.rows=2",))  # the benchmark draws from more
LAYOUTS = {
    **{
        f"wilds:{write.__name__}": Layout(
            write, (*SMALL, *FEW_DOMAINS.get(write.__name__, ())), proof=f"{PROOF}[{write.__name__}]"
        )
        for write in (camelyon17, iwildcam, fmow, rxrx1, domainnet, celebA, waterbirds, bdd100k)
    },
    "wilds:poverty": Layout(
        poverty,
        ("model.name=resnet18", "model.weights=scratch", "train.batch_size=4"),
        proof=f"{PROOF}[poverty]",
    ),
    "wilds:sqf": Layout(sqf, ("train.batch_size=4",), proof=f"{PROOF}[sqf]"),
}
