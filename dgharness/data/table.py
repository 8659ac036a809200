"""``csv:PATH`` and ``parquet:PATH``: your own data, as a table with one row per example.

A column ``y`` holds the labels (text, integers and yes-or-no are classes in natural order, fractions are
numbers to regress on) and a column ``domain`` says where an example is from. A column ``path`` makes it a
dataset of images, relative to the table's folder; otherwise a column ``text`` makes it one of texts, and
otherwise the numbers in the table are its features. A column ``split`` (train, val, test, id_val, id_test,
unlabeled) is the table's own split, ``time`` is a number or a date, and every further column is an attribute.
``data.y`` and its kin name the columns where they are called otherwise.

Features are standardised by mean and variance of the rows that a run trains on. Nothing is guessed or filled
in: what is missing, or not of the kind that its column should be, is an error that names the line.

Shapes: M rows of the table, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.data.columns import (
    Table,
    categories,
    dates_or_numbers,
    is_category,
    is_number,
    numbers,
    whole_fractions,
)
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults, InMemory
from dgharness.data.images import PHOTOGRAPHS, ImageOptions, image_dataset, image_files
from dgharness.data.protocols import OFFICIAL
from dgharness.data.table_file import place
from dgharness.data.tasks import classification, regression
from dgharness.data.text import REVIEWS, TextOptions, text_dataset
from dgharness.errors import UsageError
from dgharness.hparams import NameList

LAYOUT = """\
PATH  a table with the columns
      y        the label: text, integer or yes-or-no for classes, a fraction for a number
      domain   where the example is from
      path     an image, relative to the folder of PATH; or
      text     a text; or numbers in columns of any name, which are the features
      split    (if you have one) train, val, test, id_val, id_test or unlabeled
      time     (if you have it) a number or a date
      ...      any attributes"""


class TableOptions(ImageOptions, TextOptions):
    """Which column is what. An empty name says that there is none, whatever columns the table has."""

    y: str = "y"
    """The column of labels."""
    domain: str = "domain"
    """The column of domains."""
    split: str = "split"
    """The column of the table's own split."""
    time: str = "time"
    """The column that says when an example is from; a date becomes days since 1970."""
    path: str = "path"
    """The column of images."""
    text: str = "text"
    """The column of texts, where there are no images."""
    features: NameList = ()
    """Columns of features, or patterns as in x*, where there are neither images nor texts; by default every
    column of numbers that is nothing else."""
    attributes: NameList = ()
    """Columns that are attributes, fractions as numbers and all else as categories; by default every column
    that is nothing else."""
    task: Literal["", "classification", "regression"] = ""
    """Classes or numbers; by default as the labels look."""
    classes: NameList = ()
    """The classes in their order; a label that is none of them is an error. By default those that occur."""
    standardise: bool = True
    """Bring every feature to mean 0 and variance 1 over the training rows."""


def load(
    argument: str | None, root: Path | None, trial_seed: int, options: TableOptions, kind: str
) -> Dataset:
    """The dataset of a table; neither the data root nor the trial seed matters."""
    if not argument:
        raise UsageError(f"{kind} needs a path, as in {kind}:PATH of a table with the columns y and domain")
    table = Table.read(Path(argument).expanduser(), kind)
    options = options.model_copy(update=_optional(table, options))
    manifest = pd.DataFrame({"domain": _domains(table, options.domain)})
    if options.split:
        manifest["split"] = _splits(table, options.split)
    unlabeled_M = (
        (manifest["split"] == "unlabeled").to_numpy() if options.split else np.zeros(table.rows, bool)
    )
    manifest.insert(0, "y", _labels(table, options, unlabeled_M))
    if options.time:
        manifest["time"] = dates_or_numbers(table, options.time)
    features = () if options.path or options.text else _features(table, options)
    for name in _attributes(table, options, features):
        manifest[name] = categories(table, name)[0] if is_category(table, name) else numbers(table, name)
    numeric = not isinstance(manifest["y"].dtype, pd.CategoricalDtype)
    fields: dict[str, Any] = {
        "task": regression() if numeric else classification(len(manifest["y"].cat.categories)),
        "groups": ("domain",) if numeric else ("y",),
        "place": partial(place, table.file, kind),
    }
    return _dataset(f"{kind}:{table.file.stem}", table, manifest, features, options, fields)


