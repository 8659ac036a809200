"""What the benchmarks of published results share: measurements on disk, and the table that is judged.

A measurement that is finished is one line of JSON in a file, so that an interrupted benchmark goes on
where it was and the table can be written at any time from what there is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, table

RESULTS = Path(__file__).parent / "results"
CELLS = Path("build") / "benchmarks"  # relative to where the command runs; git ignores it
TABLE_ONLY = "--table"  # the option that every one of these benchmarks has


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument(
        "--cells", type=Path, default=CELLS / f"{name}.jsonl", help="measurements are kept here"
    )
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.md", help="where the table goes")
    found.add_argument(TABLE_ONLY, action="store_true", help="only write the table of what there is")
    return found


PARTS = ("--methods", "--examples", "--d-spu", "--restarts")


class Cells:
    """Finished measurements by key, such as ``{"method": "irmv1", "restart": 0}``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def having(self, **key: Any) -> list[dict[str, Any]]:
        return [cell for cell in self.all() if key.items() <= cell["key"].items()]

    def measure(self, key: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> None:
        """Run and keep, unless this key was measured before."""
        if any(cell["key"] == dict(key) for cell in self.all()):
            return
        values = run()
        with self.path.open("a") as file:
            file.write(json.dumps({"key": dict(key), **values}) + "\n")
        print(dict(key), dict(values), flush=True)


@dataclass(frozen=True)
class Band:
    """Where a mean must lie for the published value to count as reproduced; written down before measuring."""

    low: float = float("-inf")
    high: float = float("inf")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def text(self, digits: int) -> str:
        if self.low == float("-inf"):
            return f"at most {self.high:.{digits}f}"
        if self.high == float("inf"):
            return f"above {self.low:.{digits}f}"
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}"


def around(mean: float, distance: float) -> Band:
    """
    >>> around(66.9, 5.0).text(1)
    '61.9 to 71.9'
    """
    return Band(mean - distance, mean + distance)


def above(low: float) -> Band:
    return Band(low=low)


def difference(mean: float, deviation: float, published: int, here: int, floor: float = 0.0) -> Band:
    """Three standard errors of the difference between a mean over ``published`` and one over ``here`` runs.

    >>> difference(10.0, 1.0, 18, 2, floor=0.1).text(2)
    '7.76 to 12.24'
    """
    return around(mean, max(floor, 3 * deviation * (1 / published + 1 / here) ** 0.5))


@dataclass(frozen=True)
class Row:
    """One published value beside what was measured."""

    what: tuple[str, ...]  # the leading columns
    published: str
    band: Band | None  # none: shown, not judged
    values: Sequence[float]
    note: str = ""

    def cells(self, digits: int) -> list[str]:
        band = self.band.text(digits) if self.band else ""
        if not self.values:
            return [*self.what, self.published, band, "not measured", "0", "", self.note]
        mean = statistics.fmean(self.values)
        verdict = "" if self.band is None else "yes" if mean in self.band else "**no**"
        spread = f" ± {statistics.pstdev(self.values):.{digits}f}" if len(self.values) > 1 else ""
        measured = f"{mean:.{digits}f}{spread}"
        return [*self.what, self.published, band, measured, str(len(self.values)), verdict, self.note]


def markdown(leading: Sequence[str], rows: Sequence[Row], digits: int) -> str:
    """The table; measured is mean ± standard deviation over n."""
    header = [*leading, "published", "band", "measured", "n", "inside?", "note"]
    return table(header, [row.cells(digits) for row in rows])


def write(path: Path, title: str, protocol: str, tables: Sequence[str]) -> None:
    """The results file: what was run, and every table."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_deciding(sys.argv[1:])])
    parts = [f"# {title}", " ".join(protocol.split()), *tables, f"Made by `{command}` ({machine()})."]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")
    print(path)


def _deciding(arguments: Sequence[str]) -> list[str]:
    """The options that decide the numbers, without those that only say which part is measured now.

    >>> _deciding(["--data-root", "here", "--methods", "erm", "irmv1", "--steps", "5", "--table"])
    ['--data-root', 'DIR', '--steps', '5']
    """
    kept, option = [], ""
    for argument in arguments:
        option = argument if argument.startswith("--") else option
        if option not in (*PARTS, TABLE_ONLY):
            kept.append("DIR" if option == "--data-root" and argument != option else argument)
    return kept
