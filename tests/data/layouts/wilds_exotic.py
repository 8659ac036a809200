"""WILDS' graphs, photographs with boxes, code and genomes, in miniature and in their official layouts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from . import Layout

SMALL_FCOS = (
    "model.weights=scratch",
    "model.blocks=[1, 1, 1, 1]",
    "model.bottleneck=8",
    "model.width=32",
    "model.tower=1",
)


def write_molpcba(root: Path, scaffolds: int = 12) -> None:
    """Six molecules of each scaffold, half of them for training; a third of the labels was never measured."""
    rng = np.random.default_rng(0)
    folder = root / "ogbg_molpcba"
    scaffold_M = np.repeat(np.arange(scaffolds), 6)
    atoms_M = rng.integers(3, 8, len(scaffold_M))
    ends = [np.stack([np.arange(n - 1), np.arange(1, n)], axis=1) for n in atoms_M]  # chains
    labels = rng.integers(0, 2, (len(scaffold_M), 128)).astype(float)
    labels[rng.random(labels.shape) < 1 / 3] = np.nan
    tables = {
        "raw/edge": np.concatenate(ends),
        "raw/num-node-list": atoms_M,
        "raw/num-edge-list": atoms_M - 1,
        "raw/node-feat": rng.integers(0, 2, (atoms_M.sum(), 9)),
        "raw/edge-feat": rng.integers(0, 2, ((atoms_M - 1).sum(), 3)),
        "raw/graph-label": labels,
        **{
            f"split/scaffold/{split}": np.flatnonzero(np.isin(4 * scaffold_M // scaffolds, quarters))
            for split, quarters in (("train", (0, 1)), ("valid", (2,)), ("test", (3,)))
        },
    }
    for name, table in tables.items():
        file = folder / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_csv(file, header=False, index=False)
    np.save(folder / "raw" / "scaffold_group.npy", scaffold_M)
    (folder / "RELEASE_v1.txt").touch()


WHEAT_SPLITS = {  # file -> sessions, and images of each
    "official_train": ((0, 1, 12), 4),
    "official_val": ((22, 23), 2),
    "official_test": ((30, 46), 3),
    "fixed_train_val": ((0, 1, 12), 1),
    "fixed_train_test": ((0, 1, 12), 1),
}


def write_globalwheat(root: Path) -> None:
    """Yellow rectangles on green, and a field without any in every split."""
    wheat = importlib.import_module("wilds.datasets.globalwheat_dataset")
    rng = np.random.default_rng(0)
    folder = root / "globalwheat_v1.1"
    (folder / "images").mkdir(parents=True)
    for split, (sessions, count) in WHEAT_SPLITS.items():
        rows = []
        for session in np.repeat(sessions, count):
            name = f"{split}_{len(rows)}.png"
            corner = rng.integers(0, 800, ((len(rows) * 3 + 2) % 5, 2))
            boxes = np.concatenate([corner, corner + rng.integers(80, 220, corner.shape)], axis=1)
            image = Image.new("RGB", (1024, 1024), (30, 90 + int(session), 40))
            for box in boxes.tolist():
                ImageDraw.Draw(image).rectangle(box, fill=(220, 190, 60))
            image.save(folder / "images" / name)
            text = ";".join(" ".join(map(str, box)) for box in boxes.tolist())
            rows.append({"image_name": name, "BoxesString": text or "no_box", "domain": session})
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    pd.DataFrame(
        {
            "name": wheat.SESSIONS,
            "country": np.resize(wheat.COUNTRIES, len(wheat.SESSIONS)),
            "location": np.resize(wheat.LOCATIONS, len(wheat.SESSIONS)),
            "development_stage": np.resize(wheat.STAGES, len(wheat.SESSIONS)),
        }
    ).to_csv(folder / "metadata_domain.csv", sep=";", index=False)
    (folder / "RELEASE_v1.1.txt").touch()


CODE_SPLITS = {  # split -> repositories, and files
    "train": ((0, 1, 2, 3), 24),
    "IDval": ((0, 1, 2, 3), 8),
    "OODval": ((4, 5), 8),
    "IDtest": ((0, 1, 2, 3), 8),
    "OODtest": ((6, 7), 8),
}


def write_py150(root: Path, length: int = 12) -> None:
    """Sequences of 12 tokens; the last ones are padding. No literal occurs in the tests."""
    rng = np.random.default_rng(0)
    folder = root / "py150_v1.0"
    (folder / "processed").mkdir(parents=True)
    names = folder / "metadata" / "repo_file_names"
    names.mkdir(parents=True)
    for split, (repositories, files) in CODE_SPLITS.items():
        token = rng.integers(5, 50_001, (files, length))
        kind = rng.choice([0, 1, 2, 3, 4, 6], token.shape)
        padded = np.arange(length) >= rng.integers(length // 2, length, (files, 1))
        token[padded], kind[padded] = 1, -100
        (folder / "processed" / f"{split}_input.json").write_text(json.dumps(token.tolist()))
        (folder / "processed" / f"{split}_input_tok_type.json").write_text(json.dumps(kind.tolist()))
        lines = [f"user/repository{repositories[n % len(repositories)]}/file{n}.py" for n in range(files)]
        (names / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    repositories = pd.DataFrame({"id": range(8), "repo_name": [f"user/repository{n}" for n in range(8)]})
    repositories.to_csv(names / "repo_ids.csv", index=False)
    (folder / "RELEASE_v1.0.txt").touch()


CELLS = ["H1-hESC", "HCT116", "HeLa-S3", "K562", "A549", "GM12878", "HepG2", "liver"]
EVALUATED = ("chr1", "chr2", "chr8", "chr9", "chr11", "chr21")
CHROMOSOMES = [f"chr{name}" for name in (*range(1, 23), "X")]
LENGTH = 20_000  # base pairs of a chromosome here


def write_encode(root: Path) -> None:
    """Chromosomes of 20,000 base pairs, normalised files of accessibility, and ambiguous labels."""
    import pyBigWig

    rng = np.random.default_rng(0)
    folder = root / "encode_v1.0"
    (folder / "labels" / "MAX").mkdir(parents=True)
    pattern = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, 500)]
    np.savez_compressed(
        folder / "sequence.npz",
        **{
            name: np.tile(np.roll(pattern, n, axis=0), (LENGTH // 500, 1))
            for n, name in enumerate(CHROMOSOMES)
        },
    )
    rows = [
        (chromosome, 3200 + 50 * n, 9600 + 50 * n, cell)
        for chromosome in CHROMOSOMES
        for cell in CELLS
        for n in range(9 if chromosome in EVALUATED else 2)
    ]
    pd.DataFrame(rows).to_csv(
        folder / "labels" / "MAX" / "metadata_df.bed", sep="\t", header=False, index=False
    )
    labels = rng.choice(np.float32([0.0, 0.5, 1.0]), (len(rows), 128), p=[0.8, 0.1, 0.1])
    labels[rng.random(len(rows)) < 0.2] = 0.0  # not bound at all
    np.save(folder / "labels" / "MAX" / "metadata_y.npy", labels)
    starts = list(range(0, LENGTH, 500))
    for cell in CELLS:
        np.save(folder / f"qn.{cell}.npy", np.sort(rng.random(100)))
        file = pyBigWig.open(str(folder / f"DNase.MAX.{cell}.official.bigwig"), "w")
        file.addHeader([(name, LENGTH) for name in CHROMOSOMES])
        for name in CHROMOSOMES:
            values = rng.random(len(starts)).tolist()
            file.addEntries([name] * len(starts), starts, ends=[s + 500 for s in starts], values=values)
        file.close()
    (folder / "RELEASE_v1.0.txt").touch()


PROOF = "test_wilds_exotic.py::test_the_official_evaluation_is_that_of_wilds"
LAYOUTS = {
    "wilds:ogb-molpcba": Layout(
        write_molpcba,
        ("train.batch_size=4", "model.width=16", "model.depth=2"),
        needs=("torch_geometric",),
        proof=PROOF,
    ),
    "wilds:globalwheat": Layout(
        write_globalwheat, ("data.size=128", "train.batch_size=2", *SMALL_FCOS), proof=PROOF
    ),
    "wilds:py150": Layout(
        write_py150,
        ("model.weights=scratch", "model.width=8", "model.layers=1", "model.heads=2"),
        needs=("transformers",),
        proof=PROOF,
    ),
    "wilds:encode": Layout(
        write_encode,
        ("train.batch_size=1", "model.width=2", "model.depth=3"),
        needs=("pyBigWig",),
        proof=PROOF,
    ),
}
