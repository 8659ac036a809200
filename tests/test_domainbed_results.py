"""Old sweeps of DomainBed: read as they are, and tabulated as its own scripts would."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dgharness import registry
from dgharness.errors import UsageError
from dgharness.report.cells import build_tables
from dgharness.report.domainbed_results import ALGORITHMS, DOMAINS, as_its_scripts, read_results
from dgharness.report.over_datasets import over_datasets
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.training_domain_validation import training_domain_validation

RULES = {
    "training-domain": training_domain_validation,
    "leave-one-domain-out": leave_one_domain_out_cv,
    "oracle": oracle,
}
PACS = DOMAINS["PACS"]


def job(tree: Path, lines: list[dict], name: str | None = None, done: bool = True, **args) -> Path:
    """One job's folder as scripts/train.py leaves it; ``lines`` hold step and accuracies."""
    own = {
        "algorithm": "ERM",
        "dataset": "PACS",
        "test_envs": [0],
        "hparams_seed": 0,
        "trial_seed": 0,
        "steps": 5001,
        "holdout_fraction": 0.2,
        "seed": 17,
        "output_dir": "somewhere",
        "hparams": None,
    } | args
    name = name or "-".join(str(own[key]) for key in ("algorithm", "test_envs", "hparams_seed", "trial_seed"))
    folder = tree / name.replace(" ", "")
    folder.mkdir(parents=True)
    rest = {"args": own, "hparams": {"lr": 5e-5, "resnet18": False}, "epoch": 0.5, "loss": 0.1, "mem_gb": 3.0}
    text = "".join(json.dumps(rest | line, sort_keys=True) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text)
    if done:
        (folder / "done").write_text("done")
    return folder


def accuracies(envs: int, draw) -> dict[str, float]:
    return {f"env{i}_{part}_acc": draw() for i in range(envs) for part in ("in", "out")}


def sweep(
    tree: Path, draw, algorithms=("ERM", "VREx", "Mixup"), trials=3, draws=4, steps=(0, 300, 600, 900), **args
):
    """All single environments and all pairs, as ``scripts/sweep.py`` plans them, in a mixed order."""
    held_out = [list(envs) for size in (1, 2) for envs in combinations(range(4), size)]
    planned = [
        {"algorithm": a, "test_envs": t, "hparams_seed": h, "trial_seed": n, **args}
        for a in algorithms
        for t in held_out
        for h in range(draws)
        for n in range(trials)
    ]
    order = random.Random(0)
    order.shuffle(planned)
    for own in planned:
        lines = [{"step": step, **accuracies(4, draw)} for step in steps]
        job(tree, lines, f"{order.getrandbits(64):016x}", **own)


# --- DomainBed's selection and tables, written again from their description ------------------------


def its_lines(tree: Path) -> list[dict]:
    """Every line, job by job in the order in which the file system lists them."""
    return [
        json.loads(line)
        for name in os.listdir(tree)
        for line in (tree / name / "results.jsonl").read_text().splitlines()
    ]


def its_choice(method: str, lines: list[dict], env: int) -> tuple[float, float] | None:
    """Validation and test accuracy of the checkpoint that it takes from one draw's jobs."""
    alone = [line for line in lines if line["args"]["test_envs"] == [env]]
    others = [i for i in range(4) if i != env]
    candidates = []
    if method == "oracle":
        last = max(line["step"] for line in alone)
        candidates = [(line[f"env{env}_out_acc"], line) for line in alone if line["step"] == last]
    elif method == "training-domain":
        candidates = [(np.mean([line[f"env{i}_out_acc"] for i in others]), line) for line in alone]
    else:
        for line in alone:
            with_pair = {}
            for other in lines:
                if len(other["args"]["test_envs"]) == 2 and other["step"] == line["step"]:
                    (val,) = set(other["args"]["test_envs"]) - {env}
                    with_pair[val] = other[f"env{val}_in_acc"]
            if len(with_pair) == 3:
                candidates.append((np.sum([with_pair[i] for i in others]) / 3, line))
    best = None
    for validation, line in candidates:
        if best is None or validation > best[0]:  # the first of tied checkpoints
            best = (validation, line[f"env{env}_in_acc"])
    return best


