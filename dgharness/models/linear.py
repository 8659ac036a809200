"""Logistic regression on the raw input: the features are the flattened input itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from dgharness.models.model import ModelSpec, flat_size


def _featurizer(input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    return nn.Flatten(), flat_size("linear", input_shape)


linear = ModelSpec(featurizer=_featurizer, doc=__doc__)
