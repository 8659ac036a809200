"""Which of 128 biological assays a molecule is active in, for scaffolds that training did not see.

A label that was never measured is NaN. The graphs are those of the package ogb, which reads them from its raw
files once and keeps what it made of them beside these.

Paper: Hu et al., Open Graph Benchmark: Datasets for Machine Learning on Graphs, NeurIPS 2020,
arXiv:2005.00687; Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021,
arXiv:2012.07421

Shapes: M rows of the manifest, N molecules of a batch, T = 128 assays.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.tasks import multilabel
from dgharness.data.wilds.compat import import_wilds, without_update_checks
from dgharness.data.wilds.load import (
    WildsOptions,
    data_root,
    manifest_of,
    needs_extra,
    official_eval,
    open_wilds,
)
from dgharness.errors import UsageError

ATOM_PROPERTIES = 9
RAW = ("edge", "node-feat", "edge-feat", "graph-label", "num-node-list", "num-edge-list")
FILES = (
    "RELEASE_v1.txt",
    *(f"raw/{name}.csv.gz" for name in RAW),
    "raw/scaffold_group.npy",
    *(f"split/scaffold/{name}.csv.gz" for name in ("train", "valid", "test")),
)


class MolpcbaOptions(WildsOptions):
    unlabeled: Literal[""] = ""
    """Not available here."""


def load(argument: str | None, root: Path | None, seed: int, options: MolpcbaOptions) -> Dataset:
    """Graphs of molecules, their labels and their scaffolds."""
    with without_update_checks():
        needs_extra("torch_geometric", "graph", "wilds:ogb-molpcba")
    _check_files(data_root(root))
    _without_dataset_collater()
    source = open_wilds("ogb-molpcba", root, options.split_scheme)
    return Dataset(
        name="wilds:ogb-molpcba",
        manifest=manifest_of(source, ["scaffold"], attributes=()),
        reader=Molecules(source.ogb_dataset),
        task=multilabel(source.y_array.shape[1]),
        input_shape=(ATOM_PROPERTIES,),
        defaults=Defaults(model="gin-virtual", eval_every=300, protocol="official", sampler="pooled", rows=4),
        groups=("domain",),
        targets=source.y_array.float(),
        official=official_eval(source, lambda logits_NT: logits_NT),
        official_metric="ap",
        replicates=3,
    )


def _check_files(root: Path) -> None:
    # Where one is missing, ogb asks on the terminal whether to delete the folder, or downloads it.
    folder = root / ("ogbg_molpcba_pyg" if (root / "ogbg_molpcba_pyg").exists() else "ogbg_molpcba")
    made = (folder / "processed" / "geometric_data_processed.pt").is_file()
    needed = [file for file in FILES if not (made and file.endswith(".csv.gz") and file.startswith("raw/"))]
    for file in needed:
        if not (folder / file).is_file():
            raise UsageError(
                f"wilds:ogb-molpcba is not complete in {root}: there is no {folder / file}; "
                "dgharness datasets check wilds:ogb-molpcba --root DIR says which files belong where"
            )


def _without_dataset_collater() -> None:
    """Let the class make the collater of today's PyTorch Geometric, which asks for a dataset first."""
    from torch_geometric.loader.dataloader import Collater

    import_wilds()
    with without_update_checks():
        module = importlib.import_module("wilds.datasets.ogbmolpcba_dataset")
    module.PyGCollater = partial(Collater, None)  # type: ignore[attr-defined]


class Molecules:
    """A reader of graphs that live in memory; a batch of them is one graph of several parts."""

    def __init__(self, graphs: Any) -> None:
        self.graphs = graphs

    def __call__(self, index_N: Tensor) -> Any:
        from torch_geometric.data import Batch

        chosen = [self.graphs.get(row) for row in index_N.tolist()]
        return Batch.from_data_list(chosen, exclude_keys=["y"])

    def to(self, device: torch.device) -> Molecules:
        return self


ogb_molpcba = DatasetSpec(
    load,
    MolpcbaOptions,
    layout="""ogbg_molpcba/
  RELEASE_v1.txt
  raw/edge.csv.gz, node-feat.csv.gz, edge-feat.csv.gz, graph-label.csv.gz, num-node-list.csv.gz,
    num-edge-list.csv.gz, scaffold_group.npy
  split/scaffold/train.csv.gz, valid.csv.gz, test.csv.gz""",
    doc=__doc__,
)
"""Which of 128 biological assays a molecule is active in, for scaffolds that training did not see."""
