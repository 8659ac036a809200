"""distilbert and bert: Hugging Face's classifiers without their last layer.

Shapes: N texts, C outputs, D features, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import differences
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.models.model import Model, build_model
from dgharness.models.transformer import bert, distilbert
from dgharness.step import TokenShape

transformers = pytest.importorskip("transformers")

SPECS = {"distilbert": distilbert, "bert": bert}
SHAPE = TokenShape(length=12, vocabulary=50)
TINY = {"weights": "scratch", "layers": 2, "heads": 2, "width": 16}
C = 3


def options(of: str, **given: Any) -> Any:
    return checked(SPECS[of].options, given, "model")


def built(of: str, shape: tuple[int, ...] = SHAPE, seed: int = 0, **given: Any) -> Model:
    return build_model(SPECS[of], shape, C, options(of, **(given or TINY)), seed)[0]


def texts(lengths: tuple[int, ...] = (8, 3, 5, 1), seed: int = 0) -> dict[str, Tensor]:
    """Tokens with padding behind the shorter texts."""
    longest, generator = max(lengths), torch.Generator().manual_seed(seed)
    mask_NL = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    ids_NL = torch.randint(1, SHAPE.vocabulary, mask_NL.shape, generator=generator) * mask_NL
    return {"input_ids": ids_NL, "attention_mask": mask_NL.long()}


@pytest.fixture(scope="module", params=SPECS)
def of(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(of: str) -> Any:
    """A small classifier of Hugging Face."""
    torch.manual_seed(1)
    sizes = {
        "distilbert": {"n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 64},
        "bert": {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_size": 16,
            "intermediate_size": 64,
        },
    }
    config = transformers.AutoConfig.for_model(
        of, vocab_size=SHAPE.vocabulary, max_position_embeddings=20, num_labels=C, **sizes[of]
    )
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    return network.requires_grad_(False).apply(_livelier).eval()


def _livelier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.mul_(8)


@pytest.fixture(scope="module")
def folder(published: Any, of: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / f"my-{of}"
    published.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copied")


# --- the network -----------------------------------------------------------------------------------


def test_the_features_are_what_enters_the_last_layer_of_the_published_classifier(
    of: str, published: Any, folder: Path
) -> None:
    model, features = build_model(SPECS[of], SHAPE, C, options(of, weights_file=str(folder)), seed=0)
    z_ND = model.eval().features(texts())
    assert z_ND.shape == (4, features) == (4, 16)
    torch.testing.assert_close(published.classifier(z_ND), published(**texts()).logits)


def test_padding_changes_no_feature(of: str) -> None:
    model, short = built(of).eval(), texts((3, 2))
    padded = {name: torch.cat([value, torch.zeros(2, 5).long()], 1) for name, value in short.items()}
    torch.testing.assert_close(model.features(padded), model.features(short))


def test_what_stands_behind_the_mask_is_not_seen(of: str) -> None:
    model, x = built(of).eval(), texts((8, 3))
    other = {**x, "input_ids": torch.where(x["attention_mask"] > 0, x["input_ids"], 7)}
    assert torch.equal(model.features(x), model.features(other))
    unmasked = {**other, "attention_mask": torch.ones_like(other["attention_mask"])}
    assert not torch.allclose(model.features(x)[1], model.features(unmasked)[1])


def test_attention_step_by_step_is_the_fused_one(of: str, folder: Path) -> None:
    fused, plain = (built(of, weights_file=str(folder), attention=kind).eval() for kind in ("sdpa", "eager"))
    torch.testing.assert_close(plain.features(texts()), fused.features(texts()))


def test_attention_step_by_step_has_second_derivatives(of: str) -> None:
    model = built(of, **TINY, attention="eager").eval()
    weight = next(p for name, p in model.named_parameters() if "0.attention" in name and p.dim() == 2)
    (first,) = torch.autograd.grad(model(texts()).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.isfinite().all() and second.abs().sum() > 0


@pytest.mark.parametrize("of", ["bert"], indirect=True, scope="module")
def test_segments_are_passed_on(folder: Path, published: Any, of: str) -> None:
    model, x = built(of, weights_file=str(folder)).eval(), texts()
    x["token_type_ids"] = (torch.arange(8)[None, :] > 1).long().expand(4, 8)
    torch.testing.assert_close(published.classifier(model.features(x)), published(**x).logits)
    assert not torch.allclose(model.features(x), model.features(texts()))


def test_dropout_of_the_features_is_that_of_the_published_classifier_unless_set(of: str) -> None:
    assert options(of).classifier_dropout == {"distilbert": 0.2, "bert": 0.1}[of]
    network: Any = built(of, **TINY, classifier_dropout=0.4).featurizer
    assert network.network.dropout.p == 0.4


def test_from_scratch_the_seed_fixes_the_weights_and_the_size_is_as_asked(of: str) -> None:
    first, again, other = built(of), built(of), built(of, seed=1)
    assert not differences(first.state_dict(), again.state_dict())
    assert differences(first.state_dict(), other.state_dict())
    config = first.featurizer.network.config  # type: ignore[union-attr]
    assert (config.vocab_size, config.max_position_embeddings) == SHAPE[::-1]
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (2, 2, 16)


def test_its_forward_and_backward_pass_survive_vmap(of: str) -> None:
    """So that many runs can train at once."""
    models = [built(of, seed=seed).eval() for seed in range(2)]
    stacked = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models])
        for name in dict(models[0].named_parameters())
    }

    def loss(parameters: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], parameters, (x,)).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap says that an operation is slower than it might be
        together = vmap(grad(loss), in_dims=(0, None))(stacked, texts())
    for number, model in enumerate(models):
        model(texts()).square().mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][number], parameter.grad)


# --- weights ---------------------------------------------------------------------------------------


def test_a_file_of_weights_is_known_by_its_folder_and_its_hash(of: str, folder: Path) -> None:
    sha = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert SPECS[of].weights(options(of, weights_file=str(folder))) == (f"file:my-{of}", sha)
    assert SPECS[of].weights(options(of, weights="scratch")) == ("scratch", None)


def test_named_weights_are_taken_from_the_cache_and_the_hub_is_not_asked(
    of: str, folder: Path, monkeypatch: Any
) -> None:
    def cached(name: str, file: str, local_files_only: bool) -> str:
        assert name == "somebody/some-weights" and local_files_only
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    given = options(of, weights="somebody/some-weights")
    assert SPECS[of].weights(given)[0] == "somebody/some-weights"
    assert build_model(SPECS[of], SHAPE, C, given, seed=0)[1] == 16


def test_an_older_checkpoint_has_another_file(of: str, copied: Path, monkeypatch: Any) -> None:
    from huggingface_hub.errors import EntryNotFoundError
    from safetensors.torch import load_file

    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()

    def fetched(name: str, file: str, local_files_only: bool) -> str:
        if local_files_only or not (copied / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        return str(copied / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    model = built(of, weights="somebody/older-weights").eval()
    same = built(of, weights_file=str(copied)).eval()
    assert torch.equal(model.features(texts()), same.features(texts()))


def test_weights_that_are_nowhere_name_the_switches(of: str, monkeypatch: Any) -> None:
    asked = []

    def unreachable(name: str, file: str, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(
        UsageError, match=r"no route to the hub\); --set model.weights_file=.*weights=scratch"
    ):
        SPECS[of].weights(options(of))
    assert asked == [True, False]  # the cache, then the hub


def test_loading_weights_says_nothing(of: str, folder: Path, capfd: Any) -> None:
    built(of, weights_file=str(folder))
    assert capfd.readouterr() == ("", "")


def test_weights_for_pretraining_have_no_head_which_starts_from_the_seed(of: str, tmp_path: Path) -> None:
    config = built(of).featurizer.network.config  # type: ignore[union-attr]
    config.architectures = None
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    first, again = (built(of, weights_file=str(tmp_path)) for _ in range(2))
    assert not differences(first.state_dict(), again.state_dict())


def test_a_checkpoint_that_lacks_a_layer_is_refused(of: str, copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(copied / "model.safetensors")
    gone = next(name for name in stored if "layer.1." in name)
    save_file({k: v for k, v in stored.items() if k != gone}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=rf"has no {gone} \(1 such entries\); name weights of {of}"):
        built(of, weights_file=str(copied))


def test_a_damaged_file_is_refused(of: str, copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"model.safetensors cannot be read as weights"):
        built(of, weights_file=str(copied))


def test_weights_of_another_architecture_are_refused(of: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(UsageError, match=rf"are of roberta; name weights of {of}"):
        built(of, weights_file=str(copied))


def test_a_folder_without_weights_is_refused(of: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model.safetensors or pytorch_model.bin in /nowhere"):
        built(of, weights_file="/nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no readable config.json"):
        built(of, weights_file=str(tmp_path))


def test_weights_must_cover_the_tokenizer_and_the_length_of_the_texts(of: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"know 50 tokens, and the tokenizer of the data gives 51"):
        built(of, TokenShape(12, 51), weights_file=str(folder))
    with pytest.raises(UsageError, match=r"know 20 positions, and texts have up to 21 tokens"):
        built(of, TokenShape(21, 50), weights_file=str(folder))


def test_settings_that_contradict_each_other_are_refused(of: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"model.layers is fixed by the weights"):
        options(of, layers=2)
    with pytest.raises(UsageError, match="contradict each other"):
        built(of, weights="scratch", weights_file=str(folder))
    with pytest.raises(UsageError, match=r"model.width=15 is no multiple of model.heads=2"):
        built(of, **{**TINY, "width": 15})


def test_images_are_refused(of: str) -> None:
    with pytest.raises(UsageError, match=rf"the model {of} takes text, and .* has shape \[3, 32, 32\]"):
        built(of, (3, 32, 32))


def test_without_transformers_the_extra_is_named(of: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'dgharness\[text\]'"):
        built(of)