def its_table(tree: Path, method: str) -> dict[str, dict[str, tuple[float, float]]]:
    """algorithm -> environment or "average" -> mean over trials and np.std(values) / sqrt(n)."""
    draws: dict[tuple, dict[int, list[dict]]] = defaultdict(dict)
    for line in its_lines(tree):
        args = line["args"]
        for env in args["test_envs"]:
            of_cell = draws[args["algorithm"], env, args["trial_seed"]]
            of_cell.setdefault(args["hparams_seed"], []).append(line)
    selected: dict[tuple, float] = {}
    for (algorithm, env, trial), by_draw in draws.items():
        best = None
        for lines in by_draw.values():
            found = its_choice(method, lines, env)
            if found and (best is None or found[0] >= best[0]):  # the last of tied draws
                best = found
        if best:
            selected[algorithm, env, trial] = best[1]
    table: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for algorithm in {key[0] for key in selected}:
        trials = sorted({key[2] for key in selected})
        columns = {PACS[env]: [selected[algorithm, env, t] for t in trials] for env in range(4)}
        columns["average"] = [np.mean([values[t] for values in columns.values()]) for t in trials]
        for name, values in columns.items():
            table[algorithm][name] = (np.mean(values), np.std(values) / np.sqrt(len(values)))
    return table


def our_table(tree: Path, rule) -> dict[str, dict[str, tuple[float, float]]]:
    results = read_results(tree)
    (table,) = build_tables(results.records, [as_its_scripts(rule)], gaps=False)
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if not column.is_difference:
                assert not cell.problem, cell
                values = list(cell.trials.values())
                found[row.label][column.name] = (cell.mean, statistics.pstdev(values) / len(values) ** 0.5)
    return found


