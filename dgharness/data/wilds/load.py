"""From a dataset of the ``wilds`` package to ours: manifest, official split, official evaluation.

Shapes: M rows of the manifest, N of a split, C outputs, F metadata fields.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from dgharness.data.protocols import OFFICIAL
from dgharness.data.wilds.compat import constructing, import_wilds
from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Hparams
from dgharness.metrics.scores import FEW

Official = Callable[[Tensor, np.ndarray], Mapping[str, float]]


class WildsOptions(Hparams):
    """What every dataset of WILDS can be asked."""

    split_scheme: str = "official"
    """The split, by WILDS' name for it."""
    unlabeled: Annotated[str, Field(pattern="^(|train|val|test|extra)(_unlabeled)?$")] = ""
    """Unlabeled examples to go with it: train, val, test or extra; empty takes none."""


def open_wilds(name: str, root: Path | None, split_scheme: str = "official", **kwargs: Any) -> Any:
    """The dataset of the ``wilds`` package; never downloaded. A UsageError says what is missing where.

    ``unlabeled=True`` opens its unlabeled examples.
    """
    wilds = import_wilds()
    place = data_root(root)
    try:
        with constructing():
            return wilds.get_dataset(
                name, root_dir=str(place), download=False, split_scheme=split_scheme, **kwargs
            )
    except ModuleNotFoundError as error:
        raise UsageError(f"wilds:{name} needs the package {error.name}, which is not installed") from error
    except FileNotFoundError as error:
        raise UsageError(
            f"wilds:{name} is not complete in {place}: {error}; dgharness datasets check wilds:{name} "
            "--root DIR says which files belong where"
        ) from error
    except (KeyError, ValueError, AssertionError, pd.errors.ParserError) as error:
        raise UsageError(
            f"wilds:{name} in {place} cannot be read ({type(error).__name__}: {error}); "
            f"dgharness datasets check wilds:{name} --root DIR says which files and columns are expected"
        ) from error


def data_root(root: Path | None) -> Path:
    """Where the data lie: as given, else as DGHARNESS_DATA says, else ./data."""
    return root or Path(os.environ.get("DGHARNESS_DATA", "data"))


def manifest_of(
    dataset: Any, domain: Sequence[str], attributes: Iterable[str] | None = None, numbers: bool = False
) -> pd.DataFrame:
    """One row per example: ``y``, ``domain`` (the product of some metadata fields), attributes, ``split``.

    Categories are in the order of the metadata's codes, by the names that the dataset gives them. Rows of no
    split have none. ``numbers`` says that ``y`` is a number.
    """
    fields = list(dataset.metadata_fields)
    metadata_MF = torch.as_tensor(dataset.metadata_array)
    shown = [name for name in fields if name not in ("y", "from_source_domain")]
    columns = {name: _categories(dataset, name, metadata_MF[:, fields.index(name)]) for name in shown}
    y = torch.as_tensor(dataset.y_array) if not isinstance(dataset.y_array, list) else None
    if numbers:
        assert y is not None
        label: Any = y.flatten().double().numpy()
    elif y is not None and y.dim() == 1 and dataset.is_classification:
        label = _labels(dataset, y)
    else:  # several labels, boxes or tokens: one column cannot hold them
        label = pd.Categorical.from_codes(np.zeros(len(metadata_MF), dtype=np.int64), ["0"])
    kept = shown if attributes is None else list(attributes)
    return pd.DataFrame(
        {
            "y": label,
            "domain": _product([columns[name] for name in domain]),
            **{name: columns[name] for name in kept},
            "split": splits_of(dataset),
        }
    )


def splits_of(dataset: Any) -> pd.Categorical:
    """The official split of every example: train, val, test, id_val or id_test."""
    split_M = np.asarray(dataset.split_array)
    code_M = np.full(len(split_M), -1, dtype=np.int64)
    for name, number in dataset.split_dict.items():
        code_M[split_M == number] = OFFICIAL.index(name)
    return pd.Categorical.from_codes(code_M, list(OFFICIAL))


def official_eval(
    dataset: Any, predict: Callable[[Tensor], Tensor], names: Iterable[str] | None = None
) -> Official:
    """``dataset.eval`` on the rows that outputs are of; by name, empty groups as NaN.

    With more groups than are logged one by one, only the summaries are given.
    """

    def evaluate(outputs_NC: Tensor, rows: np.ndarray) -> dict[str, float]:
        index = torch.from_numpy(np.ascontiguousarray(rows))
        found, _ = dataset.eval(
            predict(outputs_NC), torch.as_tensor(dataset.y_array)[index], dataset.metadata_array[index]
        )
        return readable(found)

    return evaluate


def readable(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``dataset.eval`` that are worth a name; what an empty group got is NaN, never 0."""
    numbers = {str(name): float(value) for name, value in found.items()}
    empty = {
        name.removeprefix("count_")
        for name, value in numbers.items()
        if name.startswith("count_") and not value
    }
    per_group = [name for name in numbers if name.startswith("count_")]
    kept = {}
    for name, value in numbers.items():
        group = next((g for g in empty if name.endswith(f"_{g}")), None)
        if len(per_group) > FEW and ":" in name:
            continue
        kept[name] = float("nan") if group and not name.startswith("count_") else value
    return kept


def _labels(dataset: Any, y_M: Tensor) -> pd.Categorical:
    names = (dataset.metadata_map or {}).get("y")
    count = dataset.n_classes or int(y_M.max()) + 1
    named = [str(name) for name in names] if names is not None and len(names) == count else None
    return pd.Categorical.from_codes(y_M.long().numpy(), named or [str(c) for c in range(count)])


def _categories(dataset: Any, field: str, code_M: Tensor) -> pd.Categorical:
    names = (dataset.metadata_map or {}).get(field)
    code_M = code_M.long()
    count = max(int(code_M.max()) + 1, 0 if names is None else len(names))
    levels = [str(name) for name in names] if names is not None else []
    levels += [str(number) for number in range(len(levels), count)]
    if len(set(levels)) < len(levels):
        levels = [f"{level} ({number})" for number, level in enumerate(levels)]
    return pd.Categorical.from_codes(code_M.numpy(), levels)


def _product(columns: Sequence[pd.Categorical]) -> pd.Categorical:
    """One column of the combinations that occur, the first varying slowest."""
    if len(columns) == 1:
        return columns[0].remove_unused_categories()
    code_M, names = np.zeros(len(columns[0]), dtype=np.int64), [""]
    for column in columns:
        code_M = code_M * len(column.categories) + column.codes
        names = [f"{left} {level}".strip() for left in names for level in column.categories]
    return pd.Categorical.from_codes(code_M, names).remove_unused_categories()


def needs_extra(module: str, extra: str, what: str) -> Any:
    """A package of an extra, or a UsageError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {module}: pip install 'dgharness[{extra}]'") from error
