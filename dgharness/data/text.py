"""Texts as every text dataset reads them: kept as strings, tokenised batch by batch.

A batch is a dictionary of two tensors, ``input_ids`` and ``attention_mask`` (1 on tokens, 0 on padding), as
long as its longest text. The tokenizer is one of Hugging Face's, for pretrained weights that expect its
numbers, or ``hashing``, which needs neither a file nor the package transformers, for training from scratch.

Shapes: M texts, N of a batch, L tokens of the longest of them.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.dataset import Dataset, Defaults
from dgharness.data.tasks import Task, classification
from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams
from dgharness.step import TokenShape

HASHING = "hashing"
BUCKETS = 2**15  # of the hashing tokenizer
PADDING, START = 0, 1  # its two tokens that are no word
WORD = re.compile(r"\w+|[^\w\s]")

REVIEWS = Defaults(model="distilbert", steps=5000, eval_every=300, protocol="official")

Tokenize = Callable[[list[str], int], dict[str, Tensor]]

log = logging.getLogger(__name__)


class TextOptions(Hparams):
    """How texts become tokens."""

    tokenizer: str = "distilbert-base-uncased"
    """A tokenizer of Hugging Face by name or folder, or hashing: words hashed into 32768 numbers, for
    training from scratch."""
    max_tokens: Annotated[int, Field(ge=2)] = 300
    """Tokens of a text beyond these are cut off."""


def text_dataset(
    name: str,
    manifest: pd.DataFrame,
    texts: Sequence[str],
    options: TextOptions,
    *,
    task: Task | None = None,
    defaults: Defaults = REVIEWS,
    **fields: Any,
) -> Dataset:
    """A dataset of texts, one for each row of the manifest.

    The column ``text_hash`` is added: it lets the digest notice a text that was edited.
    """
    reader = text_reader(texts, options, name)
    return Dataset(
        name=name,
        manifest=manifest.assign(text_hash=reader.hash_M.view(np.int64)),
        reader=reader,
        task=task or classification(len(manifest["y"].cat.categories)),
        input_shape=reader.input_shape,
        profile="large",
        defaults=defaults,
        **fields,
    )


def text_reader(texts: Sequence[str], options: TextOptions, what: str) -> TextReader:
    """A reader of the texts of ``what``; a UsageError names the row of one that is no text."""
    kinds = np.fromiter((isinstance(text, str) for text in texts), dtype=bool, count=len(texts))
    if not kinds.all():
        row = int(np.flatnonzero(~kinds)[0])
        raise UsageError(
            f"row {row} of {what} has no text but {texts[row]!r} ({np.sum(~kinds)} such rows); "
            "fill it in or take the row out"
        )
    text_M = np.array(texts, dtype=object)
    return TextReader(text_M, options, _hashes(text_M, what))


class TextReader:
    """A reader of texts: rows to ``{"input_ids": [N, L], "attention_mask": [N, L]}``, both int64."""

    def __init__(self, text_M: np.ndarray, options: TextOptions, hash_M: np.ndarray) -> None:
        self.text_M, self.options, self.hash_M = text_M, options, hash_M
        self._tokenize, self.vocabulary = _tokenizer(options.tokenizer)

    @property
    def input_shape(self) -> TokenShape:
        return TokenShape(self.options.max_tokens, self.vocabulary)

    def __call__(self, index_N: Tensor) -> dict[str, Tensor]:
        return self._tokenize(self.text_M[index_N.cpu().numpy()].tolist(), self.options.max_tokens)

    def to(self, device: torch.device) -> TextReader:
        return self

    def __reduce__(self) -> tuple[type[TextReader], tuple[np.ndarray, TextOptions, np.ndarray]]:
        return TextReader, (self.text_M, self.options, self.hash_M)  # another process loads its own tokenizer


# --- tokenizers ------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> tuple[Tokenize, int]:
    """What turns texts into tokens of at most so many, and the size of its vocabulary."""
    if name == HASHING:
        return hashed, BUCKETS
    tokenizer = _hugging_face(name)

    def tokenize(texts: list[str], max_tokens: int) -> dict[str, Tensor]:
        found = tokenizer(
            texts, truncation=True, max_length=max_tokens, padding="longest", return_tensors="pt"
        )
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    return tokenize, len(tokenizer)


def hashed(texts: list[str], max_tokens: int) -> dict[str, Tensor]:
    """Each word or sign, in lower case, as a number that depends on nothing else; a start token leads.

    >>> hashed(["Good!", "good"], max_tokens=8)["attention_mask"]
    tensor([[1, 1, 1],
            [1, 1, 0]])
    """
    ids = [[START, *map(_bucket, WORD.findall(text.lower()))][:max_tokens] for text in texts]
    lengths_N = torch.tensor([len(of_text) for of_text in ids])
    mask_NL = torch.arange(int(lengths_N.max()))[None, :] < lengths_N[:, None]
    ids_NL = torch.full(mask_NL.shape, PADDING)
    ids_NL[mask_NL] = torch.tensor([number for of_text in ids for number in of_text])
    return {"input_ids": ids_NL, "attention_mask": mask_NL.long()}


@lru_cache(maxsize=2**17)
def _bucket(word: str) -> int:
    return START + 1 + zlib.crc32(word.encode()) % (BUCKETS - START - 1)


def _hugging_face(name: str) -> Any:
    """The fast tokenizer of that name: from its folder or the local cache, else from the hub."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UsageError(
            f"the tokenizer {name} needs the package transformers: pip install 'dgharness[text]'"
        ) from error
    where = str(Path(name).expanduser())
    if Path(where).is_dir():
        attempts = [{"local_files_only": True}]
    elif name.startswith(("/", ".", "~")):
        raise UsageError(f"there is no folder {where} with a tokenizer; correct data.tokenizer")
    else:
        attempts = [{"local_files_only": True}, {}]
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # it tells of every retry
    for kwargs in attempts:
        if not kwargs:
            log.warning("the tokenizer %s is not in the local cache; fetching it from the hub", name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, use_fast=True, **kwargs)
        except Exception as error:  # a damaged file makes the readers raise almost anything
            reason = error
            continue
        if len(tokenizer) == len(tokenizer.all_special_ids):
            raise UsageError(f"the tokenizer {name} has no vocabulary; it lacks tokenizer.json or vocab.txt")
        return tokenizer
    raise UsageError(
        f"the tokenizer {name} is neither a folder with tokenizer files nor in the local cache, and could "
        f"not be fetched ({str(reason).splitlines()[0]}); --set data.tokenizer=PATH names a folder, and "
        f"--set data.tokenizer={HASHING} needs no file"
    ) from reason


# --- texts that cannot be read ---------------------------------------------------------------------


def not_utf8(path: Path) -> str:
    """Where a text file (unpacked if it is a .gz) is first not UTF-8, in words; nothing if it is UTF-8."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in zip(count(1), file, strict=False):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number} of {path} is not UTF-8 (byte 0x{line[error.start]:02x})"
    return ""


def _hashes(text_M: np.ndarray, what: str) -> np.ndarray:
    """A number of every text, the same everywhere; half a character in one is a UsageError."""
    try:
        return pd.util.hash_array(text_M, categorize=False)
    except UnicodeEncodeError as error:
        row = next(row for row, text in enumerate(text_M) if text == error.object)
        raise UsageError(
            f"row {row} of {what} holds half a character ({error.object[error.start]!r}), which no encoding "
            "can write; mend the text or take the row out"
        ) from None
