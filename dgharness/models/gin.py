"""The graph isomorphism network with a virtual node, for molecules.

Xu et al., *How Powerful are Graph Neural Networks?* (2019); Hu et al., *Open Graph Benchmark* (2020), for the
virtual node and the embeddings of atoms and bonds. By default as WILDS trains it on OGB-MolPCBA: five layers
of width 300, dropout 0.5; the features are the mean over the atoms of the last layer.

The input is a batch of graphs as PyTorch Geometric makes it: ``x`` [A, 9] and ``edge_attr`` [L, 3] (the
categories of atoms and bonds in OGB's code), ``edge_index`` [2, L], ``batch`` [A] and ``num_graphs``.

Shapes: N molecules, A atoms and L bonds (each in both directions) of all of them, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams, Structural
from dgharness.models.model import DropoutRate, ModelSpec

# How many values each property has: atomic number, chirality, degree, charge, hydrogens, radical electrons,
# hybridisation, aromatic, in a ring; bond type, stereo, conjugated.
ATOM, BOND = (119, 5, 12, 12, 10, 6, 6, 2, 2), (5, 6, 2)


class GINOptions(Hparams):
    width: Annotated[PositiveInt, Structural] = 300
    """Width of every layer, and number of features."""
    depth: Annotated[PositiveInt, Structural] = 5
    """Number of message-passing layers."""
    dropout: Annotated[DropoutRate, Structural] = 0.5
    """Share of the units dropped after each layer."""


class GIN(nn.Module):
    """Batches of molecules to features [N, D]."""

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.atoms = SumOfEmbeddings(ATOM, width)
        self.virtual = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(depth))
        self.updates = nn.ModuleList(
            nn.Sequential(_two_layers(width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
            for _ in range(depth - 1)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, graphs: Any) -> Tensor:
        molecule_A, count = graphs.batch, graphs.num_graphs
        h_AD = self.atoms(graphs.x)
        virtual_ND = self.virtual.expand(count, -1)
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            h_AD = h_AD + virtual_ND[molecule_A]
            if number < len(self.updates):
                virtual_ND = virtual_ND.index_add(0, molecule_A, h_AD)
                virtual_ND = self.updates[number](virtual_ND)
            h_AD = norm(layer(h_AD, graphs.edge_index, graphs.edge_attr))
            h_AD = self.dropout(h_AD.relu() if number < len(self.updates) else h_AD)
        atoms_N = torch.bincount(molecule_A, minlength=count).clamp(min=1)
        return h_AD.new_zeros(count, h_AD.shape[1]).index_add(0, molecule_A, h_AD) / atoms_N[:, None]


class Layer(nn.Module):
    """Every atom hears from its neighbours, each message coloured by its bond."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bonds = SumOfEmbeddings(BOND, width)
        self.epsilon = nn.Parameter(torch.zeros(1))
        self.mlp = _two_layers(width)

    def forward(self, h_AD: Tensor, ends_2L: Tensor, bond_L3: Tensor) -> Tensor:
        message_LD = (h_AD[ends_2L[0]] + self.bonds(bond_L3)).relu()
        return self.mlp(((1 + self.epsilon) * h_AD).index_add(0, ends_2L[1], message_LD))


class SumOfEmbeddings(nn.Module):
    """One embedding for each value of each property, summed over the properties."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        tables = [nn.Embedding(size, width) for size in sizes]
        for table in tables:
            nn.init.xavier_uniform_(table.weight)
        self.tables = nn.ModuleList(tables)

    def forward(self, category: Tensor) -> Tensor:
        return torch.stack([table(category[:, k]) for k, table in enumerate(self.tables)]).sum(0)


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width), nn.ReLU(), nn.Linear(2 * width, width)
    )


def _featurizer(input_shape: tuple[int, ...], options: GINOptions) -> tuple[nn.Module, int]:
    if input_shape != (len(ATOM),):
        raise UsageError(
            f"the model gin-virtual takes molecules of atoms with {len(ATOM)} properties, and an example of "
            f"this dataset has shape {list(input_shape)}; choose another model"
        )
    return GIN(options.width, options.depth, options.dropout), options.width


gin_virtual = ModelSpec(featurizer=_featurizer, options=GINOptions, doc=__doc__)
