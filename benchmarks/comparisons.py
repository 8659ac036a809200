"""How often the comparisons of a report are wrong, and how often right: simulated tables of ten algorithms.

Every number is a share of simulated tables or intervals; of 2,000 of them, chance alone makes 5 % anything
from 4 to 6. Nothing is trained. docs/statistics.md says what follows.

A table has nine rivals and a baseline. An algorithm's accuracy in a trial and held-out domain is what the
trial and the domain give to all (which cancels in differences), its own luck in the trial with standard
deviation sqrt(rho), its own luck in the cell with sqrt(1 - rho), and what sets it apart in the domain.

Shapes: R tables, k rivals, n trials, m held-out domains.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from common import table
from evidence import write
from scipy import stats

from dgharness.report.paired import hierarchical_se
from dgharness.report.statistics import ALPHA

RIVALS = 9
DESIGNS = ((3, 1), (3, 4), (5, 4))  # trials x held-out domains
SHARED = (0.0, 0.3, 0.6)
OUT = Path(__file__).parent / "results" / "comparisons.md"

FALSE = """## No rival differs

The rate of p ≤ 0.05 for one rival, and the share of tables with any claim after Holm's correction. `apart`:
how much a rival's difference varies between domains, in standard deviations of a run; its mean over these
domains is zero."""
FOUND = """## A rival differs

How often it is called different at the first step of Holm's correction, by its difference in standard
deviations of the difference of two runs."""
INTERVALS = """## Intervals

How often 95 % intervals hold the true difference, by the deviation between trials and between domains (of a
cell: 1): the mean over these domains (here) and over all domains that these were drawn from (all).
Hierarchical: what brackets are. Trials: the t-interval over the trials' means. Percentile: 2.5 % to 97.5 % of
hierarchical resamples."""
OVERLAP = """## Overlap of mean ± standard error

Tables of ten identical algorithms in which it would separate a rival from the baseline."""


def differences(
    draw: np.random.Generator, tables: int, n: int, m: int, rho: float, apart: float = 0.0
) -> np.ndarray:
    """Paired differences to the baseline, ``[R, k, n, m]``, of mean zero over domains in truth.

    ``apart``: standard deviation between domains of what sets a rival apart there.
    """
    luck = np.sqrt(rho) * draw.normal(size=(tables, RIVALS + 1, n, 1))
    luck = luck + np.sqrt(1 - rho) * draw.normal(size=(tables, RIVALS + 1, n, m))
    by_domain = apart * draw.normal(size=(tables, RIVALS, 1, m))
    by_domain -= by_domain.mean(3, keepdims=True)
    return luck[:, 1:] - luck[:, :1] + by_domain


def t_over_trials(difference_Rknm: np.ndarray) -> np.ndarray:
    return np.asarray(stats.ttest_1samp(difference_Rknm.mean(3), 0, axis=2).pvalue)


def t_hierarchical(difference_Rknm: np.ndarray) -> np.ndarray:
    t = np.abs(difference_Rknm.mean((2, 3))) / hierarchical_se(difference_Rknm)
    return 2 * stats.t.sf(t, difference_Rknm.shape[2] - 1)


def flip_trials(difference_Rknm: np.ndarray) -> np.ndarray:
    return flips(difference_Rknm.mean(3))


def flip_cells(difference_Rknm: np.ndarray) -> np.ndarray:
    return flips(difference_Rknm.reshape(*difference_Rknm.shape[:2], -1))


def flips(value_Rkn: np.ndarray) -> np.ndarray:
    """p of the sign-flip test of the sum, exact up to 12 values and beyond that from 4096 drawn flips."""
    units = value_Rkn.shape[2]
    if units <= 12:
        sign_Fn = np.array(list(product((1, -1), repeat=units)))
    else:
        sign_Fn = np.random.default_rng(0).choice((1, -1), (4096, units))
        sign_Fn[0] = 1
    at_least = np.abs(value_Rkn.sum(2))[..., None] - 1e-12
    chunks = zip(np.array_split(value_Rkn, 40), np.array_split(at_least, 40), strict=True)
    return np.concatenate([(np.abs(some @ sign_Fn.T) >= least).mean(2) for some, least in chunks])


TESTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "t over trials": t_over_trials,
    "t, hierarchical": t_hierarchical,
    "flips of trials": flip_trials,
    "flips of cells": flip_cells,
}


def any_called(p_Rk: np.ndarray) -> float:
    """The share of tables that call any rival different after Holm's correction: the smallest p decides."""
    return float((RIVALS * p_Rk.min(1) <= ALPHA).mean())


