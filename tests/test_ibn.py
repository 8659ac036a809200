"""Instance normalisation in the residual networks: which layers, what they compute, weights, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from dgharness.errors import UsageError
from dgharness.hparams import checked, settled
from dgharness.models.ibn import IBN, FixedStatistics
from dgharness.models.model import ModelSpec, build_model
from dgharness.models.resnet import resnet18, resnet50

SHAPE = (3, 64, 64)
each = pytest.mark.parametrize(("spec", "blocks"), [(resnet18, (2, 2, 2)), (resnet50, (3, 4, 6))])


def options(spec: ModelSpec, **given: object) -> Any:
    return checked(spec.options, {"weights": "scratch", **given}, "model")


def built(spec: ModelSpec, shape: tuple[int, ...] = SHAPE, **given: object) -> Any:
    return build_model(spec, shape, 3, options(spec, **given), 0)[0]


def placed(model: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [
        name for name, module in model.get_submodule("featurizer").named_modules() if type(module) is kind
    ]


def photos(n: int = 4) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


# --- which layers ----------------------------------------------------------------------------------


@each
def test_variant_a_has_half_its_channels_by_instance_in_the_first_norms_of_three_stages(
    spec: ModelSpec, blocks: tuple[int, ...]
) -> None:
    model = built(spec, norm="ibn-a")
    firsts = [f"layer{stage}.{block}.bn1" for stage, n in enumerate(blocks, 1) for block in range(n)]
    assert placed(model, IBN) == firsts
    for name in firsts:
        layer, plain = model.featurizer.get_submodule(name), built(spec).featurizer.get_submodule(name)
        assert layer.IN.num_features == layer.BN.num_features == plain.num_features // 2


@each
def test_variant_b_has_the_stem_and_the_ends_of_two_stages_by_instance(
    spec: ModelSpec, blocks: tuple[int, ...]
) -> None:
    model = built(spec, norm="ibn-b")
    ends = [f"layer{stage}.{blocks[stage - 1] - 1}.IN" for stage in (1, 2)]
    assert placed(model, nn.InstanceNorm2d) == ["bn1", *ends]
    assert not placed(model, IBN)


@pytest.mark.parametrize("norm", ["ibn-a", "ibn-b"])
@pytest.mark.parametrize(("spec", "features"), [(resnet18, 512), (resnet50, 2048)])
def test_the_features_have_the_shape_they_always_have(spec: ModelSpec, features: int, norm: str) -> None:
    model = built(spec, norm=norm)
    z = model.features(photos())
    assert z.shape == (4, features) and z.isfinite().all()
    model(photos()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_convolutions_start_as_without_it() -> None:
    with_norm, without = built(resnet18, norm="ibn-a"), built(resnet18)
    for name, value in without.featurizer.state_dict().items():
        if "conv" in name:
            assert value.equal(with_norm.featurizer.state_dict()[name])


# --- what they compute -----------------------------------------------------------------------------


def test_half_the_channels_are_normalised_over_positions_and_half_over_the_batch() -> None:
    layer = IBN(nn.BatchNorm2d(6)).double().train()
    x = torch.randn(5, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    first, second = layer(x).split(3, 1)
    plain = x[:, :3]
    by_instance = (plain - plain.mean((2, 3), keepdim=True)) / (
        plain.var((2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(first, by_instance)
    assert second.mean((0, 2, 3)).abs().max() < 1e-12 < second.mean((2, 3)).abs().max()


@pytest.mark.parametrize("spec", [resnet18, resnet50])
def test_the_blocks_of_variant_b_are_torchvisions_but_for_one_norm(
    spec: ModelSpec,
) -> None:
    model = built(spec, norm="ibn-b", batchnorm="frozen").featurizer
    plain = get_model("resnet18" if spec is resnet18 else "resnet50", weights=None)
    plain.load_state_dict(model.state_dict() | plain.fc.state_dict(prefix="fc."), strict=False)
    plain.eval()
    x = model.maxpool(model.relu(model.bn1(model.conv1(photos()))))
    for ours, theirs in zip(model.layer1, plain.layer1, strict=True):
        block = ours(x)
        if hasattr(ours, "IN"):
            ours.IN = nn.Identity()
            torch.testing.assert_close(ours(x), theirs(x))
            assert not torch.allclose(block, theirs(x))
        x = theirs(x)


def test_variant_b_ignores_contrast_and_brightness_of_an_image() -> None:
    model = built(resnet18, norm="ibn-b").eval()
    image = photos(1)
    torch.testing.assert_close(model(image), model(3 * image), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(built(resnet18).eval()(image), built(resnet18).eval()(3 * image), atol=1e-3)


def test_frozen_batchnorm_leaves_the_norm_by_instance_alive() -> None:
    model = built(resnet18, norm="ibn-a", batchnorm="frozen").train()
    halves = [module for module in model.modules() if isinstance(module, IBN)]
    assert all(isinstance(half.BN, FixedStatistics) and not half.BN.training for half in halves)
    assert all(half.IN.training and not half.IN.track_running_stats for half in halves)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(photos())
    assert all(value.equal(before[name]) for name, value in model.named_buffers())
    x = photos(2)[:, :1].expand(2, 64, 64, 64)
    plain, brighter = halves[0](x), halves[0](x + 1)
    torch.testing.assert_close(plain[:, :32], brighter[:, :32], rtol=1e-4, atol=1e-5)
    assert (brighter[:, 32:] - plain[:, 32:]).min() > 0.9


def test_one_image_is_enough_to_train_on() -> None:
    for norm in ("ibn-a", "ibn-b"):
        model = built(resnet18, norm=norm, batchnorm="frozen").train()
        assert model(photos(1)).isfinite().all()


# --- weights and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["ibn-a", "ibn-b"])
def test_weights_of_the_same_network_are_loaded_whole(tmp_path: Path, norm: str) -> None:
    first = built(resnet18, norm=norm)
    path = tmp_path / "ibn.pth"
    torch.save(first.featurizer.state_dict() | {"fc.weight": torch.ones(2, 512)}, path)
    second = built(resnet18, norm=norm, weights="in1k-v1", weights_file=str(path))
    there = second.featurizer.state_dict()
    assert all(value.equal(there[name]) for name, value in first.featurizer.state_dict().items())


@pytest.mark.parametrize("norm", ["ibn-a", "ibn-b"])
def test_torchvisions_weights_are_refused_in_one_sentence(tmp_path: Path, norm: str) -> None:
    with pytest.raises(
        UsageError, match=rf"no weights in1k-v1 for model\.norm={norm}: give those of IBN-Net"
    ):
        options(resnet18, weights="in1k-v1", norm=norm)
    path = tmp_path / "torchvision.pth"
    torch.save(get_model("resnet18", weights=None).state_dict(), path)
    with pytest.raises(UsageError, match=r"do not fit resnet18: .* state dict of IBN-Net's resnet18"):
        built(resnet18, norm=norm, weights="in1k-v1", weights_file=str(path))


@pytest.mark.parametrize(("norm", "side", "works"), [("ibn-a", 16, 17), ("ibn-b", 8, 9)])
def test_images_too_small_to_normalise_are_refused(norm: str, side: int, works: int) -> None:
    with pytest.raises(UsageError, match=rf"images of {side} x {side} pixels leave only one"):
        built(resnet18, (3, side, side), norm=norm)
    model = built(resnet18, (3, works, works), norm=norm).train()
    assert model(torch.randn(2, 3, works, works)).isfinite().all()


def test_runs_without_it_are_what_they_were() -> None:
    assert "norm" not in settled(options(resnet18).model_dump(), resnet18.options)
    assert settled(options(resnet18, norm="ibn-a").model_dump(), resnet18.options)["norm"] == "ibn-a"
