"""Residual networks from torchvision, with weights that are named, found, checked and hashed.

He et al., *Deep Residual Learning for Image Recognition* (2016). The features are what enters ``fc``: 512
for resnet18, 2048 for resnet50. The input is expected as the weights saw it: RGB, normalised by ImageNet's
mean and standard deviation.

A weights file is looked for at ``weights_file``, else in torch's download folder (``TORCH_HOME``), else it
is downloaded. Its SHA-256 is its identity: a checkpoint known by hash keeps its name wherever it lies, any
other file is ``file:<name>``.

With ``norm`` some of the BatchNorms normalise by instance (``dgharness.models.ibn``). Weights for that are
IBN-Net's, which torchvision does not have; they are given as ``weights_file``.

For input of C channels and not three, channel i starts from the filters of channel i modulo 3, as in
DomainBed; from scratch, the first convolution is just C wide.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, get_model

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Choice, Hparams, Neutral, Structural
from dgharness.models.ibn import FixedStatistics, put_instance_norm
from dgharness.models.model import DropoutRate, ModelSpec, image_channels

CHECKPOINTS = {
    "resnet18": {"in1k-v1": ResNet18_Weights.IMAGENET1K_V1.url},
    "resnet50": {
        "in1k-v1": ResNet50_Weights.IMAGENET1K_V1.url,
        "in1k-v2": ResNet50_Weights.IMAGENET1K_V2.url,
    },
}
DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte


class ResNetOptions(Hparams):
    weights_file: Annotated[str | None, Structural] = None
    """A state dict of this architecture to start from, in place of the named weights."""
    batchnorm: Annotated[Literal["frozen", "train"], Structural] = "frozen"
    """Frozen: BatchNorm keeps the statistics of the weights, while its scale and shift still train (as
    DomainBed's freeze_bn). From scratch there are none to keep, so the default there is train."""
    norm: Annotated[Literal["batch", "ibn-a", "ibn-b"], Structural, Neutral("batch")] = "batch"
    """Normalisation layers: BatchNorm, or with InstanceNorm in part of them as IBN-Net's variants a and b
    (unverified: no published number was reproduced)."""
    dropout: Annotated[DropoutRate, Structural, Choice((0.0, 0.1, 0.5))] = 0.0
    """Share of the features dropped."""

    @model_validator(mode="before")
    @classmethod
    def _trains_statistics_from_scratch(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("weights") == "scratch":
            return {"batchnorm": "train", **values}
        return values

    @model_validator(mode="after")
    def _weights_fit_the_norm(self) -> ResNetOptions:
        weights = getattr(self, "weights", "scratch")
        if self.norm != "batch" and weights != "scratch" and self.weights_file is None:
            raise UsageError(
                f"there are no weights {weights} for model.norm={self.norm}: give those of IBN-Net with "
                "--set model.weights_file=PATH, or --set model.weights=scratch"
            )
        return self


class ResNet18Options(ResNetOptions):
    weights: Annotated[Literal["in1k-v1", "scratch"], Structural] = "in1k-v1"
    """What training starts from: in1k-v1 (torchvision's ImageNet weights) or scratch."""


class ResNet50Options(ResNetOptions):
    weights: Annotated[Literal["in1k-v1", "in1k-v2", "scratch"], Structural] = "in1k-v1"
    """What training starts from: in1k-v1 or in1k-v2 (torchvision's ImageNet weights) or scratch."""


# --- the network -----------------------------------------------------------------------------------


def _featurizer(architecture: str, input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    channels = image_channels(architecture, input_shape)
    norm = FixedStatistics if options.batchnorm == "frozen" else nn.BatchNorm2d
    network = get_model(architecture, weights=None, norm_layer=norm)
    if options.norm != "batch":
        put_instance_norm(network, options.norm, input_shape)
    features = network.fc.in_features
    network.fc = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    path = find_weights(architecture, options)
    if path is not None:
        whose = f"torchvision's {architecture}" if options.norm == "batch" else f"IBN-Net's {architecture}"
        _load(network, architecture, path, channels, whose)
    return network, features


def _load(network: nn.Module, architecture: str, path: Path, channels: int, whose: str) -> None:
    stored = _read(path)
    given = {name: value for name, value in stored.items() if not name.startswith("fc.")}
    first = given.get("conv1.weight")
    if first is not None and first.ndim == 4:
        given["conv1.weight"] = first[:, torch.arange(channels) % first.shape[1]]
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    misfits = [f"it has no {name}" for name in wanted if name not in given]
    misfits += [
        f"{name} is {list(given[name].shape)} and not {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    known = network.state_dict().keys()
    misfits += [f"{name} is not part of that network" for name in given if name not in known]
    if misfits:
        raise UsageError(
            f"the weights in {path} do not fit {architecture}: {misfits[0]} ({len(misfits)} such entries); "
            f"give a state dict of {whose} or --set model.weights=scratch"
        )
    network.load_state_dict(given)


def _read(path: Path) -> dict[str, Tensor]:
    advice = "save it anew with torch.save(model.state_dict(), PATH)"
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        reason = type(error).__name__
        raise UsageError(f"{path} cannot be read as a file of tensors ({reason}); {advice}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UsageError(f"{path} is not a state dict (names and tensors, nothing else); {advice}")
    return stored


# --- the weights file ------------------------------------------------------------------------------


def find_weights(architecture: str, options: Any) -> Path | None:
    """The file of weights that the options name, downloaded if need be; None for scratch."""
    if options.weights_file is not None:
        path = Path(options.weights_file).expanduser()
        if options.weights == "scratch":
            raise UsageError(
                f"model.weights=scratch and model.weights_file={path} contradict each other; drop one of them"
            )
        if not path.is_file():
            raise UsageError(
                f"there is no weights file {path}; correct model.weights_file or --set model.weights=scratch"
            )
        return path
    if options.weights == "scratch":
        return None
    url = CHECKPOINTS[architecture][options.weights]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(f"{architecture}/{options.weights}", url, path)
    if not sha256(path).startswith(_hash_prefix(url)):
        raise UsageError(
            f"{path} is damaged: its SHA-256 does not begin with {_hash_prefix(url)}; "
            "delete it, so that it is downloaded again"
        )
    return path


def _weights(architecture: str, options: Any) -> tuple[str, str | None]:
    path = find_weights(architecture, options)
    if path is None:
        return "scratch", None
    sha = sha256(path)
    known = [name for name, url in CHECKPOINTS[architecture].items() if sha.startswith(_hash_prefix(url))]
    return (known[0] if known else f"file:{path.name}"), sha


def sha256(path: Path) -> str:
    """The SHA-256 of a file, computed once for each state of it."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_prefix(url: str) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    assert match, f"{url} carries no hash"
    return match[1]


def _download(name: str, url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), _hash_prefix(url), progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UsageError(
            f"the weights {name} are not at {path} and could not be fetched from {url} ({error}); put the "
            "file there, name one with --set model.weights_file=PATH, or --set model.weights=scratch"
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _spec(architecture: str, options: type[ResNetOptions]) -> ModelSpec:
    return ModelSpec(
        featurizer=partial(_featurizer, architecture),
        weights=partial(_weights, architecture),
        options=options,
        doc=__doc__,
    )


resnet18 = _spec("resnet18", ResNet18Options)
resnet50 = _spec("resnet50", ResNet50Options)
