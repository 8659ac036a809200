"""What is wrong with a dataset: a doctor's look at its files, its labels and its domains.

    from dgharness.data.check import counts, findings
    for finding in findings(dataset):
        print(finding)

Looked for are files that cannot be read, damaged text, labels, domains and inputs that are unknown or NaN,
the same content in several domains or splits (leakage), classes that a domain or a split lacks, and groups
without examples. Nothing is mended, and which of it matters is for the reader to say.

Shapes: M rows of the manifest, N of a chunk, B bytes, D domains, C classes, G groups.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dgharness.data.contents import contents
from dgharness.data.dataset import Dataset
from dgharness.data.groups import OVERLAP, metric_groups
from dgharness.data.protocols import OWN_SPLIT

FEW = 3  # examples of each kind that are shown
UNLABELED = "unlabeled"
NEEDED = ("train", "val", "test")  # a dataset that is trained by its own split has examples of each
# What stands for text that could not be decoded: U+FFFD, halves of characters, NUL, and control characters
# that come of reading Windows' signs as Latin-1.
DAMAGED = re.compile("[\ufffd\ud800-\udfff\x00\x80-\x9f]")


@dataclass(frozen=True)
class Finding:
    """One kind of fault, how often it occurs, and a few examples with their rows of the source (from 0)."""

    kind: str
    count: int
    examples: tuple[str, ...]
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        more = self.count - len(self.examples)
        return f"{self.kind}: {self.count}: {'; '.join(self.examples)}{f'; and {more} more' if more else ''}"


def findings(
    dataset: Dataset,
    root: Path | None = None,
    complete: Mapping[str, int] | None = None,
    classes: Mapping[str, Mapping[str, int]] | None = None,
    absent: Collection[str] = (),
) -> list[Finding]:
    """Everything that was found, at most one finding of each kind.

    ``root`` is what the manifest's paths are relative to, where the dataset does not say so itself,
    ``complete`` the number of examples that each domain should have, ``classes`` that of each class in a
    domain, and ``absent`` the groups of the metrics that should have none.
    """
    content = contents(dataset, root)
    found = [
        _unreadable(dataset, content.unreadable),
        *_differing_counts(dataset, complete or {}, classes or {}),
        *_damaged_text(dataset),
        *_unknown(dataset),
        _of_rows(dataset, "inputs that are NaN or infinite", content.not_finite_M),
        *_leaks(dataset, content.hash_M),
        *_missing_classes(dataset),
        *_single(dataset, complete or {}),
        *_empty(dataset, absent),
    ]
    return [finding for finding in found if finding.count]


def _unreadable(dataset: Dataset, later: Mapping[str, str]) -> Finding:
    """Rows that were left out when the dataset was loaded, and paths that nothing is found at any more."""
    faults = dict(dataset.unreadable)
    if later:
        path_M = dataset.manifest["path"]
        for row in np.flatnonzero(path_M.isin(list(later))).tolist():
            faults[dataset.source_row(row)] = f"{path_M.iloc[row]} ({later[path_M.iloc[row]]})"
    shown = sorted(faults)[:FEW]
    return Finding(
        "files that cannot be read", len(faults), tuple(faults[row] for row in shown), tuple(shown)
    )


def counts(dataset: Dataset) -> pd.DataFrame:
    """Examples by ``domain``, ``split`` and class (``y``), as far as there are such columns; none of 0."""
    columns = ["domain", *(["split"] if "split" in dataset.manifest else [])]
    if _has_classes(dataset):
        columns.append("y")
    table = dataset.manifest.groupby(columns, observed=True, dropna=False).size()
    return table[table > 0].rename("examples").reset_index()


# --- what it has too many or too few of ------------------------------------------------------------


def _differing_counts(
    dataset: Dataset, complete: Mapping[str, int], classes: Mapping[str, Mapping[str, int]]
) -> Iterable[Finding]:
    """A single domain that is none of the complete dataset's is compared with all of them together."""
    one_for_all = len(dataset.domains) == 1 and dataset.domains[0] not in complete
    of_domain, of_class = Counter[str](), Counter[tuple[str, str]]()
    for name, count in complete.items():
        of_domain[dataset.domains[0] if one_for_all else name] += count
    for name, counted in classes.items():
        for label, count in counted.items():
            of_class[dataset.domains[0] if one_for_all else name, label] += count
    if of_domain:
        found = dataset.manifest["domain"].value_counts()
        differing = [
            f"domain {name} has {count} examples and should have {should}"
            for name, count, should in _unequal({str(name): n for name, n in found.items()}, of_domain)
        ]
        yield _finding("domains that differ from the complete dataset", differing)
    if of_class:
        table = dataset.manifest.groupby(["domain", "y"], observed=True).size().reset_index()
        by_class = {(str(name), str(label)): int(n) for name, label, n in table.itertuples(index=False)}
        differing = [
            f"domain {name} has {count} {label} and should have {should}"
            for (name, label), count, should in _unequal(by_class, of_class)
        ]
        yield _finding("classes that differ from the complete dataset", differing)


