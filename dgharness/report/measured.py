"""The metrics of one checkpoint as a table: every split, and predictions of several kinds side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import pandas as pd

from dgharness.errors import UsageError, did_you_mean
from dgharness.metrics.every import every_metric
from dgharness.predictions import Predictions
from dgharness.printing import for_json, text_table

Format = Literal["text", "csv", "json"]
By = Literal["all", "domain", "group", "class"]

SUMMARIES = ("all", "average", "worst")  # slices that are not one of many
IN_SHORT = (  # of each domain, group and class
    "acc", "loss", "balanced_acc", "ece", "precision", "recall", "f1", "auroc", "auprc", "ap_macro",
    "mse", "mae", "pearson", "spearman",
)  # fmt: skip
LOGGED_AS = {"acc": "acc_avg", "loss": "nll", "mse": "mse_avg", "mae": "mae_avg"}  # over all examples


def measured(
    found: Mapping[str, Mapping[str, Predictions]],
    official: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Every metric of predictions by split and kind, in the columns of ``every_metric`` and these two.

    ``official`` are the numbers of the dataset's own evaluation, by split and kind as well.
    """
    parts = []
    for split, kinds in found.items():
        for kind, predictions in kinds.items():
            table = every_metric(predictions, bootstrap=bootstrap, seed=seed)
            own = pd.DataFrame(
                {
                    "slice": "all",
                    "name": "",
                    "metric": f"official/{name}",
                    "value": value,
                    "low": math.nan,
                    "high": math.nan,
                    "count": len(predictions),
                }
                for name, value in official.get(split, {}).get(kind, {}).items()
            )
            both = pd.concat([table, own]) if len(own) else table
            parts.append(both.assign(split=split, predictions=kind))
    columns = ["split", "predictions", "slice", "name", "metric", "value", "low", "high", "count"]
    return pd.concat(parts, ignore_index=True)[columns]


def chosen(table: pd.DataFrame, metrics: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """The rows of these metrics and slices, or all of them; an unknown name is a UsageError."""
    for name in by:
        if name not in get_args(By):
            raise UsageError(f"--by {name} is no way to part examples; {did_you_mean(name, get_args(By))}")
    known, kept = set(table["metric"]), table
    also = {logged: name for name, logged in LOGGED_AS.items() if logged not in known and name in known}
    for name in metrics:
        if name not in known | also.keys():
            raise UsageError(f"there is no metric {name!r} here; {did_you_mean(name, known | also.keys())}")
    if metrics:
        kept = kept[kept["metric"].isin([also.get(name, name) for name in metrics])]
    if by:
        wanted = [*by, *(SUMMARIES if "all" in by else ())]
        kept = kept[kept["slice"].isin(wanted)]
    if kept.empty:
        raise UsageError(
            f"{', '.join(metrics)} is not measured by {' or '.join(by)}; leave --by out to see what there is"
        )
    return kept


def as_text(table: pd.DataFrame, in_short: bool = True) -> str:
    """Two tables a split as a terminal shows them: the summaries, and every domain, group and class.

    ``in_short`` leaves out of the latter all but the metrics that fit beside one another.
    """
    parts = []
    for split, of_split in table.groupby("split", sort=False):
        of_all = of_split["slice"].isin(SUMMARIES)
        named = of_split.loc[of_split["slice"] == "worst", "metric"]  # better than the same without a name
        said_again = (of_split["slice"] == "all") & of_split["metric"].isin(named)
        if of_all.any():
            parts.append(_lines(str(split), of_split[of_all & ~said_again]))
        for kind, of_kind in of_split[~of_all].groupby("slice", sort=False):
            measurable = of_kind.groupby("metric")["value"].transform(lambda values: values.notna().any())
            short = of_kind[measurable & of_kind["metric"].isin(IN_SHORT)] if in_short else of_kind
            parts.append(_grid(f"{split} by {kind}", short))
    return "\n".join(parts)


def _lines(title: str, table: pd.DataFrame) -> str:
    """A metric to the line; the kinds of predictions side by side."""
    kinds = list(dict.fromkeys(table["predictions"]))
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in _each(table):
        cells = rows.setdefault((row.metric, row.name), ["", *([""] * len(kinds))])
        cells[kinds.index(row.predictions)] = _shown(row)
        cells[-1] = f"{row.count:.0f}"
    head = [title, "", *(kinds if len(kinds) > 1 else ["value"]), "n"]
    return text_table(head, [[*key, *cells] for key, cells in rows.items()], left=(0, 1)) + "\n"


def _grid(title: str, table: pd.DataFrame) -> str:
    """A slice to the line; the metrics side by side, and beside each metric the kinds of predictions."""
    kinds = list(dict.fromkeys(table["predictions"]))
    columns = list(dict.fromkeys(zip(table["metric"], table["predictions"], strict=True)))
    columns.sort(key=lambda column: list(dict.fromkeys(table["metric"])).index(column[0]))
    rows: dict[str, list[str]] = {}
    for row in _each(table):
        cells = rows.setdefault(row.name, [""] * (len(columns) + 1))
        cells[columns.index((row.metric, row.predictions))] = _shown(row)
        cells[-1] = f"{row.count:.0f}"
    head = [f"{metric}\n{kind}" if len(kinds) > 1 else metric for metric, kind in columns]
    return text_table([title, *head, "n"], [[name, *cells] for name, cells in rows.items()]) + "\n"


def _each(table: pd.DataFrame) -> Iterator[Any]:
    return table.itertuples()


def _shown(row: Any) -> str:
    """A value with its interval, as a person reads them."""
    if math.isnan(row.value):
        return "n/a"
    interval = "" if math.isnan(row.low) else f" [{_number(row.low)}, {_number(row.high)}]"
    return _number(row.value) + interval


def _number(value: float) -> str:
    """Three decimals, or six digits where the number is large.

    >>> _number(0.81249), _number(104.5), _number(1234.5678)
    ('0.812', '104.500', '1234.57')
    """
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.6g}"


def as_json(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The facts and every row; a number that does not exist is null."""
    content = for_json({**facts, "metrics": table.to_dict("records")})
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_csv(table: pd.DataFrame) -> str:
    """Every row with all its digits."""
    return table.to_csv(index=False)
