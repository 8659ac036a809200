"""A multilayer perceptron on the flattened input, initialised as in the script of the IRM paper.

Arjovsky et al., *Invariant Risk Minimization* (2019): ReLU, Xavier-uniform weights and zero biases in every
layer, the classifier included; two hidden layers of width 390 in its Colored MNIST experiment.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from dgharness.hparams import Annotated, Choice, Hparams, Structural
from dgharness.models.model import DropoutRate, ModelSpec, flat_size


class MLPOptions(Hparams):
    width: Annotated[PositiveInt, Structural] = 390
    """Units of each hidden layer; they are the features."""
    depth: Annotated[NonNegativeInt, Structural] = 2
    """Number of hidden layers."""
    dropout: Annotated[DropoutRate, Structural, Choice((0.0, 0.1, 0.5))] = 0.0
    """Share of the units dropped after each hidden layer."""


def _xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _featurizer(input_shape: tuple[int, ...], options: MLPOptions) -> tuple[nn.Module, int]:
    width = flat_size("mlp", input_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(options.depth):
        layers += [_xavier_linear(width, options.width), nn.ReLU()]
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        width = options.width
    return nn.Sequential(*layers), width


def _classifier(features: int, outputs: int, options: MLPOptions) -> nn.Module:
    return _xavier_linear(features, outputs)


mlp = ModelSpec(featurizer=_featurizer, classifier=_classifier, options=MLPOptions, doc=__doc__)
