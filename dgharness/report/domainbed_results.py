"""Results that DomainBed wrote, as records that rules and tables read.

A sweep of DomainBed leaves a folder per job with ``results.jsonl``, a line per evaluation, and ``done`` once
the job has ended. Environment i of a line is a domain: ``env{i}_in_acc`` is its 80 %, ``env{i}_out_acc`` its
20 %. Of a test environment the first is what tables report and the second what the oracle sees; of a training
environment the second is validation.

For the same records the cells are those of DomainBed's own tables. Its scripts evaluate before the first
update and may choose that checkpoint; they sum over environments in order, where rounding may part what is a
tie in exact numbers; of tied checkpoints they take the first, of tied draws the last that the file system
lists. ``as_its_scripts`` and ``RunRecord.precedence`` do the same here. Unlike them, a table here names the
jobs that did not finish or are missing, and gives no mean over those that happen to be there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dgharness.errors import UsageError
from dgharness.names import slug
from dgharness.report.load import Runs
from dgharness.selection.rule import Evaluation, Rule, RunRecord

FILE, DONE = "results.jsonl", "done"
NEEDED = ("algorithm", "dataset", "test_envs", "hparams_seed", "trial_seed")
SETTINGS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task", "hparams")
MODEL_SETTINGS = ("resnet18", "resnet50_augmix", "freeze_bn", "vit", "dinov2", "data_augmentation")

ALGORITHMS = {  # its class -> the algorithm here that optimises the same
    "ERM": "erm",
    "IRM": "irmv1",
    "GroupDRO": "group-dro",
    "VREx": "vrex",
    "CORAL": "coral",
    "MMD": "mmd",
    "DANN": "dann",
    "CDANN": "cdann",
    "ANDMask": "and-mask",
    "IGA": "iga",
    "Fishr": "fishr",
    "IB_ERM": "ib-erm",
    "IB_IRM": "ib-irm",
    "CausIRL_CORAL": "causirl-coral",
    "CausIRL_MMD": "causirl-mmd",
    "EQRM": "eqrm",
}
_SPAWRIOUS = ("Test", "SC_group_1", "SC_group_2")
DOMAINS: Mapping[str, tuple[str, ...]] = {  # its dataset -> domains by number, as they are called here
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "VLCS": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "PACS": ("art_painting", "cartoon", "photo", "sketch"),
    "OfficeHome": ("Art", "Clipart", "Product", "Real World"),
    "TerraIncognita": ("location_100", "location_38", "location_43", "location_46"),
    "DomainNet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    "SVIRO": ("aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"),
    "WILDSCamelyon": tuple(f"hospital_{n}" for n in range(5)),
    "WILDSFMoW": tuple(f"region_{n}" for n in range(6)),
    **{f"Spawrious{k}_{d}": _SPAWRIOUS for k in ("O2O", "M2M") for d in ("easy", "medium", "hard")},
}


def read_results(directory: Path) -> Runs:
    """All jobs below a directory; what is not as DomainBed writes it is a UsageError with file and line."""
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}; name the output directory of a DomainBed sweep")
    jobs: list[tuple[list[int], RunRecord]] = []  # with the environments that they test
    empty: list[str] = []
    for folder, folders, files in os.walk(directory):  # in the order of the file system, which decides ties
        if FILE in files and (job := read_job(Path(folder))) is not None:
            jobs.append(job)
        elif FILE in files or not (files or folders):
            empty.append(os.path.relpath(folder, directory))
    if not jobs:
        raise UsageError(f"{directory} holds no {FILE}; name the output directory of a DomainBed sweep")
    records = _with_precedence([run for _, run in jobs])
    tested = [environments for environments, _ in jobs]
    in_order = sorted(range(len(jobs)), key=lambda i: (records[i].dataset, tested[i]))
    settings = sorted({f"{run.dataset}: {run.tags['dg.settings']}" for run in records})
    source = (
        f"Read from {FILE} of DomainBed in {directory} ({'; '.join(settings)}). Ties are decided as by its "
        "scripts: the first checkpoint, the last draw."
    )
    if empty:
        source += f" No results yet, and therefore missing without a name: {', '.join(sorted(empty))}."
    return Runs([records[i] for i in in_order], source=source)


def read_job(folder: Path) -> tuple[list[int], RunRecord] | None:
    """The environments that one job tests, and its record; None if it has not written a line."""
    lines = _lines(folder / FILE)
    first = next(lines, None)
    if first is None:
        return None
    (where, line), evaluations = first, []
    args = _of(line, "args", where)
    for name in NEEDED:
        _of(args, name, f"args of {where}")
    domains = _domains(args["dataset"], line, where)
    tested = args["test_envs"]
    if not tested or not all(isinstance(env, int) and 0 <= env < len(domains) for env in tested):
        raise UsageError(
            f"{where} tests the environments {tested}, and has {len(domains)}; run that job again"
        )
    keys = {f"env{i}_in_acc": f"test/acc/{slug(domains[i])}" for i in tested}
    keys |= {f"env{i}_out_acc": f"test_holdout/acc/{slug(domains[i])}" for i in tested}
    others = [i for i in range(len(domains)) if i not in tested]
    keys |= {f"env{i}_out_acc": f"val/acc/{slug(domains[i])}" for i in others}
    seen: set[int] = set()
    for where, line in _chain(first, lines):
        if _of(line, "args", where) != args:
            raise UsageError(f"{where} is of another job than the lines before it; give every job a folder")
        step = _of(line, "step", where)
        if step in seen:
            raise UsageError(
                f"{where} has step {step} once more; remove the lines of one of the two attempts"
            )
        seen.add(step)
        metrics = {ours: _number(line, theirs, where) for theirs, ours in keys.items()}
        evaluations.append(Evaluation(step, metrics))
    finished = (folder / DONE).exists()
    return tested, RunRecord(
        run_id=folder.name,
        algorithm=ALGORITHMS.get(args["algorithm"], args["algorithm"]),
        dataset=f"domainbed:{args['dataset']}",
        protocol="leave-one-domain-out",
        targets=tuple(domains[i] for i in tested),
        hparams_seed=args["hparams_seed"],
        trial_seed=args["trial_seed"],
        status="FINISHED" if finished else "KILLED",
        evaluations=tuple(evaluations),
        weights="unknown",
        preset="unknown",
        error="" if finished else f"it has no file {DONE!r}",
        tags={
            "dg.model": "DomainBed's",
            "dg.source": f"DomainBed {FILE}",
            "dg.settings": _settings(args, line.get("hparams", {})),
        },
    )


def as_its_scripts(rule: Rule) -> Rule:
    """The rule with its means rounded as DomainBed's scripts round them; what they lack stays as it is."""
    scores = {
        "training-domain-validation": lambda evaluation, others: _mean(_validation(evaluation).values()),
        "leave-one-domain-out-cv": _cross_validation,
    }
    return replace(rule, score=scores[rule.name]) if rule.name in scores else rule


