"""``dgharness diagnose``: what lies behind the numbers of tracked runs, printed, drawn and tracked.

A diagnosis is a function that gives a ``Diagnosis``. Those in ``OVER_RUNS`` are given the runs of an
experiment on the same data and split; those in ``OF_A_RUN`` one trained network with its data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgharness import registry, tracking
from dgharness.commands.reporting import BASELINE, baseline_among
from dgharness.config import SHOWN
from dgharness.diagnostics.accuracy_on_the_line import accuracy_on_the_line
from dgharness.diagnostics.agreement_line import agreement_on_the_line
from dgharness.diagnostics.by_group import by_group
from dgharness.diagnostics.calibration import calibration
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.domain_predictability import domain_predictability
from dgharness.diagnostics.effective_robustness import effective_robustness
from dgharness.diagnostics.feature_distances import domain_distances
from dgharness.diagnostics.id_ood_line import id_ood_line
from dgharness.diagnostics.label_shift import label_shift
from dgharness.diagnostics.majority_minority import majority_minority
from dgharness.diagnostics.render import as_csv, as_json, as_text
from dgharness.diagnostics.sharpness import sharpness
from dgharness.diagnostics.spurious import spurious_strength
from dgharness.diagnostics.style import style
from dgharness.diagnostics.tracked import TrackedRuns
from dgharness.diagnostics.trained import Trained
from dgharness.errors import NotApplicable, UsageError, did_you_mean
from dgharness.figures import as_png
from dgharness.names import listed, slug
from dgharness.predictions import Predictions, read_predictions
from dgharness.report.load import load_experiment, record_of_directory
from dgharness.report.table import label_of
from dgharness.rundir import RunDir
from dgharness.selection.rule import RunRecord
from dgharness.training.inspect import inspected
from dgharness.training.progress import to_stderr

if TYPE_CHECKING:
    from dgharness.selection.rule import Rule

OVER_RUNS: dict[str, Callable[[TrackedRuns], Diagnosis]] = {
    "id-ood-line": id_ood_line,
    "by-group": by_group,
    "calibration": calibration,
    "agreement": agreement_on_the_line,
    "majority-minority": majority_minority,
    "effective-robustness": effective_robustness,
    "accuracy-on-the-line": accuracy_on_the_line,
}
OF_A_RUN: dict[str, Callable[[Trained], Diagnosis]] = {
    "spurious-strength": spurious_strength,
    "domain-predictability": domain_predictability,
    "domain-distances": domain_distances,
    "label-shift": label_shift,
    "style": style,
    "sharpness": sharpness,
}
ALSO_OF_A_RUN = ("by-group", "calibration")  # of OVER_RUNS, those that one run is enough for


@dataclass(frozen=True)
class Asked:
    """What ``diagnose`` is to find out."""

    what: str  # an MLflow experiment, or the id of a run
    only: Sequence[str] | None = None  # None: all that are possible
    rule: str = ""
    baseline: str = BASELINE
    x: str = ""
    y: str = ""
    checkpoints: Literal["scored", "chosen"] = "scored"
    output: str = "runs"
    data_root: str = ""
    plugins: Sequence[str] = ()
    to: Path | None = None
    as_json: bool = False


@dataclass(frozen=True)
class Part:
    """What is diagnosed together, and the store that keeps the diagnoses."""

    name: str  # tells it from the other parts; empty if it is the only one
    title: str
    diagnose: Mapping[str, Callable[[], Diagnosis]]
    store: tracking.Store | None
    tags: Mapping[str, str]


def run_diagnose(asked: Asked) -> None:
    """Print every diagnosis, write it to ``to`` if that is given, and track it."""
    for plugin in asked.plugins:
        registry.add_plugin(plugin)
    of_a_run = (Path(asked.output) / asked.what / "run.json").is_file()
    names = _names(asked.only, of_a_run)
    parts = [_run(asked, names)] if of_a_run else list(_experiment(asked, names))
    contents, reasons = [], []
    for part in parts:
        for name, diagnose in part.diagnose.items():
            try:
                found = diagnose()
            except UsageError as reason:
                reasons.append(f"{name} of {part.title}: {reason}")
                to_stderr(f"left out: {reasons[-1]}")
                continue
            png = as_png(found.figure()) if found.figure else None
            contents.append(as_json(found, part.title))
            if not asked.as_json:
                print(as_text(found, part.title))
            if asked.to:
                _write(found, png, asked.to, "-".join(filter(None, (name, part.name))))
            _track(found, png, part)
    if asked.as_json:
        print("[" + ",\n".join(contents) + "]")
    if not contents:
        raise UsageError(f"nothing could be diagnosed; {reasons[0]}")


def _names(only: Sequence[str] | None, of_a_run: bool) -> list[str]:
    """The diagnoses to make, in the order of the dictionaries."""
    if only is not None and not only:
        raise UsageError("--only names no diagnosis; name one, as in --only by-group, or leave it out")
    possible = [*ALSO_OF_A_RUN, *OF_A_RUN] if of_a_run else [*OVER_RUNS]
    known = [*OVER_RUNS, *OF_A_RUN]
    for name in only or ():
        if name not in known:
            raise UsageError(f"there is no diagnosis {name!r}; {did_you_mean(name, known)}")
        if name not in possible:
            other = "several runs: name an experiment" if of_a_run else "one run: give its id"
            raise UsageError(f"{name} is a diagnosis of {other}, or leave it out of --only")
    return [name for name in possible if name in (only or possible)]


def _experiment(asked: Asked, names: Sequence[str]) -> Iterator[Part]:
    """The finished runs of an experiment, those on the same data and split together."""
    try:
        found = load_experiment(asked.what)
    except UsageError as error:
        raise UsageError(
            f"{asked.what!r} is neither a run in {asked.output} nor an experiment: {error}"
        ) from None
    finished = [run for run in found.records if run.status == "FINISHED"]
    if not finished:
        raise UsageError(f"the experiment {asked.what!r} holds no finished runs yet")
    artifacts = tracking.Artifacts(found.store)

    def predictions(run: RunRecord, step: int) -> Predictions:
        path = artifacts.path(run.tags.get("dg.run_uid", ""), f"predictions-{step}.parquet")
        return _read(path, run, step)

    rule, baseline = _rule(asked, finished), baseline_among(asked.baseline, {*map(label_of, finished)})
    finished.sort(key=lambda run: _order(run, baseline))
    splits: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in finished:
        splits.setdefault(_split_of(run), []).append(run)
    for number, runs in enumerate(splits.values(), 1):
        one = runs[0]
        targets = listed(one.targets, "+")
        title = f"{one.dataset}, {one.protocol}" + (f" → {targets}" if one.targets else "")
        tracked = TrackedRuns(
            title,
            tuple(runs),
            rule,
            label_of,
            predictions,
            baseline,
            asked.x,
            asked.y,
            asked.checkpoints,
        )
        yield Part(
            name=f"{number}-{slug(targets)}" if len(splits) > 1 else "",
            title=title,
            diagnose={name: partial(OVER_RUNS[name], tracked) for name in names},
            store=found.store,
            tags={"dg.dataset": one.dataset, "dg.protocol": one.protocol, "dg.target": targets},
        )


def _run(asked: Asked, names: Sequence[str]) -> Part:
    """One run, as it lies in its directory."""
    rundir = RunDir.open(Path(asked.output), asked.what)
    state = rundir.state
    if asked.baseline != BASELINE:
        raise UsageError("--baseline is for the runs of an experiment; leave it out for one run")
    if state.status != "FINISHED":
        raise UsageError(f"run {state.run_id} is {state.status}; diagnose needs one that has finished")
    run = record_of_directory(rundir)

    def predictions(run: RunRecord, step: int) -> Predictions:
        path = rundir.path / f"predictions-{step}.parquet"
        return _read(path if path.is_file() else None, run, step)

    title = f"run {state.run_id} ({state.name})"
    rule = _rule(asked, [run])
    tracked = TrackedRuns(title, (run,), rule, label_of, predictions, asked.baseline)

    @cache
    def trained() -> Trained:
        return inspected(rundir.path, checkpoint_name=rule.name, data_root=asked.data_root)

    try:
        store = tracking.open_store(tracking.tracking_uri(), state.experiment)
    except UsageError as error:
        to_stderr(f"the diagnoses are not tracked: {error}")
        store = None
    return Part(
        name="",
        title=title,
        diagnose={
            name: partial(OVER_RUNS[name], tracked) if name in OVER_RUNS else _later(OF_A_RUN[name], trained)
            for name in names
        },
        store=store,
        tags={
            key: state.tags[key] for key in ("dg.dataset", "dg.protocol", "dg.target") if key in state.tags
        },
    )


def _later(
    diagnose: Callable[[Trained], Diagnosis], trained: Callable[[], Trained]
) -> Callable[[], Diagnosis]:
    """The network is loaded when the first diagnosis asks for it."""
    return lambda: diagnose(trained())


def _split_of(run: RunRecord) -> tuple[str, ...]:
    """What runs share whose accuracies are those of the same test examples, up to the trial seed."""
    settings = run.tags.get("dg.settings", "").split("; ")
    data = [item for item in settings if item.startswith(("data.", "protocol."))]
    return (run.dataset, run.protocol, *run.targets, *data)


def _order(run: RunRecord, baseline: str) -> tuple[Any, ...]:
    """The baseline first, and draws as they are numbered, whatever order a store has them in."""
    label = label_of(run)
    return label != baseline, label, run.targets, run.hparams_seed, run.trial_seed, run.run_id


def _rule(asked: Asked, runs: Sequence[RunRecord]) -> Rule:
    """The rule that was asked for, or the one that all runs show."""
    shown = {run.tags.get("dg.shown", SHOWN) for run in runs}
    return registry.load("selection", asked.rule or (shown.pop() if len(shown) == 1 else SHOWN))


def _read(path: Path | None, run: RunRecord, step: int) -> Predictions:
    if path is None:
        raise NotApplicable(
            f"run {run.run_id} has stored no predictions of its checkpoint {step}; raise "
            "selection.predictions_mb and train it again"
        )
    return read_predictions(path)


def _write(found: Diagnosis, png: bytes | None, folder: Path, stem: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.csv").write_text(as_csv(found), encoding="utf-8")
        if png:
            (folder / f"{stem}.png").write_bytes(png)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another with --to") from None
    to_stderr(f"written: {folder / stem}.csv" + (" and .png" if png else ""))


def _track(found: Diagnosis, png: bytes | None, part: Part) -> None:
    """A diagnosis is a tracked run of its own; the same one again is the same run."""
    if part.store is None:
        return
    as_written = as_json(found, part.title)
    logged = {
        "tags": {**part.tags, "dg.diagnosis_name": found.name},
        "params": {"diagnosis": found.name, "of": part.title},
        "texts": {f"{found.name}.csv": as_csv(found), f"{found.name}.json": as_written},
        "files": {f"{found.name}.png": png} if png else None,
        "metrics": {key: value for key, value in found.metrics.items() if value == value},  # NaN is none
    }
    name = f"{found.name} of {part.title}"
    tracking.keep_result(part.store, "diagnosis", name, as_written, lambda: logged)
