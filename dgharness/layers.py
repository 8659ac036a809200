"""The layers of a featurizer by name, and how many channels they put out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgharness.errors import NotApplicable, did_you_mean
from dgharness.step import Dims

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def first_layer(model: Any, method: str) -> str:
    """The first convolution of the featurizer, or its first linear layer if it has none.

    >>> from types import SimpleNamespace
    >>> first_layer(SimpleNamespace(featurizer=nn.Sequential(nn.Flatten(), nn.Linear(4, 2))), "par")
    '1'
    """
    layers = dict(model.featurizer.named_modules())
    for kinds in (CONVOLUTIONS, (nn.Linear,)):
        for name, layer in layers.items():
            if isinstance(layer, kinds):
                return name
    raise NotApplicable(
        f"{method} cannot run here: it looks at an early layer, and the featurizer has neither a convolution "
        "nor a linear layer; choose another model, as in --set model.name=mnist-cnn"
    )


def channels_of(model: Any, names: Sequence[str], dims: Dims, method: str) -> list[int]:
    """How many channels each of the named layers puts out, found by passing zeros through the featurizer."""
    layers = dict(model.featurizer.named_modules())
    for name in names:
        if name not in layers:
            raise NotApplicable(
                f"{method} cannot run here: the featurizer has no layer {name!r}; "
                f"{did_you_mean(name, filter(None, layers))}"
            )
    chosen = [layers[name] for name in names]
    known = [getattr(layer, "out_channels", getattr(layer, "out_features", 0)) for layer in chosen]
    if all(known):
        return known
    found: dict[str, int] = {}
    hooks = [
        layers[name].register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output.shape[1]})
        )
        for name in names
    ]
    was_training, first = model.featurizer.training, next(model.parameters())
    with torch.no_grad():
        model.featurizer.eval()(first.new_zeros(1, *dims.input_shape))
    model.featurizer.train(was_training)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in names]


def as_images(map_: Tensor) -> Tensor:
    """Any map of [N, channels, ...] as [N, channels, H, W]; without positions there is one.

    >>> as_images(torch.zeros(5, 3)).shape, as_images(torch.zeros(5, 3, 7)).shape
    (torch.Size([5, 3, 1, 1]), torch.Size([5, 3, 1, 7]))
    """
    if map_.dim() < 4:
        return map_.reshape(*map_.shape[:2], 1, -1)
    return map_.flatten(3)