def _cross_validation(evaluation: Evaluation, others: Mapping[str, Evaluation]) -> float:
    by_slug = {slug(name): at for name, at in others.items()}
    in_order = [name for name in _validation(evaluation) if name in by_slug]
    return _mean(by_slug[name].metrics[f"test/acc/{name}"] for name in in_order)


def _validation(evaluation: Evaluation) -> dict[str, float]:
    prefix = "val/acc/"
    return {k.removeprefix(prefix): v for k, v in evaluation.metrics.items() if k.startswith(prefix)}


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line with its place in words."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            where = f"{file}, line {number},"
            try:
                found = json.loads(line)
            except ValueError:
                raise UsageError(
                    f"{where} is not JSON; if the job died while writing it, remove it"
                ) from None
            if not isinstance(found, dict):
                raise UsageError(f"{where} is not an object with args, step and accuracies; remove it")
            yield where, found


def _chain(
    first: tuple[str, dict[str, Any]], rest: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield first
    yield from rest


def _of(content: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in content:
        raise UsageError(f"{where} has no {name!r}; import what DomainBed's scripts/train.py has written")
    return content[name]


def _number(line: Mapping[str, Any], name: str, where: str) -> float:
    value = _of(line, name, where)
    if not isinstance(value, (int, float)):
        raise UsageError(f"{where} says that {name} is {value!r}, which is no number; run that job again")
    return float(value)


def _domains(dataset: str, line: Mapping[str, Any], where: str) -> Sequence[str]:
    """The names of the environments that a line has, or env0, env1, ... of an unknown dataset."""
    environments = 0
    while f"env{environments}_in_acc" in line:
        environments += 1
    if not environments:
        raise UsageError(
            f"{where} has no 'env0_in_acc'; import what DomainBed's scripts/train.py has written"
        )
    names = DOMAINS.get(dataset, tuple(f"env{i}" for i in range(environments)))
    if len(names) != environments:
        raise UsageError(f"{where} has {environments} environments, and {dataset} has {len(names)}")
    return names


def _settings(args: Mapping[str, Any], hparams: Mapping[str, Any]) -> str:
    """What the jobs of one table must share; the rest is drawn or says where files lie."""
    told = {name: args[name] for name in SETTINGS if name in args}
    told |= {name: hparams[name] for name in MODEL_SETTINGS if name in hparams}
    return "; ".join(f"{name} {value}" for name, value in told.items())


def _with_precedence(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of draws that tie, its scripts take the last to appear, be it by a job on a pair with the target."""
    draws: dict[tuple[object, ...], dict[int, int]] = {}

    def group(run: RunRecord, target: str) -> tuple[object, ...]:
        return run.dataset, run.algorithm, run.trial_seed, target

    for run in records:
        for target in run.targets:
            of_target = draws.setdefault(group(run, target), {})
            of_target.setdefault(run.hparams_seed, len(of_target))
    return [replace(run, precedence=-draws[group(run, run.targets[0])][run.hparams_seed]) for run in records]
