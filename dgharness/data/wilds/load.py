"""From a dataset of the ``wilds`` package to ours: manifest, official split, official evaluation.

Shapes: M rows of the manifest, N of a split, C outputs, F metadata fields.
"""

from __future__ import annotations

import importlib
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.protocols import OFFICIAL
from dgharness.data.wilds.compat import constructing, import_wilds
from dgharness.errors import UsageError
from dgharness.hparams import Hparams
from dgharness.metrics.scores import FEW

Official = Callable[[Tensor, np.ndarray], Mapping[str, float]]
Names = Mapping[str, Sequence[str]]  # metadata field -> what its codes 0, 1, ... are called

# The split schemes of the package's classes; those that are not here have the official one alone. Of amazon
# and yelp every file in splits/ is one.
SCHEMES = {
    "bdd100k": ("official", "timeofday", "location"),
    "camelyon17": ("official", "mixed-to-test"),
    "encode": ("official", "test-to-test", "id-CELLTYPE", "val.CELLTYPE.test.CELLTYPE"),
    "fmow": ("official", "mixed-to-test", "time_after_YEAR"),
    "globalwheat": ("official", "official_with_subsampled_test", "test-to-test", "mixed-to-test"),
    "poverty": ("official", "mixed-to-test"),
    "rxrx1": ("official", "mixed-to-test"),
}
LEFT_OUT = {"amazon": (-1, 11, 12, 13)}  # the splits of rows that are no labeled example; else -1


class WildsOptions(Hparams):
    """What every dataset of WILDS can be asked."""

    split_scheme: str = "official"
    """The split, by WILDS' name for it."""
    unlabeled: Literal["", "train", "val", "test", "extra"] = ""
    """Unlabeled examples to go with it: train, val, test or extra; empty takes none."""


def open_wilds(name: str, root: Path | None, split_scheme: str = "official", **kwargs: Any) -> Any:
    """The dataset of the ``wilds`` package; never downloaded. A UsageError says what is missing where.

    ``unlabeled=True`` opens its unlabeled examples.
    """
    wilds = import_wilds()
    place = data_root(root)
    if not place.is_dir():  # the constructors of wilds would make it
        raise UsageError(
            f"there is no folder {place}, where wilds:{name} is expected; name the folder of your data with "
            "--data-root DIR or DGHARNESS_DATA"
        )
    advice = f"dgharness datasets check wilds:{name} --root DIR says which files belong where"
    try:
        with constructing():
            return wilds.get_dataset(
                name, root_dir=str(place), download=False, split_scheme=split_scheme, **kwargs
            )
    except ModuleNotFoundError as error:
        raise UsageError(f"wilds:{name} needs the package {error.name}, which is not installed") from error
    except FileNotFoundError as error:
        if Path(error.filename or "").name == f"{split_scheme}.csv":
            found = sorted(file.stem for file in Path(error.filename).parent.glob("*.csv"))
            raise _no_scheme(name, split_scheme, found) from error
        raise UsageError(f"wilds:{name} is not complete in {place}: {_absent(error)}; {advice}") from error
    except Exception as error:  # damaged tables raise almost anything; the reason is kept and shown
        if isinstance(error, ValueError) and re.search("split.scheme", str(error), re.IGNORECASE):
            raise _no_scheme(name, split_scheme, SCHEMES.get(name, ("official",))) from error
        raise UsageError(f"wilds:{name} in {place} cannot be read: {_reason(error)}; {advice}") from error


def data_root(root: Path | None) -> Path:
    """Where the data lie: as given, else as DGHARNESS_DATA says, else ./data."""
    return root or Path(os.environ.get("DGHARNESS_DATA", "data"))


def _no_scheme(name: str, scheme: str, known: Sequence[str]) -> UsageError:
    offered = f"which may be {', '.join(known)}" if known else "and no file of splits/ is there"
    return UsageError(f"wilds:{name} has no split scheme {scheme!r}; correct data.split_scheme, {offered}")


