"""GPT-2 as a language model of code, through the package transformers.

Radford et al., *Language Models are Unsupervised Multitask Learners* (2019); by default CodeGPT, pretrained
on Python (Lu et al., *CodeXGLUE*, 2021), as WILDS trains it on Py150. The features [N, L, D] are the states
of the last layer at every token. The output layer starts as the embeddings of the tokens and is then trained
apart from them, whereas in CodeGPT the two stay the same.

The weights are found, checked and named as those of ``dgharness.models.transformer``; by default they are
those of microsoft/CodeGPT-small-py. From scratch the sizes are those of the smallest GPT-2 unless given.

Shapes: N sequences, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams, Structural
from dgharness.models.model import ModelSpec
from dgharness.models.transformer import find_weights, named_weights
from dgharness.step import TokenShape

SIZES = {"layers": "n_layer", "heads": "n_head", "width": "n_embd"}  # as GPT-2's configuration calls them


class CodeGPTOptions(Hparams):
    weights: Annotated[str, Structural] = "microsoft/CodeGPT-small-py"
    """What training starts from: a checkpoint of GPT-2 by its name on Hugging Face's hub, or scratch."""
    weights_file: Annotated[str | None, Structural] = None
    """A folder with config.json and model.safetensors to start from, in place of the named weights."""
    layers: Annotated[PositiveInt | None, Structural] = None
    """Layers, from scratch alone; as published unless given. So are the two below."""
    heads: Annotated[PositiveInt | None, Structural] = None
    """Attention heads of each layer."""
    width: Annotated[PositiveInt | None, Structural] = None
    """Features of a token, a multiple of the heads."""

    @model_validator(mode="after")
    def _sizes_are_of_scratch(self) -> CodeGPTOptions:
        given = [name for name in SIZES if getattr(self, name) is not None]
        if given and self.weights != "scratch":
            raise UsageError(
                f"model.{given[0]} is fixed by the weights; --set model.weights=scratch, or leave it out"
            )
        return self


class States(nn.Module):
    """A batch of token sequences to the last layer's states, [N, L, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return self.network(input_ids=x["input_ids"], use_cache=False).last_hidden_state


def _featurizer(input_shape: tuple[int, ...], options: CodeGPTOptions) -> tuple[nn.Module, int]:
    if not isinstance(input_shape, TokenShape):
        raise UsageError(
            f"the model code-gpt takes tokens, and an example of this dataset has shape {list(input_shape)}; "
            "choose another model"
        )
    path = find_weights("code-gpt", options)
    network = _from_scratch(input_shape, options) if path is None else _pretrained(path)
    config = network.config
    if config.n_positions < input_shape.length or config.vocab_size < input_shape.vocabulary:
        raise UsageError(
            f"the model code-gpt knows {config.vocab_size} tokens and {config.n_positions} positions here, "
            f"and the data has {input_shape.vocabulary} and {input_shape.length}; give other weights or "
            "--set model.weights=scratch"
        )
    return States(network), config.n_embd


def _from_scratch(input_shape: TokenShape, options: CodeGPTOptions) -> Any:
    transformers = _transformers()
    given = {name: getattr(options, option) for option, name in SIZES.items()}
    config = transformers.GPT2Config(
        vocab_size=input_shape.vocabulary,
        **{name: size for name, size in given.items() if size is not None},
    )
    if config.n_embd % config.n_head:
        raise UsageError(f"model.width={config.n_embd} is not a multiple of model.heads={config.n_head}")
    return transformers.GPT2Model(config)


def _pretrained(path: Path) -> Any:
    transformers = _transformers()
    try:
        return transformers.GPT2Model.from_pretrained(path.parent, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # a damaged file makes the readers raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"{path} cannot be read as weights of GPT-2 ({reason}); name others, or "
            "--set model.weights=scratch"
        ) from error


def _classifier(features: int, outputs: int, options: CodeGPTOptions) -> nn.Module:
    linear = nn.Linear(features, outputs, bias=False)
    nn.init.normal_(linear.weight, std=0.02)
    path = find_weights("code-gpt", options)
    if path is not None:
        embeddings = _pretrained(path).get_input_embeddings().weight
        with torch.no_grad():
            linear.weight.copy_(embeddings[:outputs])
    return linear


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "the model code-gpt needs the package transformers: pip install 'dgharness[text]'"
        ) from error
    return transformers


code_gpt = ModelSpec(
    featurizer=_featurizer,
    classifier=_classifier,
    weights=partial(named_weights, "code-gpt"),
    options=CodeGPTOptions,
    doc=__doc__,
)
