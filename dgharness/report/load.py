"""From tracked runs to the records that rules and tables read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dgharness import tracking
from dgharness.errors import UsageError
from dgharness.report.outcomes import Expected
from dgharness.report.table import OWN_SPLIT, Block, block_of
from dgharness.rundir import RunDir
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.tracking.store import sqlite_path

NAMED_BY_A_PATH = ("csv:", "parquet:", "folder:")  # datasets that are the same for every trial seed


@dataclass(frozen=True)
class Runs:
    """Runs to compare, wherever they come from, and what was planned."""

    records: list[RunRecord]
    expected: dict[Block, list[Expected]] | None = None  # None where there was no sweep
    not_applicable: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)  # see NotApplicable
    source: str = ""  # what captions say of runs that were not tracked here


@dataclass(frozen=True, kw_only=True)
class Found(Runs):
    """What an experiment holds."""

    store: tracking.Store


def load_experiment(experiment: str, uri: str | None = None) -> Found:
    """Every training run of an experiment, finished or not, once per configuration."""
    where = tracking.tracking_uri(uri)
    path = sqlite_path(where)
    if path is not None and not path.exists():
        raise UsageError(
            f"there is no MLflow store {where} yet; run dgharness train or sweep first, change to the "
            "directory where that was done, or set MLFLOW_TRACKING_URI"
        )
    store = tracking.open_store(where, experiment)
    records = apart_by_data([record(facts) for facts in tracking.load_records(store)])
    if not records:
        raise UsageError(f"the experiment {experiment!r} holds no training runs yet: {store}")
    blocks = {found.tags.get("dg.config_hash", found.run_id): block_of(found) for found in records}
    plans = [json.loads(text) for text in tracking.group_texts(store, "sweep", "plan.json")]
    expected: dict[Block, list[Expected]] = {}
    for plan in plans:
        # A planned run belongs to the table of its record, or of the plan's other runs if it has none.
        around = {blocks[entry["config_hash"]] for entry in plan if entry["config_hash"] in blocks}
        for entry in plan:
            own = blocks.get(entry["config_hash"])
            for block in [own] if own else around:
                if not entry["not_applicable"]:
                    expected.setdefault(block, []).append(_slot(entry))
    for found in records:
        slot = (found.algorithm, found.targets, found.hparams_seed, found.trial_seed)
        expected.setdefault(block_of(found), []).append(slot)
    return Found(
        records,
        {block: list(dict.fromkeys(slots)) for block, slots in expected.items()} if plans else None,
        {
            (entry["algorithm"], tuple(entry["targets"])): entry["not_applicable"]
            for plan in plans
            for entry in plan
            if entry["not_applicable"]
        },
        store=store,
    )


def apart_by_data(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, with the digest of the data among the settings of those whose tables would mix several.

    Two files may have one name, and one may be edited between two runs.
    """
    seeds_of: dict[Block, dict[str, set[int]]] = {}  # block -> digest -> trial seeds
    for run in records:
        if digest := run.tags.get("dg.data_digest"):
            seeds_of.setdefault(block_of(run), {}).setdefault(digest, set()).add(run.trial_seed)
    mixed = {block for block, found in seeds_of.items() if _mixes(block, list(found.values()))}

    def told(run: RunRecord) -> RunRecord:
        settings = (
            f"{run.tags.get('dg.settings', '')}; data.digest {run.tags.get('dg.data_digest', 'unknown')}"
        )
        return replace(run, tags={**run.tags, "dg.settings": settings.removeprefix("; ")})

    return [told(run) if block_of(run) in mixed else run for run in records]


def _mixes(block: Block, seeds_of_digest: Sequence[set[int]]) -> bool:
    """Whether several digests are several data, and not what every trial seed generates or splits anew."""
    if len(seeds_of_digest) < 2:
        return False
    if block.dataset.startswith(NAMED_BY_A_PATH):
        return True
    if sum(map(len, seeds_of_digest)) > len(set().union(*seeds_of_digest)):
        return True  # one trial had two of them
    return block.protocol not in OWN_SPLIT and any(len(seeds) > 1 for seeds in seeds_of_digest)


def _slot(entry: Mapping[str, Any]) -> Expected:
    return entry["algorithm"], tuple(entry["targets"]), entry["hparams_seed"], entry["trial_seed"]


def record(facts: Mapping[str, Any]) -> RunRecord:
    """One run as the store describes it."""
    tags = facts["tags"]
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
        rules=tuple(filter(None, facts["params"].get("selection.rules", "").split(", "))),
        cost=_cost(facts),
        tags=tags,
        ended=facts["ended"],
    )


def record_of_directory(rundir: RunDir) -> RunRecord:
    """The same of the directory of a finished run, which knows nothing of attempts that failed."""
    rundir.load_final()
    state = rundir.state
    return record(
        {
            "run_id": state.run_id,
            "status": state.status,
            "ended": state.ended,
            "tags": {**state.tags, "dg.run_uid": state.uid, "dg.config_hash": state.config_hash},
            "params": state.params,
            "metrics": {metric.key: metric.value for metric in rundir.journal},
            "evaluations": rundir.evaluations(),
            "failed": [],
        }
    )


def _cost(facts: Mapping[str, Any]) -> dict[str, float]:
    """What the run logged of its cost, and what went into attempts at it that failed or were killed."""
    logged = {
        key.removeprefix("cost/"): value for key, value in facts["metrics"].items() if key.startswith("cost/")
    }
    attempts = facts["failed"]
    lasted = [(end - start) / 1000 for start, end in attempts if end is not None]  # from ms
    failed = {
        "failed_attempts": len(attempts),
        "failed_seconds": sum(lasted),
        "untimed_attempts": len(attempts) - len(lasted),
    }
    return logged | {name: value for name, value in failed.items() if value}
