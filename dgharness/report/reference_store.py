"""Earlier runs beside those of an experiment, by the predictions that they have stored.

A directory of run directories is a reference store. A run of it joins a comparison where all that decides
what is compared is found equal: dataset, protocol, targets and trial, and then the preset, the weights with
their SHA-256, the digests of data and split, and the settings that runs of one table share. Its numbers are
computed again from its predictions and have to be those that it logged. It is shown as "NAME (reference)".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgharness.errors import UsageError
from dgharness.metrics.regression import score_regression
from dgharness.metrics.scores import score, score_examples
from dgharness.predictions import Predictions, read_predictions
from dgharness.report.load import Runs, record_of_directory
from dgharness.report.table import block_of
from dgharness.rundir import RunDir, runs
from dgharness.selection.rule import Evaluation, RunRecord

EQUAL = {  # tag -> what it is called
    "dg.preset": "preset",
    "dg.weights": "weights",
    "dg.weights_sha": "SHA-256 of the weights",
    "dg.model": "model",
    "dg.tuning": "tuning",
    "dg.data_digest": "digest of the data",
    "dg.split_digest": "split digest",
}
SAME = 1e-6  # outputs are stored in single precision


def join(found: Sequence[Runs], directory: Path) -> tuple[list[Runs], list[str]]:
    """The comparisons with the runs of a reference store that may join them, and why others may not, a
    sentence for each reason.

    A directory without runs is a UsageError.
    """
    earlier = list(runs(directory))
    if not earlier:
        raise UsageError(
            f"{directory} holds no runs; name a directory of run directories, such as runs/ of an earlier "
            "sweep, or --against reference or every-reference for published numbers"
        )
    joined = list(found)
    refused: dict[str, list[str]] = {}  # why -> run ids
    for rundir in earlier:
        try:
            run = _record(rundir)
            place = _place(run, found)
            run = _measured(run, rundir)
        except _Refused as error:
            refused.setdefault(str(error), []).append(rundir.path.name)
            continue
        joined[place] = _with(joined[place], run)
    sentences = []
    for why, (first, *more) in refused.items():
        others = f" and {len(more)} more do not join" if more else " does not join"
        sentences.append(f"{directory / first}{others} the comparison: {why}")
    return joined, sentences


def measured_again(found: Predictions) -> dict[str, float]:
    """What the run logged of these predictions, under the same keys: ``split/metric`` and so on."""
    metrics: dict[str, float] = {}
    for split in dict.fromkeys(found.split_N.tolist()):
        part = found.of(split)
        slices = (part.domain_N, part.domains, part.group, part.groups)
        least = part.min_group_size
        if part.right_N is not None and part.loss_N is not None:
            metrics |= score_examples(part.right_N, part.loss_N, *slices, min_group_size=least).flat(split)
        elif part.task == "regression":
            scores = score_regression(part.outputs_NC, part.targets, *slices, min_group_size=least)
            metrics |= scores.flat(split)
        else:
            counts = part.train_count_G if part.group.dim() == 1 else None
            more: dict[str, Any] = {"class_names": part.classes, "train_count_G": counts}
            scored = score(part.outputs_NC, part.targets, *slices, min_group_size=least, **more)
            metrics |= scored.flat(split)
    return metrics


class _Refused(Exception):
    """Why a run may not join."""


def _record(rundir: RunDir) -> RunRecord:
    """The record of a run that has finished and says what it is."""
    state = rundir.state
    if state.status != "FINISHED":
        raise _Refused(f"it is {state.status}")
    try:
        return record_of_directory(rundir)
    except KeyError as missing:
        raise _Refused(f"it does not say its {missing}") from None


def _place(run: RunRecord, found: Sequence[Runs]) -> int:
    """The number of the comparison that the run may join."""
    nearest: list[str] | None = None
    for number, each in enumerate(found):
        if any(other.tags.get("dg.run_uid") == run.tags["dg.run_uid"] for other in each.records):
            raise _Refused("it is in it already")
        for other in each.records:
            if _column(other) == _column(run):
                differing = _differences(run, other)
                if not differing:
                    return number
                nearest = differing if nearest is None or len(differing) < len(nearest) else nearest
    if nearest is None:
        raise _Refused(
            f"it is on {run.dataset}, {run.protocol}, {'+'.join(run.targets)}, trial {run.trial_seed}, and "
            "no run of the comparison is"
        )
    raise _Refused("; ".join(nearest))


def _column(run: RunRecord) -> tuple[object, ...]:
    return run.dataset, run.protocol, frozenset(run.targets), run.trial_seed


def _differences(run: RunRecord, other: RunRecord) -> list[str]:
    """What has to be equal and is not, each with both values."""
    pairs = [(name, run.tags.get(tag, "none"), other.tags.get(tag, "none")) for tag, name in EQUAL.items()]
    own, theirs = (_settings(each) for each in (run, other))
    pairs += [(key, own.get(key, "unset"), theirs.get(key, "unset")) for key in sorted(own | theirs)]
    return [f"{name} {one} in place of {another}" for name, one, another in pairs if one != another]


def _settings(run: RunRecord) -> dict[str, str]:
    """The settings that runs of one table share; the digest of the data is compared by itself."""
    items = (item.partition(" ") for item in block_of(run).settings.split("; "))
    return {key: value for key, _, value in items if key and key != "data.digest"}


def _measured(run: RunRecord, rundir: RunDir) -> RunRecord:
    """The run with the metrics of its predictions in place of those that it logged, which are the same."""
    again: dict[int, dict[str, float]] = {}
    for path in sorted(rundir.path.glob("predictions-*.parquet")):
        try:
            again[int(path.stem.partition("-")[2])] = measured_again(read_predictions(path))
        except UsageError as why:
            raise _Refused(str(why)) from None
    if not again:
        raise _Refused("it has stored no predictions")
    for evaluation in run.evaluations:
        for key, value in again.get(evaluation.step, {}).items():
            logged = evaluation.metrics.get(key, value)
            if not (math.isclose(value, logged, abs_tol=SAME) or (math.isnan(value) and math.isnan(logged))):
                raise _Refused(
                    f"its predictions of step {evaluation.step} make {key} {value:g}, and it logged "
                    f"{logged:g}"
                )
    return replace(
        run,
        algorithm=f"{run.algorithm} (reference)",
        evaluations=tuple(
            Evaluation(e.step, {**e.metrics, **again.get(e.step, {})}) for e in run.evaluations
        ),
    )


def _with(each: Runs, run: RunRecord) -> Runs:
    """A comparison with one run more, in the table of the runs that it was found equal to."""
    peer = next(o for o in each.records if _column(o) == _column(run) and not _differences(run, o))
    run = replace(run, tags={**run.tags, "dg.settings": peer.tags.get("dg.settings", "")})
    expected = each.expected
    if expected is not None:
        slot = (run.algorithm, run.targets, run.hparams_seed, run.trial_seed)
        expected = {**expected, block_of(run): [*expected.get(block_of(run), ()), slot]}
    return replace(each, records=[*each.records, run], expected=expected)
