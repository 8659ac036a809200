"""Stored predictions: what one checkpoint said of the examples of some splits, and all that scoring needs.

A file ``predictions-STEP.parquet`` has a row per example and the columns ``row`` (of the manifest),
``split``, ``domain``, ``y`` (or ``y_0``, ...), ``logit_0``, ... (``kept_0``, ... where a task keeps something
in place of its outputs), ``group`` (or ``group_0``, ..., where groups overlap) and, where the task has a
judge of its own, ``right`` and ``loss``. Its metadata, under ``dgharness``, hold what concerns all rows.

Shapes: N examples, C outputs, L targets of one example, G groups.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.errors import UsageError
from dgharness.files import write_atomic

FACTS = b"dgharness"  # the key of the facts in the metadata of the file
RAW = ("classification", "regression", "multilabel")  # tasks whose outputs are stored as they are


@dataclass(frozen=True)
class Predictions:
    """Outputs of one checkpoint on examples of any splits, with everything that metrics are made of.

    ``right_N`` and ``loss_N`` are there where the task has a judge of its own, as it has for anything but
    classes and numbers: how right each example is (0 to 1) and what it costs, NaN without a known target.
    """

    task: str  # Task.name
    row_N: Tensor  # of the manifest
    split_N: np.ndarray  # val, test, test_holdout, id_val, id_test
    outputs_NC: Tensor  # logits, or what the task keeps, in single precision
    targets: Tensor  # [N], or [N, L]
    domain_N: Tensor
    domains: tuple[str, ...]
    group: Tensor  # [N] number (-1 unknown), or [N, G] who is in which of overlapping groups
    groups: tuple[str, ...]
    classes: tuple[str, ...] = ()  # () where the task has none
    train_count_G: Tensor | None = None  # training examples of each group
    min_group_size: int = 1  # of the groups among which the worst is sought
    right_N: Tensor | None = None
    loss_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_N)

    def of(self, *splits: str) -> Predictions:
        """The examples of these splits."""
        return self.where(torch.from_numpy(np.isin(self.split_N, splits)))

    def where(self, kept_N: Tensor) -> Predictions:
        """The examples of which a mask [N] is true, or those of these positions, in that order."""
        parts = {name: getattr(self, name) for name in PER_EXAMPLE}
        kept: dict[str, Any] = {name: None if part is None else part[kept_N] for name, part in parts.items()}
        return dataclasses.replace(self, split_N=self.split_N[kept_N.numpy()], **kept)


PER_EXAMPLE = ("row_N", "outputs_NC", "targets", "domain_N", "group", "right_N", "loss_N")  # and split_N


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as parquet; the same predictions make the same file."""
    import pyarrow
    import pyarrow.parquet

    found = predictions
    columns: dict[str, np.ndarray] = {
        "row": found.row_N.numpy(),
        "split": found.split_N.astype(object),
        "domain": np.array(found.domains, dtype=object)[found.domain_N.numpy()],
        **_columns("y", found.targets),
        **_numbered("logit" if found.task in RAW else "kept", found.outputs_NC),
        **_columns("group", found.group),
    }
    if found.right_N is not None and found.loss_N is not None:
        columns |= {"right": found.right_N.numpy(), "loss": found.loss_N.numpy()}
    facts = {
        "task": found.task,
        "classes": found.classes,
        "domains": found.domains,
        "groups": found.groups,
        "train_counts": None if found.train_count_G is None else found.train_count_G.tolist(),
        "min_group_size": found.min_group_size,
    }
    table = pyarrow.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
    metadata = {**(table.schema.metadata or {}), FACTS: json.dumps(facts)}
    write_atomic(
        path, lambda file: pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)
    )


def read_predictions(path: Path) -> Predictions:
    """Predictions from a file that ``write_predictions`` wrote; any other is a UsageError."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        why = str(error).splitlines()[0]
        raise UsageError(f"{path} cannot be read as stored predictions: {why}; name another file") from None
    if FACTS not in (table.schema.metadata or {}):
        raise UsageError(
            f"{path} does not say what its columns mean (task, classes, groups): it was not written by this "
            "version of dgharness; train the run again to store its predictions"
        )
    facts = json.loads(table.schema.metadata[FACTS])
    frame = table.to_pandas()
    counts = facts["train_counts"]
    return Predictions(
        task=facts["task"],
        row_N=_tensor(frame["row"]),
        split_N=frame["split"].to_numpy(dtype=str),
        outputs_NC=_matrix(frame, "logit" if facts["task"] in RAW else "kept"),
        targets=_tensor(frame["y"]) if "y" in frame else _matrix(frame, "y"),
        domain_N=torch.from_numpy(pd.Index(facts["domains"]).get_indexer(frame["domain"]).astype(np.int64)),
        domains=tuple(facts["domains"]),
        group=_tensor(frame["group"]) if "group" in frame else _matrix(frame, "group"),
        groups=tuple(facts["groups"]),
        classes=tuple(facts["classes"]),
        train_count_G=None if counts is None else torch.tensor(counts),
        min_group_size=facts["min_group_size"],
        right_N=_tensor(frame["right"]) if "right" in frame else None,
        loss_N=_tensor(frame["loss"]) if "loss" in frame else None,
    )


def _columns(name: str, values: Tensor) -> dict[str, np.ndarray]:
    return {name: values.numpy()} if values.dim() == 1 else _numbered(name, values)


def _numbered(name: str, values: Tensor) -> dict[str, np.ndarray]:
    return {f"{name}_{k}": column.numpy() for k, column in enumerate(values.flatten(1).unbind(1))}


def _tensor(column: pd.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy(copy=True))


def _matrix(frame: pd.DataFrame, name: str) -> Tensor:
    numbered = [column for column in frame.columns if column.rpartition("_")[0] == name]
    return torch.from_numpy(frame[numbered].to_numpy(copy=True))
