"""Transformers for text, with weights that are named, found, checked and hashed.

Sanh et al., *DistilBERT, a distilled version of BERT* (2019); Devlin et al., *BERT: Pre-training of Deep
Bidirectional Transformers for Language Understanding* (2019). The features are what enters the last linear
layer of Hugging Face's sequence classifiers: for DistilBERT the first token, a linear layer, ReLU and
dropout; for BERT the first token, a linear layer, tanh and dropout. WILDS trains the same, but for methods
that look at features, such as coral, which it gives the bare first token of DistilBERT, and BERT's features
without dropout.

The weights are looked for in the folder ``weights_file``, else under their name in Hugging Face's local
cache, else on its hub. The SHA-256 of their file is their identity. They fix the size of the network and the
vocabulary, so the tokenizer of the data must be theirs. From scratch, the vocabulary is the tokenizer's.

Shapes: N texts, L tokens, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Choice, Hparams, Structural
from dgharness.models.model import DropoutRate, ModelSpec
from dgharness.models.weights import planned, sha256
from dgharness.step import TokenShape

FILES = ("model.safetensors", "pytorch_model.bin")
HEADS = ("classifier.", "pre_classifier.", "bert.pooler.")  # what a checkpoint for pretraining may lack
LOWEST = torch.finfo(torch.float32).min
SIZES = {  # an option, and what the configuration of each architecture calls it
    "distilbert": {"layers": "n_layers", "heads": "n_heads", "width": "dim"},
    "bert": {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"},
}
INNER_WIDTH = {"distilbert": "hidden_dim", "bert": "intermediate_size"}  # four times the width, as published


class TransformerOptions(Hparams):
    weights_file: Annotated[str | None, Structural] = None
    """A folder with config.json and model.safetensors to start from, in place of the named weights."""
    attention: Annotated[Literal["sdpa", "eager"], Structural] = "sdpa"
    """How attention is computed: in one fused operation, or step by step, which is slower and has the second
    derivatives that meta-dmoe takes."""
    layers: Annotated[PositiveInt | None, Structural] = None
    """Layers, from scratch alone; as published unless given. So are the two below."""
    heads: Annotated[PositiveInt | None, Structural] = None
    """Attention heads of each layer."""
    width: Annotated[PositiveInt | None, Structural] = None
    """Features, a multiple of the heads."""

    @model_validator(mode="after")
    def _sizes_are_of_scratch(self) -> TransformerOptions:
        given = [name for name in ("layers", "heads", "width") if getattr(self, name) is not None]
        if given and getattr(self, "weights", "scratch") != "scratch":
            raise UsageError(
                f"model.{given[0]} is fixed by the weights; --set model.weights=scratch, or leave it out"
            )
        return self


class DistilBertOptions(TransformerOptions):
    weights: Annotated[str, Structural] = "distilbert-base-uncased"
    """What training starts from: a checkpoint of DistilBERT by its name on Hugging Face's hub, or scratch."""
    classifier_dropout: Annotated[DropoutRate, Structural, Choice((0.0, 0.2, 0.5))] = 0.2
    """Share of the features dropped; within the layers it is 0.1, as published."""


class BertOptions(TransformerOptions):
    weights: Annotated[str, Structural] = "bert-base-uncased"
    """What training starts from: a checkpoint of BERT by its name on Hugging Face's hub, or scratch."""
    classifier_dropout: Annotated[DropoutRate, Structural, Choice((0.0, 0.1, 0.5))] = 0.1
    """Share of the features dropped; within the layers it is 0.1, as published."""


# --- the network -----------------------------------------------------------------------------------


class Transformer(nn.Module):
    """A sequence classifier of Hugging Face without its last layer: a batch of tokens to features [N, D]."""

    def __init__(self, network: Any, dropout: float) -> None:
        super().__init__()
        self.network = network
        self.adds_mask = network.config._attn_implementation == "eager"
        self.network.dropout = nn.Dropout(dropout)
        self.network.classifier = nn.Identity()

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        # With a mask of four dimensions the library does not look whether there is any padding, which would
        # wait for the device and cannot be traced.
        mask_N11L = x["attention_mask"].bool()[:, None, None, :]
        if self.adds_mask:
            mask_N11L = torch.where(mask_N11L, 0.0, LOWEST)
        segments = {"token_type_ids": x["token_type_ids"]} if "token_type_ids" in x else {}
        return self.network(input_ids=x["input_ids"], attention_mask=mask_N11L, **segments).logits


def _featurizer(architecture: str, input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    if not isinstance(input_shape, TokenShape):
        raise UsageError(
            f"the model {architecture} takes text, and an example of this dataset has shape "
            f"{list(input_shape)}; choose another model"
        )
    path = find_weights(architecture, options)
    if path is None:
        network = _from_scratch(architecture, input_shape, options)
    else:
        network = _pretrained(architecture, input_shape, options, path)
    return Transformer(network, options.classifier_dropout), network.config.hidden_size


def _from_scratch(architecture: str, input_shape: TokenShape, options: Any) -> Any:
    transformers = _transformers(architecture)
    sizes = {SIZES[architecture][name]: getattr(options, name) for name in SIZES[architecture]}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if options.width is not None:
        sizes[INNER_WIDTH[architecture]] = 4 * options.width
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=input_shape.vocabulary,
        max_position_embeddings=input_shape.length,
        **sizes,
    )
    if config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"model.width={config.hidden_size} is no multiple of model.heads={config.num_attention_heads}; "
            "change one of them"
        )
    return transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation=options.attention, dtype=torch.float32
    )


