"""A manifest of five million rows: opening it, splitting it, grouping it.

The table has labels, domains, a split, two attributes and four features, all random, as CSV and as Parquet.
Every figure is of a fresh process, which opens the file with cold hands but with its pages in memory; the
import of the package is not in it. What a protocol looks up once (the rows of each domain) is within its
time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from common import machine, quartiles, table

from dgharness.data import table as own
from dgharness.data.groups import metric_groups
from dgharness.data.protocols import PROTOCOLS, default_targets

TARGETS = {"open": "5 s", "leave-one-domain-out": "2 s", "official": "2 s"}
WRITE: dict[str, Callable[..., None]] = {
    "csv": pyarrow.csv.write_csv,
    "parquet": pyarrow.parquet.write_table,
}


def random_table(rows: int) -> Any:
    """An Arrow table of ten domains and five classes."""
    random = np.random.default_rng(0)

    def one_of(names: list[str], p: list[float] | None = None) -> Any:
        code = pa.array(random.choice(len(names), rows, p=p).astype(np.int32))
        return pa.DictionaryArray.from_arrays(code, pa.array(names)).cast(pa.string())

    columns = {
        "y": random.integers(0, 5, rows),
        "domain": one_of([f"site {number}" for number in range(10)]),
        "split": one_of(["train", "val", "test"], [0.6, 0.2, 0.2]),
        "sex": one_of(["female", "male"]),
        "age": one_of(["young", "middle", "old"]),
    }
    features = {f"x{number}": random.standard_normal(rows).round(4) for number in range(4)}
    return pa.table(columns | features)


def measure(file: Path) -> dict[str, float]:
    """Seconds of every step, in this process."""
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - began
        return result

    kind = file.suffix[1:]
    spec = {"csv": own.csv, "parquet": own.parquet}[kind]
    dataset = timed("open", lambda: spec.load(str(file), None, 0, own.TableOptions()))
    for protocol in ("leave-one-domain-out", "official"):
        targets = default_targets(protocol, dataset)
        dataset.__dict__.pop("_rows_by_domain", None)  # so that each protocol looks them up itself
        timed(protocol, lambda name=protocol, held=targets: PROTOCOLS[name](dataset, held, 0, 0.2))
    timed("group counts", lambda: metric_groups(dataset.manifest, ("y", "sex", "age")).counts_G)
    timed("digest", lambda: dataset.digest)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # what the fresh process is given
    args = parser.parse_args()
    if args.file:
        print(json.dumps(measure(args.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder, f"table.{kind}") for kind in WRITE}
        content = random_table(args.rows)
        for kind, file in files.items():
            WRITE[kind](content, file)
        del content
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in files}
        for _ in range(args.rounds):
            for kind, file in files.items():
                command = [sys.executable, __file__, "--file", str(file)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[kind].append(json.loads(done.stdout))
    rows = []
    for kind, rounds in found.items():
        for step in rounds[0]:
            lower, median, upper = quartiles([each[step] for each in rounds])
            rows.append([kind, step, f"{median:.2f}", f"{lower:.2f} to {upper:.2f}", TARGETS.get(step, "")])
    print(f"{args.rows} rows, {args.rounds} rounds; {machine()}\n")
    print(table(["file", "step", "s", "quartiles", "target"], rows))


if __name__ == "__main__":
    main()