def _unequal(found: Mapping[Any, int], should: Mapping[Any, int]) -> Iterable[tuple[Any, int, int]]:
    for key in dict.fromkeys([*should, *found]):
        if found.get(key, 0) != should.get(key, 0):
            yield key, found.get(key, 0), should.get(key, 0)


def _missing_classes(dataset: Dataset) -> Iterable[Finding]:
    if not _has_classes(dataset):
        return
    manifest = dataset.manifest
    class_M, classes = manifest["y"].cat.codes.to_numpy(), manifest["y"].cat.categories
    for column in ("domain", "split"):
        if column not in manifest:
            continue
        code_M, names = manifest[column].cat.codes.to_numpy(), manifest[column].cat.categories
        known_M = (code_M >= 0) & (class_M >= 0)
        flat_M = code_M[known_M].astype(np.int64) * len(classes) + class_M[known_M]
        count_DC = np.bincount(flat_M, minlength=len(names) * len(classes)).reshape(len(names), len(classes))
        lacking = [
            f"{column} {names[of]} has no {classes[label]}"
            for of, label in zip(
                *np.nonzero((count_DC == 0) & (count_DC.sum(1, keepdims=True) > 0)), strict=True
            )
        ]
        yield _finding(f"classes missing in a {column}", lacking)


def _single(dataset: Dataset, complete: Mapping[str, int]) -> Iterable[Finding]:
    """A class that there is no other of, and a domain that cannot be held out since it is the only one."""
    if _has_classes(dataset):
        yield _finding("a single class", found if len(found := _present(dataset, "y")) == 1 else [])
    if dataset.defaults.protocol not in OWN_SPLIT and not complete:
        yield _finding("a single domain", found if len(found := _present(dataset, "domain")) == 1 else [])


def _present(dataset: Dataset, column: str) -> list[str]:
    return [str(level) for level in dataset.manifest[column].dropna().unique()]


def _empty(dataset: Dataset, absent: Collection[str]) -> Iterable[Finding]:
    """Domains, splits and groups; the groups that algorithms see are asked for in the training split."""
    manifest = dataset.manifest
    without = manifest["domain"].value_counts(sort=False)
    yield _finding("domains without examples", [str(name) for name in without.index[without == 0]])
    if "split" in manifest and dataset.defaults.protocol in OWN_SPLIT:
        yield _of_rows(dataset, "rows without a split", manifest["split"].isna())
        present = set(manifest["split"].dropna())
        yield _finding("splits without examples", [name for name in NEEDED if name not in present])
    trained = manifest[manifest["split"] == "train"] if "split" in manifest else manifest
    for kind, columns, rows in (
        ("metrics", dataset.groups, manifest),
        ("training", dataset.train_groups, trained),
    ):
        groups = metric_groups(rows, columns)
        empty = [groups.names[group] for group in torch.nonzero(groups.counts_G == 0).flatten().tolist()]
        if tuple(columns) != ("domain",):
            unexpected = [name for name in empty if kind == "training" or name not in absent]
            yield _finding(f"groups of {kind} without examples", unexpected)


# --- what is unknown or damaged --------------------------------------------------------------------


def _unknown(dataset: Dataset) -> Iterable[Finding]:
    """Rows without a label, a domain, or a value of a column that groups are made of; and NaN in numbers."""
    manifest = dataset.manifest
    labeled_M = (
        (manifest["split"] != UNLABELED).to_numpy() if "split" in manifest else np.ones(len(manifest), bool)
    )
    target_M = dataset.targets_M
    if target_M.is_floating_point():
        no_label_M = target_M.isnan().flatten(1).all(1) if target_M.dim() > 1 else target_M.isnan()
    else:
        no_label_M = target_M < 0 if target_M.dim() == 1 else torch.zeros(len(target_M), dtype=torch.bool)
    yield _of_rows(dataset, "rows without a known label", no_label_M.numpy() & labeled_M)
    grouped = {part for name in (*dataset.groups, *dataset.train_groups) for part in name.split(OVERLAP)}
    for name in manifest.columns.drop("y"):
        column = manifest[name]
        if pd.api.types.is_float_dtype(column.dtype):
            yield _of_rows(dataset, f"rows whose {name} is NaN or infinite", ~np.isfinite(column.to_numpy()))
        elif name == "domain" or name in grouped:
            yield _of_rows(dataset, f"rows without a known {name}", column.isna().to_numpy() & labeled_M)


