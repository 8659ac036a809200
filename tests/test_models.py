"""Models: what they compute, what they start from, and that they start there whatever else happens."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torchvision.models import get_model

from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.models import resnet, weights
from dgharness.models.linear import linear
from dgharness.models.mlp import mlp
from dgharness.models.mnist_cnn import mnist_cnn
from dgharness.models.model import ModelSpec, build_model
from dgharness.models.resnet import resnet18, resnet50
from dgharness.models.weights import without_fetching

SMALL = {"linear": linear, "mlp": mlp, "mnist-cnn": mnist_cnn}
SHAPE = (2, 14, 14)
RESNET_18_WITHOUT_HEAD = 11_176_512
RESNET_50_WITHOUT_HEAD = 23_508_032


def options(spec: ModelSpec, **given: object) -> Any:
    return checked(spec.options, given, "model")


def built(
    spec: ModelSpec, shape: tuple[int, ...] = SHAPE, outputs: int = 3, seed: int = 0, **given: object
) -> Any:
    return build_model(spec, shape, outputs, options(spec, **given), seed)[0]


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = get_model("resnet18", weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_()
            module.get_buffer("running_var").uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(network.state_dict(), path)
    return path


# --- shapes and initialisation ---------------------------------------------------------------------


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_a_model_maps_examples_to_features_and_outputs(spec: ModelSpec) -> None:
    model, features = build_model(spec, SHAPE, 3, options(spec), seed=0)
    x = torch.randn(5, *SHAPE)
    assert model.features(x).shape == (5, features)
    assert model(x).shape == (5, 3)
    assert torch.equal(model(x), model.classify(model.features(x)))


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_initialisation_depends_on_the_seed_alone_and_disturbs_no_other_stream(spec: ModelSpec) -> None:
    torch.manual_seed(1)
    one = built(spec)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert same(one, built(spec))
    assert not same(one, built(spec, seed=1))
    assert not same(one, build_model(spec, SHAPE, 3, options(spec), seed=0, copy=1)[0])


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_the_featurizer_starts_the_same_whatever_the_head(spec: ModelSpec) -> None:
    assert same(built(spec, outputs=3).featurizer, built(spec, outputs=7).featurizer)


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_every_parameter_gets_a_gradient(spec: ModelSpec) -> None:
    model = built(spec)
    model(torch.randn(4, *SHAPE)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL)
def test_models_of_several_trials_run_as_one_under_vmap(spec: ModelSpec) -> None:
    models = [built(spec, seed=seed) for seed in range(3)]
    stacked, buffers = stack_module_state(models)
    x_R = torch.randn(3, 4, *SHAPE)
    y = torch.tensor([0, 1, 2, 1])

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(models[0], (weights, buffers), (x,)), y)

    gradients = vmap(grad(loss))(stacked, buffers, x_R)
    for trial, model in enumerate(models):
        F.cross_entropy(model(x_R[trial]), y).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][trial], parameter.grad)


# --- mlp -------------------------------------------------------------------------------------------


def test_mlp_is_xavier_uniform_with_zero_biases_in_every_layer() -> None:
    layers = [module for module in built(mlp, outputs=2).modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(392, 390), (390, 390), (390, 2)]
    for layer in layers:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert layer.bias.abs().max() == 0
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_mlp_options_set_width_depth_and_dropout() -> None:
    model = built(mlp, width=16, depth=3, dropout=0.5)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [16, 16, 16, 3]
    x = torch.randn(2, *SHAPE)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_mlp_of_no_hidden_layer_is_linear() -> None:
    model, features = build_model(mlp, SHAPE, 3, options(mlp, depth=0), seed=0)
    assert features == 392
    assert parameters(model.featurizer) == 0


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"width": 0}, {"depth": -1}])
def test_options_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        options(mlp, **wrong)


# --- mnist-cnn -------------------------------------------------------------------------------------


def test_mnist_cnn_is_the_published_network() -> None:
    """conv(C,64) relu gn, conv(64,128)/2 relu gn, 2 x [conv(128,128) relu gn], mean over positions."""
    channels = 2
    model, features = build_model(mnist_cnn, (channels, 28, 28), 2, options(mnist_cnn), seed=0)
    convolutions = [(channels, 64), (64, 128), (128, 128), (128, 128)]
    expected = sum(9 * inputs * width + width + 2 * width for inputs, width in convolutions)
    assert parameters(model.featurizer) == expected == 371_136
    assert features == 128

    layers = list(model.featurizer.modules())
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = z = torch.randn(3, channels, 28, 28)
    for conv, norm, stride in zip(convs, norms, (1, 2, 1, 1), strict=True):
        z = F.conv2d(z, conv.weight, conv.bias, stride=stride, padding=1)
        z = F.group_norm(F.relu(z), 8, norm.weight, norm.bias)
    assert z.shape == (3, 128, 14, 14)
    torch.testing.assert_close(model.features(x), z.mean(dim=(2, 3)))


@pytest.mark.parametrize("spec", [mnist_cnn, resnet18], ids=["mnist-cnn", "resnet18"])
def test_an_image_model_refuses_what_is_no_image(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"takes images .* shape \[64\]; choose the model mlp"):
        built(spec, shape=(64,))


# --- resnet: the network ---------------------------------------------------------------------------


def test_resnet50_has_2048_features_and_no_classification_layer() -> None:
    model, features = build_model(resnet50, (3, 64, 64), 7, options(resnet50, weights="scratch"), seed=0)
    assert features == 2048
    assert parameters(model.featurizer) == RESNET_50_WITHOUT_HEAD
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_resnet_computes_what_torchvision_computes_from_the_same_file(weights_file: Path) -> None:
    model = built(resnet18, (3, 64, 64), weights_file=str(weights_file))
    assert model.classifier.in_features == 512
    assert parameters(model.featurizer) == RESNET_18_WITHOUT_HEAD
    reference = get_model("resnet18", weights=None)
    reference.load_state_dict(torch.load(weights_file, weights_only=True))
    reference.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.train().features(x), reference.eval()(x))


def test_frozen_batchnorm_keeps_its_statistics_in_training_while_its_scale_and_shift_train(
    weights_file: Path,
) -> None:
    model = built(resnet18, (3, 32, 32), weights_file=str(weights_file))
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.eval().train()
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert model.training and len(norms) == 20
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(parameter.grad.abs().sum() > 0 for norm in norms for parameter in (norm.weight, norm.bias))


def test_training_batchnorm_moves_its_statistics(weights_file: Path) -> None:
    model = built(resnet18, (3, 32, 32), weights_file=str(weights_file), batchnorm="train").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32))
    assert not any(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_batchnorm_trains_from_scratch_unless_told_otherwise() -> None:
    assert options(resnet18).batchnorm == "frozen"
    assert options(resnet18, weights="scratch").batchnorm == "train"
    assert options(resnet18, weights="scratch", batchnorm="frozen").batchnorm == "frozen"


def test_dropout_acts_on_the_features_in_training_alone(weights_file: Path) -> None:
    model = built(resnet18, (3, 32, 32), weights_file=str(weights_file), dropout=0.5)
    plain = built(resnet18, (3, 32, 32), weights_file=str(weights_file))
    x = torch.randn(2, 3, 32, 32)
    dropped, kept = model.train().features(x), plain.features(x)
    assert torch.equal(dropped[dropped != 0], 2 * kept[dropped != 0])
    assert (dropped == 0).sum() > (kept == 0).sum()
    assert torch.equal(model.eval().features(x), kept)


def test_further_channels_start_from_the_filters_of_the_three_in_turn(weights_file: Path) -> None:
    stored = torch.load(weights_file, weights_only=True)["conv1.weight"]
    first = built(resnet18, (5, 32, 32), weights_file=str(weights_file)).featurizer.conv1
    assert torch.equal(first.weight, stored[:, [0, 1, 2, 0, 1]])


def test_from_scratch_the_first_convolution_is_as_wide_as_the_input() -> None:
    model = built(resnet18, (2, 32, 32), weights="scratch")
    assert model.featurizer.conv1.weight.shape == (64, 2, 7, 7)
    assert model.featurizer.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert model(torch.randn(2, 2, 32, 32)).shape == (2, 3)
    assert resnet18.weights(options(resnet18, weights="scratch")) == ("scratch", None)


# --- resnet: the weights file ----------------------------------------------------------------------


def published(path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> str:
    """Make a file the checkpoint that in1k-v1 names, downloadable from ``where``; gives its SHA-256."""
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    url = f"{where}/resnet18-{sha[:8]}.pth"
    monkeypatch.setitem(resnet.CHECKPOINTS, "resnet18", {"in1k-v1": url})
    return sha


def test_a_file_of_ones_own_is_named_after_itself_and_hashed(weights_file: Path) -> None:
    sha = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert resnet18.weights(options(resnet18, weights_file=str(weights_file))) == ("file:mine.pth", sha)


def test_a_file_that_changed_gets_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    hashes = set()
    for content in (b"one", b"three"):
        path.write_bytes(content)
        hashes.add(weights.sha256(path))
    assert len(hashes) == 2


def test_a_known_checkpoint_keeps_its_name_wherever_it_lies(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = published(weights_file, monkeypatch, "https://nowhere.invalid")
    assert resnet18.weights(options(resnet18, weights_file=str(weights_file))) == ("in1k-v1", sha)


def test_named_weights_are_downloaded_once_into_the_hub_folder(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    sha = published(weights_file, monkeypatch, tmp_path.as_uri())
    source = tmp_path / f"resnet18-{sha[:8]}.pth"
    source.write_bytes(weights_file.read_bytes())
    assert resnet18.weights(options(resnet18)) == ("in1k-v1", sha)
    source.unlink()
    named, own = built(resnet18), built(resnet18, weights_file=str(weights_file))
    assert same(named, own)


def test_a_plan_fetches_no_weights_and_says_which_would_be(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    sha = published(weights_file, monkeypatch, tmp_path.as_uri())
    url = f"{tmp_path.as_uri()}/resnet18-{sha[:8]}.pth"
    (tmp_path / f"resnet18-{sha[:8]}.pth").write_bytes(weights_file.read_bytes())
    with without_fetching() as absent:
        assert resnet18.weights(options(resnet18)) == ("in1k-v1", None)
        assert resnet18.weights(options(resnet18, weights="scratch")) == ("scratch", None)
        assert resnet18.weights(options(resnet18, weights_file=str(weights_file)))[1] == sha
    assert absent == [f"the weights resnet18/in1k-v1 are not here and would be fetched from {url}"]
    assert not (tmp_path / "home").exists()
    assert resnet18.weights(options(resnet18)) == ("in1k-v1", sha)
    with without_fetching() as absent:
        assert resnet18.weights(options(resnet18)) == ("in1k-v1", sha)
    assert absent == []


def test_a_damaged_download_is_not_used(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    sha = published(weights_file, monkeypatch, tmp_path.as_uri())
    (tmp_path / f"resnet18-{sha[:8]}.pth").write_bytes(b"half a file")
    with pytest.raises(UsageError, match=r"could not be fetched .*invalid hash"):
        built(resnet18)
    assert list((tmp_path / "home/hub/checkpoints").iterdir()) == []


def test_a_damaged_file_in_the_hub_folder_is_not_used(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    sha = published(weights_file, monkeypatch, "https://nowhere.invalid")
    path = tmp_path / f"hub/checkpoints/resnet18-{sha[:8]}.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    with pytest.raises(UsageError, match=rf"{path} is damaged: .* begin with {sha[:8]}; delete it"):
        built(resnet18)


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_network_the_error_says_which_file_is_missing_and_what_to_do(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT", 0.2)
    with silent_server() as where:
        sha = published(weights_file, monkeypatch, where)
        with pytest.raises(UsageError) as caught:
            resnet18.weights(options(resnet18))
    message = str(caught.value)
    for part in (
        f"{tmp_path}/hub/checkpoints/resnet18-{sha[:8]}.pth",
        where,
        "timed out",
        "--set model.weights=scratch",
        "--set model.weights_file=PATH",
    ):
        assert part in message
    assert socket.getdefaulttimeout() is None


def test_torchvision_still_publishes_the_checkpoints_under_these_names() -> None:
    site = "https://download.pytorch.org/models"
    assert {
        "resnet18": {"in1k-v1": f"{site}/resnet18-f37072fd.pth"},
        "resnet50": {
            "in1k-v1": f"{site}/resnet50-0676ba61.pth",
            "in1k-v2": f"{site}/resnet50-11ad3fa6.pth",
        },
    } == resnet.CHECKPOINTS


def test_a_weights_file_of_another_architecture_is_refused(weights_file: Path) -> None:
    with pytest.raises(UsageError, match=r"do not fit resnet50: it has no \S+ \(\d+ such entries\)"):
        built(resnet50, weights_file=str(weights_file))


def altered(weights_file: Path, path: Path, **entries: Tensor) -> Path:
    torch.save({**torch.load(weights_file, weights_only=True), **entries}, path)
    return path


def test_a_weights_file_with_another_shape_or_an_entry_too_many_is_refused(
    weights_file: Path, tmp_path: Path
) -> None:
    path = altered(weights_file, tmp_path / "shape.pth", **{"bn1.weight": torch.ones(3)})
    with pytest.raises(UsageError, match=r"bn1.weight is \[3\] and not \[64\]"):
        built(resnet18, weights_file=str(path))
    path = altered(weights_file, tmp_path / "extra.pth", extra=torch.ones(3))
    with pytest.raises(UsageError, match="extra is not part of that network"):
        built(resnet18, weights_file=str(path))


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 not quite a zip"])
def test_a_weights_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a file of tensors"):
        built(resnet18, weights_file=str(path))


def test_a_pickle_with_code_in_it_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save({"conv1.weight": SimpleNamespace()}, path)
    with pytest.raises(UsageError, match="cannot be read as a file of tensors"):
        built(resnet18, weights_file=str(path))


def test_a_file_of_something_else_than_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pth"
    torch.save(torch.ones(3), path)
    with pytest.raises(UsageError, match="is not a state dict"):
        built(resnet18, weights_file=str(path))


def test_contradictions_and_unknown_weights_are_refused(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contradict each other"):
        built(resnet18, weights="scratch", weights_file=str(weights_file))
    with pytest.raises(UsageError, match=r"there is no weights file .*absent\.pth"):
        built(resnet18, weights_file=str(tmp_path / "absent.pth"))
    with pytest.raises(UsageError, match=r"model.weights='in1k-v2' is not valid: .*'in1k-v1' or 'scratch'"):
        options(resnet18, weights="in1k-v2")