DRAWN = {
    "all different": lambda source: source.random(),
    "many ties": lambda source: source.randrange(8) / 8,
    "tenths": lambda source: source.randrange(10) / 10,
    "all tied": lambda source: 0.5 if source.random() < 0.8 else 0.75,
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("method", RULES)
def test_every_cell_and_average_is_domainbeds_own(tmp_path, drawn, method):
    source = random.Random(list(DRAWN).index(drawn))
    sweep(tmp_path, lambda: DRAWN[drawn](source))
    theirs, ours = its_table(tmp_path, method), our_table(tmp_path, RULES[method])
    assert set(ours) == {"erm", "vrex", "Mixup"}
    for algorithm, columns in theirs.items():
        row = ours[ALGORITHMS.get(algorithm, algorithm)]
        assert list(row) == [*PACS, "average"]
        for name, expected in columns.items():
            assert row[name] == pytest.approx(expected, abs=1e-12), (algorithm, name)


@pytest.mark.parametrize("method", RULES)
def test_the_averages_over_datasets_are_domainbeds_own(tmp_path, method):
    rule = as_its_scripts(RULES[method])
    for dataset in ("PACS", "VLCS"):
        sweep(tmp_path / dataset, random.Random(dataset).random, draws=2, dataset=dataset)
    tables = build_tables(read_results(tmp_path).records, [rule], gaps=False, ddof=0)
    ((table,), _) = over_datasets(tables, [rule])
    assert [column.name for column in table.columns][:3] == [
        *("domainbed:PACS", "domainbed:VLCS", "mean of the datasets")
    ]
    for row in table.rows:
        (name,) = (key for key in ("ERM", "VREx", "Mixup") if ALGORITHMS.get(key, key) == row.label)
        theirs = [its_table(tmp_path / dataset, method)[name]["average"] for dataset in ("PACS", "VLCS")]
        for cell, expected in zip(row.cells, theirs, strict=False):
            assert (cell.mean, cell.se) == pytest.approx(expected, abs=1e-12)
        assert row.cells[2].stated.value == pytest.approx(sum(mean for mean, _ in theirs) / 2, abs=1e-12)


def test_a_tie_that_rounding_parts_goes_the_way_of_its_scripts(tmp_path):
    for env in range(4):
        others = [i for i in range(4) if i != env]
        lines = []
        for step, test, values in ((0, 0.4, (0.3, 0.2, 0.1)), (300, 0.6, (0.1, 0.2, 0.3))):
            line = {"step": step, **accuracies(4, lambda test=test: test)}
            lines.append(line | {f"env{i}_out_acc": v for i, v in zip(others, values, strict=True)})
        job(tmp_path, lines, test_envs=[env])
    assert np.mean([0.1, 0.2, 0.3]) > np.mean([0.3, 0.2, 0.1])
    theirs, ours = (
        its_table(tmp_path, "training-domain")["ERM"],
        our_table(tmp_path, training_domain_validation)["erm"],
    )
    assert {mean for mean, _ in ours.values()} == {mean for mean, _ in theirs.values()} == {0.6}
    (exact,) = build_tables(read_results(tmp_path).records, [training_domain_validation], gaps=False)
    assert {cell.mean for cell in exact.rows[0].cells} == {0.4}


# --- what a record says ----------------------------------------------------------------------------


def test_a_job_is_a_run_on_the_domains_as_they_are_called_here(tmp_path):
    line = {"step": 300} | {
        f"env{i}_{part}_acc": (10 * i + (part == "out")) / 100 for i in range(4) for part in ("in", "out")
    }
    job(tmp_path, [line], "abc", test_envs=[2], hparams_seed=3, trial_seed=1)
    (run,) = read_results(tmp_path).records
    assert (run.run_id, run.algorithm, run.dataset) == ("abc", "erm", "domainbed:PACS")
    assert (run.targets, run.hparams_seed, run.trial_seed) == (("photo",), 3, 1)
    (evaluation,) = run.evaluations
    assert evaluation.step == 300
    assert evaluation.metrics == {
        "test/acc/photo": 0.2,
        "test_holdout/acc/photo": 0.21,
        "val/acc/art_painting": 0.01,
        "val/acc/cartoon": 0.11,
        "val/acc/sketch": 0.31,
    }
    assert run.tags["dg.source"] == "DomainBed results.jsonl" and "steps 5001" in run.tags["dg.settings"]


def test_names_are_those_of_our_registry():
    assert {name for name in ALGORITHMS.values()} <= {entry.name for entry in registry.entries("algorithms")}
    for dataset, domains in DOMAINS.items():
        try:
            spec = registry.load("datasets", f"domainbed:{dataset}")
        except UsageError:
            assert dataset in ("ColoredMNIST", "RotatedMNIST")
            continue
        if dataset.startswith(("WILDS", "Spawrious")):
            assert not spec.counts or set(spec.counts) <= set(domains)
        else:
            assert f"<domain>: {', '.join(domains)}" in spec.layout


def test_an_unknown_dataset_has_numbered_environments(tmp_path):
    job(tmp_path, [{"step": 0, **accuracies(2, lambda: 0.5)}], dataset="Mine", test_envs=[1])
    (run,) = read_results(tmp_path).records
    assert run.targets == ("env1",) and "val/acc/env0" in run.evaluations[0].metrics


def test_other_settings_and_datasets_stand_in_tables_of_their_own(tmp_path):
    line = [{"step": 0, **accuracies(4, lambda: 0.5)}]
    job(tmp_path, line, "a")
    job(tmp_path, line, "b", steps=1001, algorithm="IRM")
    job(tmp_path, line, "c", dataset="VLCS")
    tables = build_tables(read_results(tmp_path).records, [training_domain_validation])
    assert [len(table.rows) for table in tables] == [1, 1, 1]


def test_unfinished_and_missing_jobs_are_named_and_block_the_average(tmp_path):
    draw = random.Random(0).random
    for trial in range(2):
        for env in range(2):
            lines = [{"step": 0, **accuracies(2, draw)}]
            job(
                tmp_path,
                lines,
                f"{env}{trial}",
                done=(env, trial) != (0, 1),
                dataset="Mine",
                test_envs=[env],
                trial_seed=trial,
            )
    job(tmp_path, [{"step": 0, **accuracies(2, draw)}], "rival", dataset="Mine", algorithm="IRM")
    (tmp_path / "never-started").mkdir()
    results = read_results(tmp_path)
    assert "No results yet, and therefore missing without a name: never-started." in results.source
    (table,) = build_tables(results.records, [training_domain_validation])
    cells = {
        row.label: dict(zip((c.name for c in table.columns), row.cells, strict=True)) for row in table.rows
    }
    assert "KILLED 1 of 2: 01" in cells["erm"]["env0"].problem and "'done'" in cells["erm"]["env0"].detail
    assert cells["erm"]["average"].problem == "blocked by env0"
    assert "MISSING 1 of 2" in cells["irmv1"]["env0"].problem and "MISSING" in cells["irmv1"]["env1"].problem


def test_folders_may_be_nested(tmp_path):
    job(tmp_path / "one", [{"step": 0, **accuracies(4, lambda: 0.5)}], "a")
    job(tmp_path / "two" / "deep", [{"step": 0, **accuracies(4, lambda: 0.5)}], "b", trial_seed=1)
    assert {run.run_id for run in read_results(tmp_path).records} == {"a", "b"}


# --- what is not as it should be -------------------------------------------------------------------

LINE = {"step": 0, **accuracies(4, lambda: 0.5)}
BROKEN = {
    "cut short": (lambda text: text[:-20], "line 2, is not JSON"),
    "no object": (lambda text: text + "3\n", "line 3, is not an object"),
    "no args": (lambda text: '{"step": 1}\n', "line 1, has no 'args'"),
    "no algorithm": (lambda text: text.replace('"algorithm"', '"algo"'), "args of .* has no 'algorithm'"),
    "no step": (lambda text: text.replace('"step"', '"stop"'), "line 1, has no 'step'"),
    "no accuracy": (lambda text: text.replace('"env1_out_acc"', '"env1"'), "has no 'env1_out_acc'"),
    "no number": (lambda text: text.replace(": 0.5,", ': "high",'), "'high', which is no number"),
    "another job": (lambda text: text + text.replace("PACS", "VLCS").replace("300", "600"), "of another job"),
    "twice": (lambda text: text + text, "line 3, has step 0 once more"),
    "too few environments": (lambda text: text.replace("env3_in_acc", "x"), "3 environments, and PACS has 4"),
    "no environments": (lambda text: text.replace("env0_in_acc", "x"), "has no 'env0_in_acc'"),
    "an environment too many": (lambda text: text.replace("[0]", "[4]"), "tests the environments \\[4\\]"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_a_sentence_with_its_file_and_number(tmp_path, broken):
    change, expected = BROKEN[broken]
    folder = job(tmp_path, [LINE, {**LINE, "step": 300}], "a")
    file = folder / "results.jsonl"
    file.write_text(change(file.read_text()))
    with pytest.raises(UsageError, match=expected) as error:
        read_results(tmp_path)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_directory_without_results_or_none_at_all_is_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="holds no results"):
        read_results(tmp_path)
    with pytest.raises(UsageError, match="there is no directory"):
        read_results(tmp_path / "nowhere")


def test_many_jobs_are_read_in_seconds(tmp_path):
    sweep(tmp_path, lambda: 0.5, trials=2, draws=5, algorithms=("ERM",), steps=range(0, 5001, 300))
    began = time.process_time()
    records = read_results(tmp_path).records
    assert len(records) == 100
    assert (time.process_time() - began) / len(records) < 20 / 5000