def _damaged_text(dataset: Dataset) -> Iterable[Finding]:
    """Encoding errors, in the names of categories, in paths and in texts; and names that only look alike."""
    manifest = dataset.manifest
    for name in manifest.columns:
        column = manifest[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            levels = [str(level) for level in column.cat.categories]
            damaged = [level for level in levels if DAMAGED.search(level)]
            rows = [int((column == level).argmax()) for level in damaged[:FEW]]
            shown = [f"{level!a} in {dataset.where(row)}" for level, row in zip(damaged, rows, strict=False)]
            of_source = tuple(map(dataset.source_row, rows))
            yield Finding(f"names of {name} with encoding errors", len(damaged), tuple(shown), of_source)
            yield _finding(f"names of {name} that look alike", _alike(levels))
        elif not pd.api.types.is_numeric_dtype(column.dtype):
            yield _of_rows(dataset, f"encoding errors in {name}", _damaged(column))
    if (text_M := getattr(dataset.reader, "text_M", None)) is not None:
        yield _of_rows(dataset, "encoding errors in texts", _damaged(pd.Series(text_M)))


def _damaged(column: pd.Series) -> np.ndarray:
    return np.fromiter((bool(DAMAGED.search(str(text))) for text in column), dtype=bool, count=len(column))


def _alike(levels: Sequence[str]) -> list[str]:
    """Names that differ only in how their accents are written or in blanks at their ends."""
    plain: dict[str, str] = {}
    alike = []
    for level in levels:
        first = plain.setdefault(unicodedata.normalize("NFC", level).strip(), level)
        if first != level:
            alike.append(f"{first!a} and {level!a}")
    return alike


# --- leakage ---------------------------------------------------------------------------------------


def _leaks(dataset: Dataset, hash_M: np.ndarray) -> Iterable[Finding]:
    """Rows of the same content that lie in several domains, and in several splits.

    A row is counted for its content's first row in another domain or split.
    """
    for column in ("domain", "split"):
        if column not in dataset.manifest:
            continue
        codes = dataset.manifest[column].cat.codes.to_numpy()
        table = pd.DataFrame({"content": hash_M, "of": codes, "row": np.arange(len(codes))})
        table = table[(table["of"] >= 0) & (table["content"] != 0)]
        firsts = table.drop_duplicates(["content", "of"])
        firsts = firsts[firsts.duplicated("content", keep=False)]
        original = firsts.groupby("content", sort=False)["row"].transform("first").to_numpy()
        copies_M = firsts["row"].to_numpy() != original
        pairs = list(zip(original[copies_M], firsts["row"].to_numpy()[copies_M], strict=True))
        shown = [
            f"{_row(dataset, one, column)} and {_row(dataset, other, column)}" for one, other in pairs[:FEW]
        ]
        rows = tuple(dataset.source_row(int(row)) for pair in pairs[:FEW] for row in pair)
        yield Finding(f"duplicates across {column}s", len(pairs), tuple(shown), rows)


# --- how it is said --------------------------------------------------------------------------------


def _row(dataset: Dataset, row: int, column: str = "") -> str:
    about = [str(dataset.manifest[name].iloc[row]) for name in ("path", column) if name in dataset.manifest]
    return dataset.where(row) + (f" ({', '.join(about)})" if about else "")


def _of_rows(dataset: Dataset, kind: str, wrong_M: Any) -> Finding:
    rows = np.flatnonzero(wrong_M)
    shown = tuple(_row(dataset, int(row)) for row in rows[:FEW])
    return Finding(kind, len(rows), shown, tuple(dataset.source_row(int(row)) for row in rows[:FEW]))


def _finding(kind: str, examples: Sequence[str]) -> Finding:
    return Finding(kind, len(examples), tuple(examples[:FEW]))


def _has_classes(dataset: Dataset) -> bool:
    return dataset.targets is None and isinstance(dataset.manifest["y"].dtype, pd.CategoricalDtype)
