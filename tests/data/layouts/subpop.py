"""SubpopBench's tables with a few dozen examples each, of every group at validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dgharness import registry
from dgharness.data.dataset import Dataset
from dgharness.hparams import checked
from layouts import Layout
from layouts.bundled import mnist

SETS = ("data.size=8", "model.name=mlp", "model.width=8", "train.batch_size=4")
TEXT = (
    "data.tokenizer=hashing",
    "data.max_tokens=12",
    "model.weights=scratch",
    "model.layers=1",
    "model.heads=2",
    "model.width=16",
    "train.batch_size=4",
)
ELSEWHERE = "/another/machine/data"  # whole paths are those of whoever wrote the table
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")


def table(
    splits: Sequence[object], classes: int, values: int, each: int = 2, absent: int = 0
) -> pd.DataFrame:
    """``each`` rows of every group in every split; the first ``absent`` groups are not in the first split."""
    rows = [
        (split, y, a)
        for split in splits
        for y in range(classes)
        for a in range(values)
        for _ in range(0 if split == splits[0] and y * values + a < absent else each)
    ]
    return pd.DataFrame(rows, columns=["split", "y", "a"])


def write_images(root: Path, paths: Sequence[str]) -> None:
    stream = np.random.default_rng(0)
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 9), tuple(stream.integers(0, 256, 3).tolist())).save(file)


def write(root: Path, file: str, rows: pd.DataFrame, names: Sequence[str], folder: str) -> None:
    """Images at ``names`` in ``folder``, and the table that names them."""
    write_images(root / folder, names)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False)


def write_relative(root: Path, file: str, folder: str, rows: pd.DataFrame) -> None:
    names = [f"{number:06}.jpg" for number in range(len(rows))]
    write(root, file, rows.assign(id=range(len(rows)), filename=names), names, folder)


def write_whole(root: Path, file: str, rows: pd.DataFrame, folders: Sequence[str]) -> None:
    """``folders`` of the images, row by row, beneath the data root."""
    names = [f"{folder}/{number}.jpg" for number, folder in enumerate(folders)]
    write(root, file, rows.assign(filename=[f"{ELSEWHERE}/{name}" for name in names]), names, "")


def waterbirds(root: Path) -> None:
    folder = "waterbirds/waterbird_complete95_forest2water2"
    write_relative(root, "waterbirds/metadata_waterbirds.csv", folder, table([0, 1, 2], 2, 2, each=4))


def celeba(root: Path) -> None:
    write_relative(
        root, "celeba/metadata_celeba.csv", "celeba/img_align_celeba", table([0, 1, 2], 2, 2, each=4)
    )


def metashift(root: Path) -> None:
    rows = table([0, 1, 2], 2, 2, each=4)
    animals, places = np.array(["dog", "cat"])[rows["y"]], np.array(["outdoor", "indoor"])[rows["a"]]
    folders = [
        f"metashift/MetaShift-Cat-Dog-indoor-outdoor/{y}/{y}({a})"
        for y, a in zip(animals, places, strict=True)
    ]
    write_whole(root, "metashift/metadata_metashift.csv", rows, folders)


def nicopp(root: Path) -> None:
    """Sixty classes in six contexts; the first seven groups have no training examples."""
    rows = table([0, 1, 2], 60, 6, each=1, absent=7)
    write_whole(
        root,
        "nicopp/metadata.csv",
        rows,
        [f"nicopp/public_dg_0416/train/{a}/{y}" for y, a in zip(rows["y"], rows["a"], strict=True)],
    )


def imagenet_bg(root: Path) -> None:
    rows = table(["train", "val", "test", "mixed_rand", "only_fg", "no_fg"], 9, 1, each=2)
    places = {"train": "in9l/train", "val": "in9l/val", "test": "bg_challenge/original/val"}
    folders = [
        f"backgrounds_challenge/{places.get(split, f'bg_challenge/{split}/val')}/0{y}_class"
        for split, y in zip(rows["split"], rows["y"], strict=True)
    ]
    write_whole(root, "backgrounds_challenge/metadata.csv", rows, folders)


def breeds(name: str, classes: int, root: Path) -> None:
    """Two subclasses of every class in training, validation and test, two others at the zero-shot test."""
    rows = table([0, 1, 2, 3], classes, 1, each=2)
    number = 4 * rows["y"] + 2 * (rows["split"] == 3) + np.arange(len(rows)) % 2
    part = np.where(rows["split"] < 2, "train", "val")
    folders = [f"imagenet/{of}/n{wnid:08}" for of, wnid in zip(part, number, strict=True)]
    write_whole(root, f"breeds/metadata_{name}.csv", rows, folders)


def chexpert(root: Path) -> None:
    rows = table([0, 1, 2], 2, 6, each=2, absent=1)
    write_whole(
        root,
        "chexpert/subpop_bench_meta/metadata_no_finding.csv",
        rows,
        [f"chexpert/train/patient{number}/study1" for number in range(len(rows))],
    )


def mimic_cxr(root: Path) -> None:
    rows = table([0, 1, 2], 2, 6, each=2)
    write_whole(
        root,
        "MIMIC-CXR-JPG/subpop_bench_meta/metadata_no_finding.csv",
        rows,
        [f"MIMIC-CXR-JPG/files/p10/p{number}/s1" for number in range(len(rows))],
    )


def cxr_multisite(root: Path) -> None:
    rows = table([0, 1, 2, 3], 2, 2, each=3)
    sites = ("MIMIC-CXR-JPG/files/p10/p1/s1", "chexpert/train/patient1/study1")
    write_whole(
        root,
        "MIMIC-CXR-JPG/subpop_bench_meta/metadata_multisite.csv",
        rows,
        [sites[site] for site in rows["a"]],
    )


def mimic_notes(root: Path) -> None:
    """The features are in another order than the table."""
    rows = table([0, 1, 2], 2, 2, each=6).assign(filename=lambda of: np.arange(len(of))[::-1])
    rows["a"] = rows["a"].astype(bool)
    folder = root / "mimic_notes"
    (folder / "subpop_bench_meta").mkdir(parents=True)
    rows.to_csv(folder / "subpop_bench_meta" / "metadata.csv", index=False)
    np.save(folder / "features.npy", np.random.default_rng(0).random((len(rows), 50)))


def civilcomments(root: Path) -> None:
    """Ninety comments; every third mentions nobody, and the others one or two identities."""
    number = np.arange(90)
    mentioned = np.zeros((90, len(IDENTITIES)))
    mentioned[number, number % 8] = 0.6
    mentioned[number[::4], (number[::4] + 3) % 8] = 0.9
    mentioned[::3] = 0.4
    scores = pd.DataFrame(mentioned, columns=list(IDENTITIES))
    told = pd.DataFrame(
        {
            "comment_text": [f'null, "comment" {n}' if n else "null" for n in number],
            "split": np.repeat(["train", "val", "test"], 30),
            "toxicity": number % 2 * 0.7,
        }
    )
    (root / "civilcomments").mkdir(parents=True)
    told.join(scores).to_csv(root / "civilcomments" / "all_data_with_identities.csv")


def multinli(root: Path) -> None:
    """Pairs of sentences in GLUE's three files, with quotes that are none of csv's."""
    rows = table([0, 1, 2], 3, 2, each=3)
    rows["filename"] = np.arange(len(rows))
    folder = root / "multinli" / "glue_data" / "MNLI"
    folder.mkdir(parents=True)
    rows.to_csv(root / "multinli" / "metadata_multinli.csv", index=False)
    pairs = pd.DataFrame(
        {
            "index": rows["filename"],
            "sentence1": [f'He said "{number}' for number in rows["filename"]],
            "sentence2": np.where(rows["a"], "Nobody did.", "null"),
            "label1": "x",
            "gold_label": np.array(["contradiction", "entailment", "neutral"])[rows["y"]],
        }
    )
    for name, first in (("train", 0), ("dev_matched", 18), ("dev_mismatched", 36)):
        part = pairs.iloc[first : first + 18]
        with open(folder / f"{name}.tsv", "w", encoding="utf-8") as file:
            file.writelines("\t".join(map(str, row)) + "\n" for row in [part.columns, *part.to_numpy()])


PROOF = "test_subpop_official.py::test_the_official_numbers_are_those_of_scikit_learn"
IMAGES = {
    "waterbirds": waterbirds,
    "celeba": celeba,
    "metashift": metashift,
    "nico++": nicopp,
    "imagenet-bg": imagenet_bg,
    "living17": partial(breeds, "living17", 17),
    "entity13": partial(breeds, "entity13", 13),
    "entity30": partial(breeds, "entity30", 30),
    "nonliving26": partial(breeds, "nonliving26", 26),
    "chexpert": chexpert,
    "mimic-cxr": mimic_cxr,
    "cxr-multisite": cxr_multisite,
    "cmnist": mnist,
}
TEXTS = {"civilcomments": civilcomments, "civilcomments-fine": civilcomments, "multinli": multinli}
LAYOUTS = {
    **{f"subpop:{name}": Layout(write, SETS, proof=PROOF) for name, write in IMAGES.items()},
    **{
        f"subpop:{name}": Layout(write, TEXT, needs=("transformers",), proof=PROOF)
        for name, write in TEXTS.items()
    },
    "subpop:mimic-notes": Layout(mimic_notes, ("model.width=8", "train.batch_size=4"), proof=PROOF),
}


def loaded(root: Path, name: str, **options: Any) -> Dataset:
    """The dataset ``subpop:NAME`` at ``root``, whose layout is written where there is nothing yet."""
    if not any(path.name != "cache" for path in root.iterdir()):
        LAYOUTS[f"subpop:{name}"].write(root)
    spec = registry.load("datasets", f"subpop:{name}")
    small = {"size": 8, "tokenizer": "hashing"}
    given = {key: value for key, value in small.items() if key in spec.options.model_fields}
    return spec.load(None, root, 0, checked(spec.options, {**given, **options}))