def _pretrained(architecture: str, input_shape: TokenShape, options: Any, path: Path) -> Any:
    transformers = _transformers(architecture)
    another = f"name weights of {architecture}, or --set model.weights=scratch"
    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path.parent} has no readable config.json ({reason}); {another}") from error
    if config.model_type != architecture:
        raise UsageError(f"the weights in {path.parent} are of {config.model_type}; {another}")
    if config.max_position_embeddings < input_shape.length:
        raise UsageError(
            f"the weights in {path.parent} know {config.max_position_embeddings} positions, and texts have "
            f"up to {input_shape.length} tokens; lower data.max_tokens"
        )
    if config.vocab_size < input_shape.vocabulary:
        raise UsageError(
            f"the weights in {path.parent} know {config.vocab_size} tokens, and the tokenizer of the data "
            f"gives {input_shape.vocabulary}: --set data.tokenizer to theirs, or --set model.weights=scratch"
        )
    try:
        with _quiet(transformers):
            network, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                path.parent,
                config=config,
                local_files_only=True,
                output_loading_info=True,
                attn_implementation=options.attention,
                dtype=torch.float32,
            )
    except Exception as error:  # a damaged file makes the readers raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{path} cannot be read as weights ({reason}); {another}") from error
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(HEADS))
    if missing:
        raise UsageError(f"{path} has no {missing[0]} ({len(missing)} such entries); {another}")
    return network


def _classifier(features: int, outputs: int, options: Any) -> nn.Module:
    layer = nn.Linear(features, outputs)
    nn.init.normal_(layer.weight, std=0.02)  # as the layers below it
    nn.init.zeros_(layer.bias)
    return layer


# --- the weights file ------------------------------------------------------------------------------


def find_weights(architecture: str, options: Any) -> Path | None:
    """The file of weights that the options name, its config.json beside it; None for scratch."""
    if options.weights_file is not None:
        folder = Path(options.weights_file).expanduser()
        if options.weights == "scratch":
            raise UsageError(
                f"model.weights=scratch and model.weights_file={folder} contradict each other; drop one"
            )
        present = [folder / file for file in FILES if (folder / file).is_file()]
        if not present:
            raise UsageError(
                f"there is no {' or '.join(FILES)} in {folder}; model.weights_file names the folder of a "
                "checkpoint, and --set model.weights=scratch needs none"
            )
        return present[0]
    return None if options.weights == "scratch" else _fetched(architecture, options.weights)


def named_weights(architecture: str, options: Any) -> tuple[str, str | None]:
    """The id of the weights that the options name and the SHA-256 of their file, or None for scratch."""
    hub = f"https://huggingface.co/{options.weights}"
    named = options.weights_file is None and options.weights != "scratch"
    if named and not _cached(architecture, options.weights) and planned(options.weights, hub):
        return options.weights, None
    path = find_weights(architecture, options)
    if path is None:
        return "scratch", None
    return (f"file:{path.parent.name}" if options.weights_file else options.weights), sha256(path)


def _cached(architecture: str, name: str) -> bool:
    _transformers(architecture)
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)


def _fetched(architecture: str, name: str) -> Path:
    """The weights of that name from the local cache, else from the hub."""
    _transformers(architecture)
    from huggingface_hub import hf_hub_download  # what transformers itself fetches with
    from huggingface_hub.errors import EntryNotFoundError

    reason: Exception = FileNotFoundError(f"it has no {' or '.join(FILES)}")
    for local in (True, False):
        try:
            hf_hub_download(name, "config.json", local_files_only=local)
            for file in FILES:
                with contextlib.suppress(EntryNotFoundError):  # not in the cache, or not of that name
                    return Path(hf_hub_download(name, file, local_files_only=local))
        except Exception as error:  # those of the client and of the network have no base in common
            reason = error
    raise UsageError(
        f"the weights {name} are not in Hugging Face's local cache and could not be fetched "
        f"({str(reason).splitlines()[0]}); --set model.weights_file=FOLDER names a checkpoint, and "
        "--set model.weights=scratch needs none"
    ) from reason


def _transformers(architecture: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            f"the model {architecture} needs the package transformers: pip install 'dgharness[text]'"
        ) from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and reports on standard error; what matters of them is checked."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _spec(architecture: str, options: type[TransformerOptions]) -> ModelSpec:
    return ModelSpec(
        featurizer=partial(_featurizer, architecture),
        classifier=_classifier,
        weights=partial(named_weights, architecture),
        options=options,
        doc=__doc__,
    )


distilbert = _spec("distilbert", DistilBertOptions)
bert = _spec("bert", BertOptions)
