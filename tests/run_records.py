"""Runs as a report reads them, without any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgharness.selection.rule import Evaluation, RunRecord


def finished(
    algorithm: str, dataset: str, target: str, trial: int, metrics: Mapping[str, float], **fields: Any
) -> RunRecord:
    """A finished run of the default draw with one checkpoint; ``fields`` are set as they are given."""
    facts = {
        "run_id": f"{dataset}-{algorithm}-{target}-{trial}",
        "algorithm": algorithm,
        "dataset": dataset,
        "protocol": "leave-one-domain-out",
        "targets": (target,),
        "hparams_seed": 0,
        "trial_seed": trial,
        "status": "FINISHED",
        "evaluations": (Evaluation(9, metrics),),
    }
    return RunRecord(**(facts | fields))
