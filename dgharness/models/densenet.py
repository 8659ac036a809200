"""The densely connected network densenet121 from torchvision.

Huang et al., *Densely Connected Convolutional Networks* (2017). The 1024 features are what enters
``classifier``. The input is expected as the weights saw it: RGB, normalised by ImageNet's mean and standard
deviation, and at least 29 pixels on a side.

The weights are found, checked and named as ``dgharness.models.weights`` says: a file of your own, else
torch's download folder, else a download; their SHA-256 is their identity.

For input of C channels and not three, channel i starts from the filters of channel i modulo 3, as in
DomainBed; from scratch, the first convolution is just C wide.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from torch import nn
from torchvision.models import DenseNet121_Weights, get_model

from dgharness.errors import UsageError
from dgharness.hparams import Structural
from dgharness.models.ibn import FixedStatistics
from dgharness.models.model import ModelSpec, image_channels
from dgharness.models.weights import PretrainedOptions, find_weights, load_weights, named_weights

CHECKPOINTS = {"in1k-v1": DenseNet121_Weights.IMAGENET1K_V1.url}
SMALLEST_SIDE = 29  # of what five halvings leave a pixel


class DenseNet121Options(PretrainedOptions):
    weights: Annotated[Literal["in1k-v1", "scratch"], Structural] = "in1k-v1"
    """What training starts from: in1k-v1 (torchvision's ImageNet weights) or scratch."""


def _featurizer(input_shape: tuple[int, ...], options: DenseNet121Options) -> tuple[nn.Module, int]:
    channels = image_channels("densenet121", input_shape)
    if min(input_shape[1:]) < SMALLEST_SIDE:
        raise UsageError(
            f"the model densenet121 takes images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, and "
            f"these are {input_shape[1]} x {input_shape[2]}; choose another model"
        )
    network = get_model("densenet121", weights=None)
    features = network.classifier.in_features
    network.classifier = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
    if channels != 3:
        network.features.conv0 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.features.conv0.weight)
    if options.batchnorm == "frozen":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = FixedStatistics
                module.eval()
    path = find_weights("densenet121", options, CHECKPOINTS)
    if path is not None:
        load_weights(
            network,
            path,
            architecture="densenet121",
            whose="torchvision's densenet121",
            first="features.conv0.weight",
            head="classifier.",
            renamed=_renamed,
        )
    return network, features


def _renamed(name: str) -> str:
    """The present name of what torchvision's file calls by that of an older torch.

    >>> _renamed("features.denseblock1.denselayer2.norm.1.weight")
    'features.denseblock1.denselayer2.norm1.weight'
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


densenet121 = ModelSpec(
    featurizer=_featurizer,
    weights=lambda options: named_weights("densenet121", options, CHECKPOINTS),
    options=DenseNet121Options,
    doc=__doc__,
)
