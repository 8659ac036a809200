"""densenet121: torchvision's network, from a file of weights or from scratch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.models import densenet
from dgharness.models.densenet import densenet121
from dgharness.models.model import build_model

SHAPE = (3, 32, 32)
WITHOUT_HEAD = 6_953_856


def options(**given: object) -> Any:
    return checked(densenet121.options, given, "model")


def built(shape: tuple[int, ...] = SHAPE, **given: object) -> Any:
    return build_model(densenet121, shape, 3, options(**given), seed=0)[0]


@pytest.fixture(scope="module")
def network() -> Any:
    """Torchvision's, with statistics that are not those of a fresh one."""
    torch.manual_seed(1)
    network = get_model("densenet121", weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_()
            module.get_buffer("running_var").uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def weights_file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(network.state_dict(), path)
    return path


def features_of(network: Any, x: Tensor) -> Tensor:
    return torch.relu(network.features(x)).mean(dim=(2, 3))


def test_it_has_1024_features_and_no_classification_layer() -> None:
    model, features = build_model(densenet121, (3, 96, 96), 7, options(weights="scratch"), seed=0)
    assert features == 1024
    assert sum(parameter.numel() for parameter in model.featurizer.parameters()) == WITHOUT_HEAD
    assert model.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 7)
    assert densenet121.weights(options(weights="scratch")) == ("scratch", None)


def test_it_computes_what_torchvision_computes_from_the_same_file(network: Any, weights_file: Path) -> None:
    x = torch.randn(2, 3, 64, 64)
    features = built((3, 64, 64), weights_file=str(weights_file)).train().features(x)
    torch.testing.assert_close(features, features_of(network, x))


def test_a_file_with_the_names_of_an_older_torch_and_no_counters_is_the_same_network(
    network: Any, weights_file: Path, tmp_path: Path
) -> None:
    """As torchvision's own checkpoint is written."""
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])", r"\1.\2", name): value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "older.pth")
    x = torch.randn(2, *SHAPE)
    same = built(weights_file=str(weights_file)), built(weights_file=str(tmp_path / "older.pth"))
    assert torch.equal(same[0](x), same[1](x))


def test_named_weights_are_those_that_torchvision_publishes() -> None:
    assert densenet.CHECKPOINTS == {"in1k-v1": "https://download.pytorch.org/models/densenet121-a639ec97.pth"}


def test_the_hash_of_the_file_is_its_identity(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    own = options(weights_file=str(weights_file))
    assert densenet121.weights(own) == ("file:mine.pth", sha)
    monkeypatch.setitem(densenet.CHECKPOINTS, "in1k-v1", f"https://nowhere.invalid/d-{sha[:8]}.pth")
    assert densenet121.weights(own) == ("in1k-v1", sha)


def test_frozen_batchnorm_keeps_its_statistics_in_training_while_its_scale_and_shift_train(
    weights_file: Path,
) -> None:
    model = built(weights_file=str(weights_file)).eval().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model(torch.randn(4, *SHAPE)).square().sum().backward()
    assert len(norms) == 121 and not any(norm.training for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(norm.weight.grad is not None and norm.bias.grad is not None for norm in norms)


def test_training_batchnorm_moves_its_statistics_and_is_what_from_scratch_does(weights_file: Path) -> None:
    assert options().batchnorm == "frozen"
    assert options(weights="scratch").batchnorm == "train"
    model = built(weights_file=str(weights_file), batchnorm="train").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(4, *SHAPE))
    assert not any(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_further_channels_start_from_the_filters_of_the_three_in_turn(
    network: Any, weights_file: Path
) -> None:
    first = built((5, 32, 32), weights_file=str(weights_file)).featurizer.features.conv0
    assert torch.equal(first.weight, network.features.conv0.weight[:, [0, 1, 2, 0, 1]])
    assert built((2, 32, 32), weights="scratch").featurizer.features.conv0.weight.shape == (64, 2, 7, 7)


def test_dropout_acts_on_the_features_in_training_alone(weights_file: Path) -> None:
    model = built(weights_file=str(weights_file), dropout=0.5)
    x = torch.randn(2, *SHAPE)
    dropped, kept = model.train().features(x), model.eval().features(x)
    assert torch.equal(dropped[dropped != 0], 2 * kept[dropped != 0])
    assert ((dropped == 0) & (kept != 0)).any()


def test_what_does_not_fit_is_refused_in_one_sentence(weights_file: Path, tmp_path: Path) -> None:
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(UsageError, match=r"do not fit densenet121: it has no features.conv0.weight"):
        built(weights_file=str(tmp_path / "resnet.pth"))
    with pytest.raises(UsageError, match="contradict each other"):
        built(weights="scratch", weights_file=str(weights_file))
    with pytest.raises(UsageError, match="at least 29 x 29 pixels, and these are 28 x 28"):
        built((3, 28, 28), weights="scratch")
    with pytest.raises(UsageError, match=r"takes images .* shape \[64\]"):
        built((64,), weights="scratch")