csv = DatasetSpec(partial(load, kind="csv"), TableOptions, argument="PATH", layout=LAYOUT, doc=__doc__)
"""``csv:PATH``: your own data: images, texts or features as a table of comma-separated values."""

parquet = DatasetSpec(
    partial(load, kind="parquet"), TableOptions, argument="PATH", layout=LAYOUT, doc=__doc__
)
"""``parquet:PATH``: your own data: images, texts or features as a table in the Parquet format."""


def _dataset(
    name: str,
    table: Table,
    manifest: pd.DataFrame,
    features: tuple[str, ...],
    options: TableOptions,
    fields: dict[str, Any],
) -> Dataset:
    # A table that says what is to be tested on is never trained on it; that it lacks val is said by official.
    own_split = options.split and manifest["split"].isin(["test", "id_test"]).any()

    def defaults(of_kind: Defaults) -> Defaults:
        return replace(of_kind, protocol="official" if own_split else "leave-one-domain-out")

    if options.path:
        paths, folder = table.texts(options.path, "path"), table.file.parent
        return image_dataset(
            name,
            folder,
            manifest.assign(path=paths),
            options,
            files=image_files(folder, paths, table.place),
            defaults=defaults(PHOTOGRAPHS),
            **fields,
        )
    if options.text:
        texts = table.texts(options.text, "text")
        return text_dataset(name, manifest, texts, options, defaults=defaults(REVIEWS), **fields)
    x_MF = np.stack(
        [numbers(table, feature, complete=True) for feature in features], axis=1, dtype=np.float32
    )
    # The digest of the manifest has to notice a feature that was edited.
    manifest["features_hash"] = pd.util.hash_pandas_object(pd.DataFrame(x_MF), index=False).to_numpy(np.int64)
    reader = InMemory(torch.from_numpy(x_MF))
    return Dataset(
        name,
        manifest,
        reader,
        input_shape=(len(features),),
        defaults=defaults(Defaults()),
        fit=partial(standardisation, reader.x_M) if options.standardise else None,
        **fields,
    )


def standardisation(x_MF: Tensor, rows: np.ndarray) -> Callable[[Tensor], Tensor]:
    """What brings each feature to mean 0 and variance 1 over the rows; one that is constant there to 0.

    >>> scaled = standardisation(torch.tensor([[1.0, 5.0], [3.0, 5.0], [9.0, 6.0]]), np.array([0, 1]))
    >>> scaled(torch.tensor([[1.0, 5.0], [4.0, 5.0]]))
    tensor([[-1.,  0.],
            [ 2.,  0.]])
    """
    x_LF = x_MF[torch.from_numpy(rows)].double()
    mean_F, std_F = x_LF.mean(0), x_LF.std(0, correction=0)
    scale_F = torch.where(std_F > 0, 1 / std_F, 1.0).float()
    mean_F = mean_F.float()
    return lambda x_NF: (x_NF - mean_F.to(x_NF.device)) * scale_F.to(x_NF.device)


# --- the columns -----------------------------------------------------------------------------------


def _optional(table: Table, options: TableOptions) -> dict[str, str]:
    """The columns that need not be there, empty where they are not; one that was asked for must be."""
    found = {}
    for key in ("split", "time", "path", "text"):
        name = getattr(options, key)
        if name and name != TableOptions.model_fields[key].default:
            table.require(name, f"data.{key}")
        found[key] = name if name in table.names else ""
    if options.features:  # they are asked for, so that a column of paths or texts is but one among others
        default = TableOptions.model_fields
        found |= {key: "" for key in ("path", "text") if getattr(options, key) == default[key].default}
    elif found["path"]:
        found["text"] = ""
    used = [name for name in (options.y, options.domain, *found.values()) if name]
    for name in {name for name in used if used.count(name) > 1}:
        raise UsageError(f"the column {name!r} of {table.file} has two parts to play; see data.y and its kin")
    return found


