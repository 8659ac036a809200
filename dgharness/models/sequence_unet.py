"""A one-dimensional U-Net over a genomic sequence, with an output for every bin of its central half.

Of the kind of Leopard (Li and Guan, *Fast decoding cell type-specific transcription factor binding landscape
at single-nucleotide resolution*, 2021), which WILDS trains on ENCODE: five halvings from 15 channels, each
half as wide again, and back with skip connections; convolutions of width 7, each followed by ReLU and
BatchNorm. A bin is 200 places wide and begins 50 after the one before; the first begins a quarter into
the sequence. Its features are the mean over its places, and one linear map serves all bins.

Shapes: N sequences, S places, W channels, T bins; the features [N, D] are those of all bins, D = T*W.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams, Structural
from dgharness.models.model import ModelSpec

WINDOW, STEP = 200, 50  # places of a bin, and from one to the next


class SequenceUNetOptions(Hparams):
    width: Annotated[PositiveInt, Structural] = 15
    """Channels of the first block; each halving has half as many again."""
    depth: Annotated[PositiveInt, Structural] = 5
    """Number of halvings."""


class SequenceUNet(nn.Module):
    """Sequences [N, channels, S] to features [N, T*W]."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [int(width * 1.5**level) for level in range(depth + 1)]
        self.inward = _block(channels, width)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        self.halve = nn.MaxPool1d(2)
        self.widen = nn.ModuleList(
            nn.ConvTranspose1d(b, a, kernel_size=2, stride=2)
            for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.up = nn.ModuleList(_block(2 * a, a) for a in widths[-2::-1])
        self.bins = nn.AvgPool1d(WINDOW, STEP)

    def forward(self, x_NCS: Tensor) -> Tensor:
        h = self.inward(x_NCS)
        skipped = []
        for block in self.down:
            skipped.append(h)
            h = block(self.halve(h))
        for widen, block in zip(self.widen, self.up, strict=True):
            h = block(_joined(widen(h), skipped.pop()))
        first, last = central(x_NCS.shape[-1])
        return self.bins(h[..., first:last]).transpose(1, 2).flatten(1)


class EveryBin(nn.Module):
    """The same linear map for the features of every bin: [N, T*W] to [N, T]."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.bins, self.linear = bins, nn.Linear(width, 1)

    def forward(self, z_ND: Tensor) -> Tensor:
        return self.linear(z_ND.unflatten(-1, (self.bins, -1))).squeeze(-1)


def central(length: int) -> tuple[int, int]:
    """The places from the first bin to the end of the last.

    >>> central(12_800)
    (3200, 9750)
    """
    return length // 4, length // 4 + (length // 2 // STEP - 1) * STEP + WINDOW


def _joined(h: Tensor, skipped: Tensor) -> Tensor:
    """Side by side; the place that halving an odd length dropped is empty."""
    return torch.cat([nn.functional.pad(h, (0, skipped.shape[-1] - h.shape[-1])), skipped], dim=1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv1d(channels, outputs, 7, padding=3), nn.ReLU(), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*layers)


def _featurizer(input_shape: tuple[int, ...], options: SequenceUNetOptions) -> tuple[nn.Module, int]:
    if len(input_shape) != 2 or central(input_shape[1])[1] > input_shape[1] or input_shape[1] < 4 * WINDOW:
        raise UsageError(
            f"the model sequence-unet takes sequences [channels, places] of at least {4 * WINDOW} places, "
            f"and an example of this dataset has shape {list(input_shape)}; choose another model"
        )
    bins = input_shape[1] // 2 // STEP
    return SequenceUNet(input_shape[0], options.width, options.depth), bins * options.width


def _classifier(features: int, outputs: int, options: SequenceUNetOptions) -> nn.Module:
    if features != outputs * options.width:
        raise UsageError(
            f"the model sequence-unet has an output for each of {features // options.width} bins here, and "
            f"the task has {outputs}; choose another model"
        )
    return EveryBin(options.width, outputs)


sequence_unet = ModelSpec(
    featurizer=_featurizer, classifier=_classifier, options=SequenceUNetOptions, doc=__doc__
)