def false_claims(draw: np.random.Generator, tables: int) -> list[list[str]]:
    """One rival's rate of p ≤ 0.05, and that of tables with any claim, where no rival differs."""
    rows = []
    for n, m in DESIGNS:
        for rho, apart in [(rho, 0.0) for rho in (SHARED if m > 1 else SHARED[:1])] + [(0.3, 3.0)] * (m > 1):
            p = {name: test(differences(draw, tables, n, m, rho, apart)) for name, test in TESTS.items()}
            cells = [f"{(p_Rk <= ALPHA).mean():.3f}, {any_called(p_Rk):.3f}" for p_Rk in p.values()]
            rows.append([f"{n} x {m}", f"{rho:g}", f"{apart:g}", *cells])
    return rows


def found(draw: np.random.Generator, tables: int) -> list[list[str]]:
    """How often one rival of nine that does differ is called different, at the first step's level."""
    rows = []
    for (n, m), effect in product(DESIGNS, (2, 4, 8, 16)):
        rho = 0.3 if m > 1 else 0.0
        shifted = differences(draw, tables, n, m, rho) + effect * np.sqrt(2)  # of the cells' differences
        power = [(RIVALS * test(shifted) <= ALPHA).mean() for test in TESTS.values()]
        rows.append([f"{n} x {m}", f"{rho:g}", f"{effect}", *(f"{value:.2f}" for value in power)])
    return rows


def coverage(draw: np.random.Generator, tables: int) -> list[list[str]]:
    """How often 95 % intervals hold the mean over these domains, and that over all domains like them."""
    rows = []
    for n, m in product((3, 5), (1, 4, 6)):
        for trial, domain in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 3.0)):
            by_domain = domain * draw.normal(size=(tables, 1, 1, m))
            difference = by_domain + draw.normal(size=(tables, 1, n, m))
            difference = difference + trial * draw.normal(size=(tables, 1, n, 1))
            mean, here = difference.mean((2, 3)), by_domain.mean((2, 3))
            se_trials = stats.sem(difference.mean(3), axis=2)
            cells = []
            for se in (hierarchical_se(difference), se_trials):
                half = stats.t.ppf(1 - ALPHA / 2, n - 1) * se
                cells += [f"{(np.abs(mean - truth) <= half).mean():.3f}" for truth in (here, 0.0)]
            low, high = percentile(draw, difference[:300, 0])
            cells.append(f"{((low <= here[:300, 0]) & (here[:300, 0] <= high)).mean():.3f}")
            rows.append([f"{n} x {m}", f"{trial:g}", f"{domain:g}", *cells])
    return rows


def percentile(draw: np.random.Generator, difference_Rnm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plain interval between percentiles of 500 hierarchical resamples."""
    _, n, m = difference_Rnm.shape
    resampled = []
    for difference_nm in difference_Rnm:
        trial, domain = draw.integers(n, size=(500, n, 1)), draw.integers(m, size=(500, n, m))
        resampled.append(np.percentile(difference_nm[trial, domain].mean((1, 2)), (2.5, 97.5)))
    low_high = np.array(resampled)
    return low_high[:, 0], low_high[:, 1]


def overlapping(draw: np.random.Generator, tables: int) -> list[list[str]]:
    """Tables of ten identical algorithms in which a rival's mean ± standard error misses the baseline's."""
    rows = []
    for n in (3, 5, 10):
        accuracy = draw.normal(size=(tables, RIVALS + 1, n))
        mean, se = accuracy.mean(2), stats.sem(accuracy, axis=2)
        apart = np.abs(mean[:, 1:] - mean[:, :1]) > se[:, 1:] + se[:, :1]
        rows.append([str(n), f"{apart.any(1).mean():.2f}"])
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tables", type=int, default=2000)
    arguments.add_argument("--out", type=Path, default=OUT)
    options = arguments.parse_args()
    draw = np.random.default_rng(0)
    of_tests = ["trials x domains", "rho", "apart", *TESTS]
    of_powers = ["trials x domains", "rho", "difference", *TESTS]
    of_intervals = ["trials x domains", "trial", "domain", "hierarchical, here", "hierarchical, all"]
    of_intervals += ["trials, here", "trials, all", "percentile, here"]
    write(
        options.out,
        "What the comparisons of a report get wrong and right",
        f"""
        Simulated, {options.tables} tables of nine rivals and a baseline for each row. `rho`: the part of an
        algorithm's luck that the domains of a trial share. Details: the head of `benchmarks/comparisons.py`.
        """,
        [
            FALSE,
            table(of_tests, false_claims(draw, options.tables)),
            FOUND,
            table(of_powers, found(draw, options.tables)),
            INTERVALS,
            table(of_intervals, coverage(draw, options.tables)),
            OVERLAP,
            table(["trials", "tables"], overlapping(draw, options.tables)),
        ],
    )


if __name__ == "__main__":
    main()
