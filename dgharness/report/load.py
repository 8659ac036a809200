"""From tracked runs to the records that rules and tables read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dgharness import tracking
from dgharness.errors import UsageError
from dgharness.selection.rule import Evaluation, RunRecord


def load_experiment(experiment: str, uri: str | None = None) -> list[RunRecord]:
    """Every training run of an experiment, finished or not, once per configuration."""
    store = tracking.open_store(tracking.tracking_uri(uri), experiment)
    found = [record(facts) for facts in tracking.load_records(store)]
    if not found:
        raise UsageError(f"the experiment {experiment!r} holds no training runs yet: {store}")
    return found


def record(facts: Mapping[str, Any]) -> RunRecord:
    """One run as the store describes it."""
    tags, metrics = facts["tags"], facts["metrics"]
    return RunRecord(
        run_id=facts["run_id"] or facts["mlflow_run_id"],
        algorithm=tags["dg.algorithm"],
        dataset=tags["dg.dataset"],
        protocol=tags["dg.protocol"],
        targets=tuple(json.loads(tags["dg.targets"])),
        hparams_seed=int(tags["dg.hparams_seed"]),
        trial_seed=int(tags["dg.trial_seed"]),
        status=facts["status"],
        evaluations=tuple(Evaluation(e["step"], e["metrics"]) for e in facts["evaluations"] or ()),
        weights=tags.get("dg.weights", "scratch"),
        preset=tags.get("dg.preset", ""),
        error=tags.get("dg.error", ""),
        tta=tags.get("dg.tta", "none"),
        averaging=tags.get("dg.averaging", "none"),
        cost={key.removeprefix("cost/"): value for key, value in metrics.items() if key.startswith("cost/")},
        tags=tags,
    )
