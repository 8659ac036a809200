"""``dgharness datasets check``: loads a dataset, counts its examples, and says what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgharness import registry
from dgharness.config import DataConfig, RunConfig, compose
from dgharness.data.check import Finding, counts, findings
from dgharness.data.text import HASHING
from dgharness.errors import UsageError
from dgharness.hparams import checked
from dgharness.training.prepare import load_dataset

if TYPE_CHECKING:
    import pandas as pd

LINES, CLASSES = 40, 12  # that are printed; --json has them all
FOUND, NOT_LOADED = 1, 2  # exit codes


def check_dataset(
    name: str, root: str, sets: Sequence[str], as_json: bool, plugins: Sequence[str] = ()
) -> None:
    """Print the counts and the findings; exit with 1 if there are any, with 2 if it cannot be loaded."""
    for plugin in plugins:
        registry.add_plugin(plugin)
    spec = registry.load("datasets", registry.split_argument("datasets", name)[0])
    config = looked_at(name, root, sets, skip_unreadable=True)  # so that all of them are found at once
    try:
        dataset = load_dataset(config.data, config.execution.data_root, config.trial_seed)
    except UsageError as error:
        # Of the two halves of the sentence this command is itself the advice of the second.
        _not_loaded(name, str(error).partition("; dgharness datasets check ")[0], spec.layout, as_json)
        sys.exit(NOT_LOADED)
    found = findings(dataset, complete=spec.counts, classes=spec.class_counts, absent=spec.absent_groups)
    table = counts(dataset)
    if as_json:
        record = {
            "name": dataset.name,
            "loaded": True,
            "examples": len(dataset.manifest),
            "counts": json.loads(table.to_json(orient="records")),
            "complete": dict(spec.counts),
            "findings": [dataclasses.asdict(finding) for finding in found],
        }
        print(json.dumps(record, indent=1))
    else:
        print(f"{dataset.name}: {len(dataset.manifest)} examples")
        print("\n".join(_count_lines(table)))
        print("\n".join(_finding_lines(found, spec.counts)))
    if found:
        sys.exit(FOUND)


def looked_at(name: str, root: str, sets: Sequence[str], **instead: Any) -> RunConfig:
    """The configuration of a dataset that nobody trains on, with ``instead`` of the defaults of its options.

    Texts are not going to be tokenised, so that no tokenizer has to be there.
    """
    config = compose(sets=sets, flags={"data": {"name": name}, "execution": {"data_root": root}})
    spec = registry.load("datasets", registry.split_argument("datasets", name)[0])
    known = {
        key: value
        for key, value in {"tokenizer": HASHING, **instead}.items()
        if key in spec.options.model_fields
    }
    options = known | config.data.options
    checked(spec.options, options, "data")
    return config.model_copy(update={"data": DataConfig(name=name, **options)})


def _not_loaded(name: str, why: str, layout: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "loaded": False, "error": why, "layout": layout}, indent=1))
        return
    print(f"{name} cannot be loaded: {why}")
    if layout:
        print(f"expected\n{textwrap.indent(textwrap.dedent(layout), '  ')}")


def _count_lines(table: pd.DataFrame) -> list[str]:
    """A line for every domain and split: how many examples, and of which class."""
    keys = [column for column in ("domain", "split") if column in table]
    lines = []
    for of, part in table.groupby(keys, observed=True, dropna=False, sort=False):
        classes = (
            [f"{row['y']} {row['examples']}" for _, row in part.head(CLASSES).iterrows()]
            if "y" in part
            else []
        )
        more = [f"and {len(part) - CLASSES} classes more"] if "y" in part and len(part) > CLASSES else []
        label = " ".join(str(key) for key in of)
        lines.append((label, int(part["examples"].sum()), " · ".join(classes + more)))
    width, digits = max(len(line[0]) for line in lines), max(len(str(line[1])) for line in lines)
    shown = [
        f"  {label:<{width}}  {total:>{digits}}  {classes}".rstrip()
        for label, total, classes in lines[:LINES]
    ]
    return shown + ([f"  and {len(lines) - LINES} more; --json has them all"] if len(lines) > LINES else [])


def _finding_lines(found: Sequence[Finding], complete: Mapping[str, int]) -> list[str]:
    if not found:
        return ["nothing is wrong with it" + (", and it is complete" if complete else "")]
    lines: list[Any] = []
    for finding in found:
        more = finding.count - len(finding.examples)
        lines += [f"{finding.kind}: {finding.count}", *(f"  {example}" for example in finding.examples)]
        lines += [f"  and {more} more"] if more else []
    return lines