def _domains(table: Table, name: str) -> pd.Categorical:
    table.require(name, "data.domain")
    column, missing_M = categories(table, name)
    if missing_M.any():
        raise table.first(missing_M, f"has no domain (column {name!r})", "fill it in or take the row out")
    return column


def _splits(table: Table, name: str) -> pd.Categorical:
    column, _ = categories(table, name)
    if unknown := [split for split in column.categories if split not in OFFICIAL]:
        raise table.first(
            np.asarray(column == unknown[0]),
            f"has the split {unknown[0]!r} (column {name!r}), which is none of {', '.join(OFFICIAL)}",
            "rename it, or name another column with --set data.split=COLUMN",
        )
    return column.set_categories(list(OFFICIAL))


def _labels(table: Table, options: TableOptions, unlabeled_M: np.ndarray) -> Any:
    """Classes as a category, numbers as float64; unknown in unlabeled rows, whatever they hold."""
    table.require(options.y, "data.y")
    stated = options.task or ("classification" if options.classes else "")
    if not stated:
        table.refuse_stray_text(options.y, "mend it, or if these are classes --set data.task=classification")
        if whole_fractions(table, options.y, ~unlabeled_M):
            raise UsageError(
                f"the column {options.y!r} of {table.file} holds whole numbers written as fractions (1.0); "
                "are they classes or amounts? --set data.task=classification or data.task=regression"
            )
    label: Any
    if stated == "regression" or not (stated or is_category(table, options.y)):
        label = numbers(table, options.y)
        missing_M = ~np.isfinite(label)
    else:
        label, missing_M = categories(table, options.y, options.classes)
    if (missing_M & ~unlabeled_M).any():
        raise table.first(
            missing_M & ~unlabeled_M,
            f"has no label (column {options.y!r})",
            "fill it in, take the row out or give it the split unlabeled",
        )
    label[unlabeled_M] = np.nan
    return label if isinstance(label, np.ndarray) or options.classes else label.remove_unused_categories()


def _features(table: Table, options: TableOptions) -> tuple[str, ...]:
    spoken_for = _spoken_for(options) | set(options.attributes)
    if not options.features:
        spoken_for |= set(table.index)
        found = [name for name in table.names if name not in spoken_for and is_number(table, name)]
        if not found:
            raise UsageError(
                f"{table.file} has no column of images (path), none of texts (text) and none of numbers; "
                "name it with --set data.path=COLUMN, data.text=COLUMN or data.features=COLUMN"
            )
        return tuple(found)
    for pattern in options.features:
        if not any(fnmatchcase(name, pattern) for name in table.names):
            table.require(pattern, "data.features")
    return tuple(
        name
        for name in table.names
        if name not in spoken_for and any(fnmatchcase(name, pattern) for pattern in options.features)
    )


def _attributes(table: Table, options: TableOptions, features: tuple[str, ...]) -> tuple[str, ...]:
    for name in options.attributes:
        table.require(name, "data.attributes")
    if options.attributes:
        return options.attributes
    rest = [name for name in table.names if name not in _spoken_for(options) and name not in features]
    for name in rest:
        if features and not options.features:
            table.refuse_stray_text(
                name, f"mend it, or if this is no feature name the attributes, as in data.attributes=[{name}]"
            )
    return tuple(rest)


def _spoken_for(options: TableOptions) -> set[str]:
    """Columns with a part to play, and names that the manifest gives another meaning."""
    parts = {options.y, options.domain, options.split, options.time, options.path, options.text}
    return parts | {"y", "domain", "split", "time", "path", "bytes", "text_hash", "features_hash"}
