"""CPU seconds (user and system) of commands that should answer at once, beyond starting Python."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from common import machine, table

PYTHON = [sys.executable, "-c", "pass"]
COMMAND = [sys.executable, "-c", "from dgharness.cli import main; main()"]
TIMED = {
    "python -c pass": PYTHON,
    "dgharness --help": [*COMMAND, "--help"],
    "dgharness algorithms": [*COMMAND, "algorithms"],
    "dgharness algorithms show irmv1": [*COMMAND, "algorithms", "show", "irmv1"],
    "dgharness datasets": [*COMMAND, "datasets"],
}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one process and its children."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    for command in TIMED.values():  # so that no one pays for reading files and compiling modules
        cpu_seconds(command)
    rounds = [{name: cpu_seconds(command) for name, command in TIMED.items()} for _ in range(args.rounds)]
    rows = []
    for name in TIMED:
        cpu = statistics.median(each[name] for each in rounds)
        beyond = [each[name] - each["python -c pass"] for each in rounds]
        rows.append([name, f"{cpu:.2f}", f"{statistics.median(beyond):.2f}", f"{max(beyond):.2f}"])
    print(f"medians of {args.rounds} rounds; {machine()}\n")
    print(table(["command", "CPU s", "beyond python -c pass", "at most"], rows))


if __name__ == "__main__":
    main()
