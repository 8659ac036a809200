"""How long ``dgharness report`` takes on a large store: the first time, and again with its cache.

A tiny real run is the pattern; its rows of the sqlite store are copied for every algorithm, held-out domain,
draw and trial, and every copy gets an ``evaluations.json`` of its own with random accuracies. Each report is
a process of its own, timed from its start to its end; processor time stands beside it, because other work on
the machine makes wall time longer. ``search_runs`` alone, which the report goes without, is timed as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
from common import machine, table

from dgharness import tracking
from dgharness.config import compose
from dgharness.training.loop import Progress
from dgharness.training.run import train

ALGORITHMS = ("erm", "irmv1", "vrex", "coral", "mmd", "group-dro", "fishr", "eqrm", "dann", "iga")
DOMAINS = ("art", "cartoon", "photo", "sketch")
TRIALS = 5
EXPERIMENT = "many/leave-one-domain-out"
SUMMARIES = (
    *("acc_avg", "nll", "count", "acc_domain_mean", "acc_worst_domain", "acc_group_mean", "wga", "ece"),
    *("worst_class_acc", "balanced_acc", "f1_macro", "auroc", "auprc", "brier", "class_difference"),
)
SEARCH = "import sys; from mlflow import MlflowClient as C; c = C(sys.argv[1]); token = None\nwhile True:\n \
page = c.search_runs([sys.argv[2]], \"tags.dg.kind = 'train'\", max_results=1000, page_token=token)\n \
token = page.token\n if not token: break"


def fill(folder: Path, runs: int, checkpoints: int) -> tracking.Store:
    """A store with that many finished runs, whose files lie where MLflow keeps artifacts."""
    uri = f"sqlite:///{folder}/mlflow.db"
    flags = {
        "algorithm": "erm",
        "model": {"name": "mlp", "width": 8},
        "train": {"steps": 2, "eval_every": 2},
        "execution": {
            "tracking_uri": uri,
            "experiment": EXPERIMENT,
            "output": str(folder / "runs"),
            "device": "cpu",
        },
    }
    pattern = train(compose(flags=flags), progress=Progress(say=lambda text: None))
    state = json.loads((pattern.path / "run.json").read_text())
    store = tracking.open_store(uri, EXPERIMENT)
    draws = runs // (len(ALGORITHMS) * len(DOMAINS) * TRIALS)
    random = np.random.default_rng(0)
    with closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        home = Path(db.execute("SELECT artifact_uri FROM runs").fetchone()[0]).parent.parent
        for number, facts in enumerate(product(ALGORITHMS, DOMAINS, range(draws), range(TRIALS))):
            copy(db, state["mlflow_run_id"], f"{number:032x}", home, *facts)
            place = home / f"{number:032x}" / "artifacts"
            place.mkdir(parents=True)
            content = evaluations(facts[1], checkpoints, random)
            (place / "evaluations.json").write_text(json.dumps(content, indent=1))
        db.execute(
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", (state["mlflow_run_id"],)
        )
    return store


def copy(
    db: sqlite3.Connection,
    source: str,
    run_id: str,
    home: Path,
    algorithm: str,
    target: str,
    draw: int,
    trial: int,
) -> None:
    """The rows of one run once more, as those of another."""
    for name in ("runs", "tags", "params", "latest_metrics"):
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
        own = {"run_uuid": f"'{run_id}'", "artifact_uri": f"'{home}/{run_id}/artifacts'"}
        picked = ", ".join(own.get(column, f'"{column}"') for column in columns)
        db.execute(f"INSERT INTO {name} SELECT {picked} FROM {name} WHERE run_uuid = ?", (source,))
    tags = {
        "dg.algorithm": algorithm,
        "dg.dataset": "domainbed:PACS",
        "dg.target": target,
        "dg.targets": json.dumps([target]),
        "dg.hparams_seed": str(draw),
        "dg.trial_seed": str(trial),
        "dg.config_hash": f"{run_id}{run_id}",
        "dg.run_id": run_id[-12:],
    }
    of_run = [(value, key, run_id) for key, value in tags.items()]
    db.executemany("UPDATE tags SET value = ? WHERE key = ? AND run_uuid = ?", of_run)


def evaluations(target: str, checkpoints: int, random: np.random.Generator) -> list[dict[str, object]]:
    """What a run logs: validation at every checkpoint, the target at the best and at the last."""

    def scores(split: str, domains: list[str]) -> dict[str, float]:
        names = [*SUMMARIES, *(f"{key}/{name}" for name in domains for key in ("acc", "loss", "count"))]
        names += [f"group_{key}/y-{label}" for label in range(7) for key in ("acc", "loss", "count")]
        return {
            f"{split}/{name}": value for name, value in zip(names, random.random(len(names)), strict=True)
        }

    others = [name for name in DOMAINS if name != target]
    steps = range(300, 300 * checkpoints + 1, 300)
    found = {step: scores("val", others) for step in steps}
    best = max(steps, key=lambda step: sum(found[step][f"val/acc/{name}"] for name in others))
    for step in {best, steps[-1]}:
        found[step] |= scores("test", [target]) | scores("test_holdout", [target])
    return [{"step": step, "metrics": metrics} for step, metrics in found.items()]


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a process."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "DGHARNESS_CACHE": str(folder / "cache"),
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=17)
    parser.add_argument("--repeats", type=int, default=5, help="of the report with its cache")
    parser.add_argument("--keep", type=Path, help="a folder for the store; one that is there is used again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (args.keep or Path(name)).absolute()
        if (folder / "mlflow.db").exists():
            store = tracking.open_store(f"sqlite:///{folder}/mlflow.db", EXPERIMENT)
        else:
            store = fill(folder, args.runs, args.checkpoints)
        report = [sys.executable, "-c", "from dgharness.cli import main; main()", "report", EXPERIMENT]
        for file in folder.glob("cache/*"):
            file.unlink()
        rows = [
            (
                "search_runs alone",
                [timed([sys.executable, "-c", SEARCH, store.uri, store.experiment_id], folder)],
            )
        ]
        rows += [("report, the first", [timed(report, folder)])]
        rows += [("report again", [timed(report, folder) for _ in range(args.repeats)])]
        html = [*report, "--rule", "all", "--format", "html", "--to", str(folder / "report.html")]
        rows += [("report again, every rule, HTML", [timed(html, folder)])]
        cache = sum(file.stat().st_size for file in folder.glob("cache/*")) / 1e6
        print(f"{machine()}; {args.runs} runs of {args.checkpoints} checkpoints, cache {cache:.0f} MB\n")
        print(
            table(
                ["", "s, median", "s, fastest", "processor s, median"],
                [
                    [
                        label,
                        f"{statistics.median(wall for wall, _ in times):.1f}",
                        f"{min(wall for wall, _ in times):.1f}",
                        f"{statistics.median(busy for _, busy in times):.1f}",
                    ]
                    for label, times in rows
                ],
            )
        )


if __name__ == "__main__":
    main()
