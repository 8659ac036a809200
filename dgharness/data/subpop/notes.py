"""``subpop:mimic-notes``: does a patient die in intensive care, from the words of the first notes.

The words are tf-idf features, 10,000 of them, in a plain array. Access to MIMIC-III is needed to make it.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.images import MemoryMapped
from dgharness.data.subpop.table import (
    SubpopOptions,
    Table,
    defaults,
    read_table,
    row_numbers,
    subpopulations,
    with_domain,
)
from dgharness.data.tasks import classification
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError

FEATURES = "mimic_notes/features.npy"
TABLE = Table("mimic_notes/subpop_bench_meta/metadata.csv", ("survived", "died"), "sex", ("female", "male"))


def load(argument: str | None, root: Path | None, trial_seed: int, options: SubpopOptions) -> Dataset:
    """Read the table and map the features into memory; ``filename`` is a row of them."""
    place, known = data_root(root), options.attributes == "known"
    manifest = read_table("subpop:mimic-notes", place, TABLE)
    manifest = with_domain(manifest, TABLE.attribute, known)
    features = _features(place / FEATURES)
    row_M = row_numbers(place / TABLE.file, manifest.pop("filename"), len(features), FEATURES)
    return Dataset(
        name="subpop:mimic-notes",
        manifest=manifest.assign(row=row_M, bytes=(place / FEATURES).stat().st_size),
        reader=MemoryMapped(place / FEATURES, row_M),
        task=classification(2),
        input_shape=features.shape[1:],
        defaults=defaults("mlp", 10000, 200),
        prepare=_prepare,
        **subpopulations(manifest, TABLE.attribute, known, metric="auroc_worst_attribute"),
    )


mimic_notes = DatasetSpec(
    load,
    SubpopOptions,
    layout=f"{TABLE.layout}\n{FEATURES}\n  an array [rows, 10000], not sparse; filename is its row",
    doc=__doc__,
)
"""Death or survival in intensive care, from the words of the first notes (Johnson et al. 2016)."""


def _features(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"subpop:mimic-notes needs {path}; put the array of tf-idf features there")
    try:
        features = np.load(path, mmap_mode="r")
    except ValueError as error:  # pickled: nothing is unpickled that others wrote
        raise UsageError(
            f"{path} is no plain array ({error}); a sparse matrix is saved with "
            "numpy.save(path, features.toarray().astype('float32'))"
        ) from error
    if features.ndim != 2 or features.dtype.kind != "f":
        raise UsageError(
            f"{path} holds {list(features.shape)} of {features.dtype}, and a row of numbers is needed for "
            "every patient; save it with numpy.save(path, features.toarray().astype('float32'))"
        )
    return features


def _prepare(x_ND: Tensor) -> Tensor:
    return x_ND.float()
