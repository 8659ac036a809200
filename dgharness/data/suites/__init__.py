"""Suites to be tested on and not trained on: what they share.

A suite is a dataset whose training and validation rows are the clean data and whose test rows are the suite,
so that the protocol ``official`` trains on the one and tests on the other.

Shapes: N examples, C classes, M rows of the manifest, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from dgharness.data.corruptions import CORRUPTIONS, SEVERITIES
from dgharness.errors import UsageError, did_you_mean
from dgharness.hparams import Hparams

CLEAN = "clean"

# One name stands for a list of one.
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value])
]
Severity = Annotated[int, Field(ge=1, le=5)]
Severities = Annotated[
    tuple[Severity, ...],
    BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value]),
]


class CorruptionOptions(Hparams):
    """Which corruptions the test is made of."""

    corruptions: Names = ()
    """Names of corruptions; empty takes the fifteen common ones."""
    severities: Severities = SEVERITIES
    """Severities, of 1 to 5."""


class ClassOptions(Hparams):
    """Which classes take part."""

    classes: Names = ()
    """Names of the classes that are tested; empty takes all that the suite has."""
    outputs: Literal["subset", "all"] = "subset"
    """subset trains on these classes alone; all trains on every class of the clean data, and the official
    scores choose among the tested ones."""


def chosen_corruptions(
    options: CorruptionOptions, known: Sequence[str] = tuple(CORRUPTIONS)
) -> list[tuple[str, int]]:
    """(corruption, severity) of every test domain, in order; the domain is named ``gaussian-noise-3``."""
    for name in options.corruptions:
        if name not in known:
            raise UsageError(
                f"data.corruptions: there is no corruption {name!r}; {did_you_mean(name, known)}"
            )
    if not options.severities:
        raise UsageError("data.severities is empty; name at least one of 1 to 5")
    chosen = options.corruptions or tuple(CORRUPTIONS)
    return [
        (name, severity) for name in dict.fromkeys(chosen) for severity in sorted(set(options.severities))
    ]


def domain_name(corruption: str, severity: int) -> str:
    """
    >>> domain_name("fog", 3)
    'fog-3'
    """
    return f"{corruption}-{severity}"


def with_classes(
    manifest: pd.DataFrame, options: ClassOptions, offered: Sequence[str]
) -> tuple[pd.DataFrame, Tensor]:
    """The rows whose classes take part, under their old index, and which outputs [C] are tested.

    Where the options name no class, it is those ``offered``.
    """
    names, tested = list(manifest["y"].cat.categories), manifest["split"].isin(["test", "id_test"])
    for name in options.classes:
        if name not in names:
            raise UsageError(f"data.classes: there is no class {name!r}; {did_you_mean(name, names)}")
    kept = [name for name in names if name in set(options.classes or offered)]
    part_M = manifest["y"].isin(kept)
    if options.outputs == "all":
        return manifest[part_M | ~tested], torch.tensor([name in kept for name in names])
    manifest = manifest[part_M]
    return manifest.assign(y=manifest["y"].cat.set_categories(kept)), torch.ones(len(kept), dtype=torch.bool)


def wrong(logits_NC: Tensor, targets_N: Tensor, tested_C: Tensor) -> Tensor:
    """1 where the largest of the tested outputs is not the target, else 0; NaN where an output is NaN.

    >>> wrong(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2]), torch.tensor([True, False, True]))
    tensor([0.], dtype=torch.float64)
    """
    predicted_N = logits_NC.masked_fill(~tested_C, -torch.inf).argmax(-1)
    wrong_N = (predicted_N != targets_N).double()
    return wrong_N.where(~logits_NC.isnan().any(-1), torch.nan)


class Accuracy:
    """The official evaluation ``acc``: accuracy among the classes that are tested."""

    def __init__(self, targets_M: Tensor, tested_C: Tensor) -> None:
        self.targets_M, self.tested_C = targets_M, tested_C

    def __call__(self, logits_NC: Tensor, rows: np.ndarray) -> Mapping[str, float]:
        targets_N = self.targets_M[torch.from_numpy(np.ascontiguousarray(rows))]
        return {"acc": 1 - wrong(logits_NC, targets_N, self.tested_C).mean().item()}


class CorruptionErrors:
    """The official evaluation of corrupted images: the error of each corruption, and their mean.

    The error of a corruption is the mean over its severities. They are not divided by those of AlexNet, as
    in the mCE of Hendrycks & Dietterich (2019). Rows that are not corrupted count nowhere.
    """

    def __init__(
        self, targets_M: Tensor, tested_C: Tensor, domain_M: Tensor, corruption_of: Mapping[int, str]
    ) -> None:
        self.targets_M, self.tested_C = targets_M, tested_C
        self.domain_M, self.corruption_of = domain_M, corruption_of  # number of a domain -> its corruption

    def __call__(self, logits_NC: Tensor, rows: np.ndarray) -> Mapping[str, float]:
        index_N = torch.from_numpy(np.ascontiguousarray(rows))
        domain_N, wrong_N = self.domain_M[index_N], wrong(logits_NC, self.targets_M[index_N], self.tested_C)
        error_K = torch.bincount(domain_N, weights=wrong_N) / torch.bincount(domain_N)
        errors: dict[str, list[float]] = {}
        for domain in domain_N.unique().tolist():
            if domain in self.corruption_of:
                errors.setdefault(self.corruption_of[domain], []).append(error_K[domain].item())
        if not errors:
            return {}
        found = {f"error_{name}": sum(values) / len(values) for name, values in errors.items()}
        return {"mean_corruption_error": sum(found.values()) / len(found), **found}
