"""The next token of Python code, in repositories that training did not see.

A file is 256 tokens of CodeGPT's vocabulary; where there is padding no token is asked for. The benchmark
counts the names of classes and methods; the accuracies of the other kinds of token stand beside it.

Paper: Raychev et al., Probabilistic Model for Code with Decision Trees, OOPSLA 2016; Lu et al., CodeXGLUE,
NeurIPS Datasets and Benchmarks 2021, arXiv:2102.04664; Koh et al., WILDS: A Benchmark of in-the-Wild
Distribution Shifts, ICML 2021, arXiv:2012.07421

Shapes: M rows of the manifest, N sequences of a batch, L tokens of one.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.tasks import tokens
from dgharness.data.wilds.compat import import_wilds
from dgharness.data.wilds.load import (
    Official,
    WildsOptions,
    manifest_of,
    needs_extra,
    official_eval,
    open_wilds,
)
from dgharness.step import TokenShape

VOCABULARY = 50_001  # tokens of microsoft/CodeGPT-small-py


class Py150Options(WildsOptions):
    unlabeled: Literal[""] = ""
    """Not available here."""


def load(argument: str | None, root: Path | None, seed: int, options: Py150Options) -> Dataset:
    """Token sequences and the tokens that follow, one place further on."""
    needs_extra("transformers", "text", "wilds:py150")
    _without_tokenizer()
    source = open_wilds("py150", root, options.split_scheme)
    input_ids = source._input_array
    return Dataset(
        name="wilds:py150",
        manifest=manifest_of(source, ["repo"], attributes=()),
        reader=Tokens(input_ids),
        task=tokens(VOCABULARY),
        input_shape=TokenShape(input_ids.shape[1], VOCABULARY),
        profile="large",
        defaults=Defaults(
            model="code-gpt", eval_every=300, protocol="official", sampler="pooled", rows=2, batch_size=3
        ),
        groups=("domain",),
        targets=source.y_array,
        official=_evaluation(source),
        official_metric="acc",
        replicates=3,
        eval_batch=8,
    )


class Tokens:
    """A reader of token sequences [M, L] that live in memory."""

    def __init__(self, token_ML: Tensor) -> None:
        self.token_ML = token_ML

    def __call__(self, index_N: Tensor) -> dict[str, Tensor]:
        return {"input_ids": self.token_ML[index_N.to(self.token_ML.device)]}

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.token_ML.to(device))


def _without_tokenizer() -> None:
    """The constructor would download a tokenizer, for no more than the size of its vocabulary."""

    class Vocabulary:
        @classmethod
        def from_pretrained(cls, name: str) -> range:
            return range(VOCABULARY)

    import_wilds()
    importlib.import_module("wilds.datasets.py150_dataset").GPT2Tokenizer = Vocabulary  # type: ignore[attr-defined]


def _evaluation(source: Any) -> Official:
    """WILDS' accuracies; NaN and not 0 for a kind of token that does not occur."""
    evaluate = official_eval(source, lambda kept_NL2: kept_NL2[..., 0])
    kinds = {number: name for name, number in source._TYPE2ID.items() if name != "masked"}
    counted = {"acc": {"class", "method"}, "Acc (Class-Method)": {"class", "method"}}

    def with_gaps(kept_NL2: Tensor, rows: np.ndarray) -> dict[str, float]:
        found = evaluate(torch.nan_to_num(kept_NL2), rows)  # a masked token has no loss
        kind_NL = source.metadata_array[torch.from_numpy(np.ascontiguousarray(rows)), 1:-1]
        present = {kinds[number] for number in kind_NL.unique().tolist() if number in kinds}
        needed = {name: counted.get(name, {name.removeprefix("Acc (").rstrip(")")}) for name in found}
        absent = {name for name, of in needed.items() if of <= set(kinds.values()) and not of & present}
        return {name: float("nan") if name in absent else value for name, value in found.items()}

    return with_gaps


py150 = DatasetSpec(
    load,
    Py150Options,
    layout="""py150_v1.0/
  RELEASE_v1.0.txt
  processed/{train,IDval,OODval,IDtest,OODtest}_input.json: lists of 256 tokens, and
    {train,IDval,OODval,IDtest,OODtest}_input_tok_type.json: the kind of each
  metadata/repo_file_names/{train,IDval,OODval,IDtest,OODtest}.txt: user/repository/path of each file
  metadata/repo_file_names/repo_ids.csv: id, repo_name""",
    doc=__doc__,
)
"""The next token of Python code, in repositories that training did not see."""