def _absent(error: FileNotFoundError) -> str:
    if error.filename is not None:
        return f"there is no {error.filename}"
    found = re.search(r"could not be found in (.+?)\. Initialize", str(error))
    if not found:
        return str(error)
    folder = Path(found[1])
    if not folder.is_dir():
        return f"there is no folder {folder.name}"
    version = folder.name.rpartition("_v")[2]
    return (
        f"{folder.name} has no file RELEASE_v{version}.txt, the last one to be unpacked (its contents do not "
        "matter: make it if all the others are there)"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no column or value {error}"
    if isinstance(error, AssertionError) and not error.args:
        return f"wilds found it otherwise than {traceback.extract_tb(error.__traceback__)[-1].line!r}"
    return f"{type(error).__name__}: {error}"


# --- manifest --------------------------------------------------------------------------------------


def manifest_of(
    dataset: Any,
    domain: Sequence[str],
    attributes: Iterable[str] | None = None,
    numbers: bool = False,
    names: Names | None = None,
) -> pd.DataFrame:
    """One row per example: ``y``, ``domain`` (the product of some metadata fields), attributes, ``split``.

    Categories are in the order of the metadata's codes, by the names that the dataset gives them, or
    ``names`` in their place (``y`` among them). Rows of no split have none. ``numbers`` says that ``y`` is a
    number. A label that is no class is a UsageError that names the row.
    """
    columns = described(dataset, domain, attributes, names)
    y = torch.as_tensor(dataset.y_array) if not isinstance(dataset.y_array, list) else None
    if numbers:
        assert y is not None
        label: Any = y.flatten().double().numpy()
    elif y is not None and y.dim() == 1 and dataset.is_classification:
        label = _labels(dataset, y, names)
    else:  # several labels, boxes or tokens: one column cannot hold them
        label = coded(np.zeros(len(dataset.metadata_array), dtype=np.int64), ["0"])
    return pd.DataFrame({"y": label, **columns, "split": splits_of(dataset)})


def described(
    dataset: Any, domain: Sequence[str], attributes: Iterable[str] | None = None, names: Names | None = None
) -> dict[str, Any]:
    """The columns ``domain`` and attributes of a manifest; as a rule every metadata field but the label."""
    fields = list(dataset.metadata_fields)
    metadata_MF = torch.as_tensor(dataset.metadata_array)
    known = {**(dataset.metadata_map or {}), **(names or {})}
    kept = [name for name in fields if name not in ("y", "from_source_domain")]
    kept = kept if attributes is None else list(attributes)
    columns = {
        name: _categories(known.get(name), metadata_MF[:, fields.index(name)])
        for name in dict.fromkeys([*domain, *kept])
    }
    return {"domain": _product([columns[name] for name in domain]), **{name: columns[name] for name in kept}}


def coded(code_M: np.ndarray, names: Iterable[Any]) -> Any:
    """A column of the names, by their numbers; WILDS pads some of them with blanks."""
    return pd.Categorical.from_codes(code_M, pd.Index([str(name).strip() for name in names]))


def splits_of(dataset: Any) -> pd.Categorical:
    """The official split of every example: train, val, test, id_val or id_test; none where it is left out.

    A number that is no split is a UsageError that names the row.
    """
    split_M = np.asarray(dataset.split_array)
    code_M = np.full(len(split_M), -1, dtype=np.int64)
    for name, number in dataset.split_dict.items():
        code_M[split_M == number] = OFFICIAL.index(name)
    number_M = pd.to_numeric(pd.Series(split_M), "coerce")
    left_out_M = number_M.isin(LEFT_OUT.get(dataset.dataset_name, (-1,))).to_numpy()
    if len(wrong := np.flatnonzero((code_M < 0) & ~left_out_M)):
        row = int(wrong[0])
        raise UsageError(
            f"row {row} of wilds:{dataset.dataset_name} has the split {split_M[row]}, which is none of "
            f"{', '.join(map(str, dataset.split_dict.values()))} ({len(wrong)} such rows); mend it or take "
            "the row out"
        )
    return coded(code_M, OFFICIAL)


def _labels(dataset: Any, y_M: Tensor, names: Names | None) -> pd.Categorical:
    known = {**(dataset.metadata_map or {}), **(names or {})}.get("y", ())
    count = int(dataset.n_classes or int(y_M.max()) + 1)
    code_M = y_M.long().numpy()
    if len(wrong := np.flatnonzero((code_M < 0) | (code_M >= count))):
        row = int(wrong[0])
        missing = code_M[row] == np.iinfo(np.int64).min  # what an integer is made of NaN
        has = "no label" if missing else f"the label {code_M[row]}"
        raise UsageError(
            f"row {row} of wilds:{dataset.dataset_name} has {has}, and its classes are 0 "
            f"to {count - 1} ({len(wrong)} such rows); mend the labels"
        )
    return coded(code_M, known if len(known) == count else range(count))


def _categories(names: Sequence[str] | None, code_M: Tensor) -> pd.Categorical:
    """Codes by their names, all of them; without names by their numbers, those that occur."""
    codes = np.where(code_M.long().numpy() < 0, -1, code_M.long().numpy())  # -1, -100: unknown
    if names is None:
        numbers = np.unique(codes[codes >= 0])
        return coded(np.where(codes < 0, -1, np.searchsorted(numbers, codes)), numbers)
    levels = [str(name).strip() for name in names]
    levels += [str(number) for number in range(len(levels), codes.max(initial=-1) + 1)]
    if len(set(levels)) < len(levels):
        levels = [f"{level} ({number})" for number, level in enumerate(levels)]
    return coded(codes, levels)


def _product(columns: Sequence[pd.Categorical]) -> pd.Categorical:
    """One column of the combinations that occur, the first varying slowest."""
    code_M, names = np.zeros(len(columns[0]), dtype=np.int64), [""]
    for column in columns:
        unknown_M = (code_M < 0) | (column.codes < 0)
        code_M = np.where(unknown_M, -1, code_M * len(column.categories) + column.codes)
        names = [f"{left} {level}".strip() for left in names for level in column.categories]
    return coded(code_M, names).remove_unused_categories()


# --- evaluation ------------------------------------------------------------------------------------


def official_eval(
    dataset: Any, predict: Callable[[Tensor], Tensor], row_M: np.ndarray | None = None
) -> Official:
    """``dataset.eval`` of outputs on rows of the manifest; by name, empty groups as NaN.

    ``row_M`` says which row of the dataset each row of the manifest is, where some were left out. A NaN
    among the outputs makes every score NaN: an arg-max would turn it into a class.
    """

    def evaluate(outputs_NC: Tensor, rows: np.ndarray) -> dict[str, float]:
        index = torch.from_numpy(np.ascontiguousarray(rows if row_M is None else row_M[rows]))
        targets_N = torch.as_tensor(dataset.y_array)[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is undefined comes out as 0 or NaN, and stands so
            found, _ = dataset.eval(predict(outputs_NC), targets_N, dataset.metadata_array[index])
        scores = readable(found)
        if outputs_NC.isnan().any():
            return {k: value if k.startswith("count_") else float("nan") for k, value in scores.items()}
        return scores

    return evaluate


def readable(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of ``dataset.eval`` that are worth a name; what an empty group got is NaN, never 0.

    Above 50 groups only the summaries are given. The worst of the groups is as the package has it: for
    civilcomments a cell without examples counts there as 0.

    >>> readable({"acc_avg": 0.5, "acc_y:0": 0.5, "count_y:0": 4, "acc_y:1": 0.0, "count_y:1": 0})
    {'acc_avg': 0.5, 'acc_y:0': 0.5, 'count_y:0': 4.0, 'acc_y:1': nan, 'count_y:1': 0.0}
    """
    numbers = {str(name): float(value) for name, value in found.items()}
    counts = {name: value for name, value in numbers.items() if name.startswith("count_")}
    groups = tuple(name.removeprefix("count") for name in counts)  # "_y:1"
    empty = tuple(name.removeprefix("count") for name, count in counts.items() if not count)
    if len(counts) > FEW:
        return {name: value for name, value in numbers.items() if not name.endswith(groups)}
    return {
        name: float("nan") if name.endswith(empty) and name not in counts else value
        for name, value in numbers.items()
    }


def needs_extra(module: str, extra: str, what: str) -> Any:
    """A package of an extra, or a UsageError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {module}: pip install 'dgharness[{extra}]'") from error
