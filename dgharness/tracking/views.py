"""Views of an experiment under MLflow's button *Views*, so that the usual questions take two clicks.

MLflow keeps a saved view as a tag of the experiment: a name, and the state of the page as compressed JSON.
The form is that of MLflow 3.17; a release whose pages do not know it shows no such views and loses nothing.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgharness.metrics.measure import Measure
from dgharness.rundir import now_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "mlflow.sharedViewState."
TRAINING = "tags.`dg.kind` = 'train'"


def offer_views(opened: MlflowClient, experiment_id: str, rule: str, measure: Measure) -> None:
    """Save the views of results by a selection rule, unless the experiment has them."""
    there = opened.get_experiment(experiment_id).tags
    for name, state in views(rule, measure).items():
        key = f"{TAG}dgharness-{zlib.crc32(name.encode()):08x}"
        if key not in there:
            opened.set_experiment_tag(experiment_id, key, saved(name, state))


def views(rule: str, measure: Measure) -> dict[str, dict[str, Any]]:
    """The state of the page for each view, by the view's name."""
    chosen, of_worst = f"chosen/{rule}/test_{measure.key}", f"chosen/{rule}/test_{measure.worst_group}"
    result_columns = [_metric(chosen), _metric(of_worst)]
    facts = ["algorithm", "target", "hparams_seed", "trial_seed"]
    return {
        f"Algorithms on each domain, by {rule}": _page(
            result_columns,
            {"Result": [_bar(chosen), _bar(of_worst), _bar("cost/seconds")]},
            group_by=["dg.algorithm", "dg.target"],
        ),
        f"Worst group against all, by {rule}": _page(
            [*_tags(facts), *result_columns],
            {"Worst group against all": [_scatter(chosen, of_worst)]},
            sort_by=of_worst,
        ),
        "What each run was trained on": _page(
            ["attributes.`Dataset`", *_tags([*facts, "preset", "weights", "split_digest", "deviations"])],
            sort_by=chosen,
        ),
        "Learning curves by algorithm": _page(
            _tags(facts),
            {
                "Curves": [
                    _line(f"val/{measure.key}_domain_mean"),
                    _line("train/risk"),
                    _line("train/penalty"),
                ]
            },
            group_by=["dg.algorithm"],
        ),
    }


def saved(name: str, state: Mapping[str, Any]) -> str:
    """A view as the tag holds it."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = now_ms()
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _page(
    columns: Sequence[str],
    charts: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    group_by: Sequence[str] = (),
    sort_by: str = "",
) -> dict[str, Any]:
    keys = [{"mode": "tag", "groupByData": tag} for tag in group_by]
    state: dict[str, Any] = {
        "searchFilter": TRAINING,
        # By their time, runs would stand folded up under their sweep.
        "orderByKey": _metric(sort_by) if sort_by else "attributes.start_time",
        "orderByAsc": not sort_by,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,  # else MLflow puts its own sections first
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys} if keys else None,
        "groupsExpanded": {},
    }
    if charts:
        # Named otherwise than the sections of metrics, to which MLflow adds charts of its own.
        state["compareRunSections"] = [
            {"uuid": section, "name": section, "display": True, "isReordered": False} for section in charts
        ]
        state["compareRunCharts"] = [
            {
                "uuid": f"{section}-{number}",
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "runsCountToCompare": 100,
                **chart,
            }
            for section, drawn in charts.items()
            for number, chart in enumerate(drawn)
        ]
    return state


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _scatter(across: str, up: str) -> dict[str, Any]:
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", across), ("yaxis", up))}
    return {"type": "SCATTER", **axes}


def _metric(key: str) -> str:
    return f"metrics.`{key}`"


def _tags(names: Sequence[str]) -> list[str]:
    return [f"tags.`dg.{name}`" for name in names]
