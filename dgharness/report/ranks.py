"""Average ranks over datasets, and which of them differ: Friedman, Nemenyi, Demšar (JMLR 2006).

Every held-out domain ranks the algorithms, 1 the best and ties in the middle of their places; a dataset's
ranks are the mean over its held-out domains, because those share most of their training data and are no
samples of their own.

Shapes: N datasets, k algorithms: ``rank_Nk``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dgharness.figures import Axes
from dgharness.report.statistics import ALPHA
from dgharness.report.table import Table

FEWEST_DATASETS = 5
Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # dataset -> held-out domain -> algorithm -> score


@dataclass(frozen=True)
class Ranks:
    """Average ranks, the best first; without a test where there are too few datasets for one."""

    mean: Mapping[str, float]  # algorithm -> its rank, averaged over datasets
    datasets: tuple[str, ...]
    domains: int  # held-out domains in all
    left_out: tuple[str, ...]  # algorithms that lack a number somewhere
    p: float | None = None  # Friedman's test: are all algorithms alike?
    critical_difference: float | None = None  # Nemenyi: between the average ranks of two algorithms

    @property
    def cliques(self) -> list[tuple[str, ...]]:
        """The largest groups, two or more neighbours each, that the critical difference does not part."""
        if self.critical_difference is None:
            return []
        names, found = list(self.mean), []
        last = 0
        for start, name in enumerate(names):
            limit = self.mean[name] + self.critical_difference
            end = max(n for n, other in enumerate(names) if self.mean[other] <= limit) + 1
            if end > last and end - start > 1:
                found.append(tuple(names[start:end]))
            last = max(last, end)
        return found

    def __str__(self) -> str:
        """The ranks in sentences, with what may be concluded from them."""
        named = ", ".join(f"{name} {rank:.2f}" for name, rank in self.mean.items())
        plural = "" if len(self.datasets) == 1 else "s"
        found = f"Average ranks over {self.domains} held-out domains of {len(self.datasets)} dataset{plural}"
        found += f" (1 is best, every dataset counts the same): {named}."
        if self.left_out:
            found += f" Left out, without a number for every held-out domain: {', '.join(self.left_out)}."
        if self.p is None or self.critical_difference is None:
            return (
                f"{found} No test and no critical-difference plot: domains of one dataset share training "
                "data, so that datasets are what counts, and fewer than "
                f"{FEWEST_DATASETS} tell no algorithms apart."
            )
        return (
            f"{found} Friedman's test that all are alike: p={self.p:.2g}. Two algorithms differ at p ≤ "
            f"{ALPHA:g} where their ranks are more than {self.critical_difference:.2f} apart (Nemenyi)."
        )


def scores(tables: Sequence[Table], rule: str) -> Values:
    """What the tables hold under one rule, larger is better; tables of one dataset are put together."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, table in enumerate(tables):
        for place, column in enumerate(table.columns):
            if column.kind != "result" or column.rule != rule:
                continue
            sign = 1 if column.unit == "percent" else -1  # an error is better small
            means = ((row.label, row.cells[place].mean) for row in table.rows)
            in_dataset = found.setdefault(table.block.dataset, {})
            in_dataset[f"{number} {column.name}"] = {
                label: sign * mean for label, mean in means if mean is not None
            }
    return found


def ranks(values: Values) -> Ranks | None:
    """Rank the algorithms that have a score everywhere; None with fewer than two of them.

    From FEWEST_DATASETS on, with the statistics of ``friedman_p`` and ``critical_difference``.
    """
    by_domain = [domain for domains in values.values() for domain in domains.values()]
    everyone = list(dict.fromkeys(name for domain in by_domain for name in domain))
    names = [name for name in everyone if all(name in domain for domain in by_domain)]
    if len(names) < 2:
        return None
    rank_Nk = np.array([_ranked(domains, names).mean(0) for domains in values.values()])
    in_order = sorted(zip(names, rank_Nk.mean(0).tolist(), strict=True), key=lambda pair: pair[1])
    enough = len(rank_Nk) >= FEWEST_DATASETS
    return Ranks(
        mean=dict(in_order),
        datasets=tuple(values),
        domains=len(by_domain),
        left_out=tuple(name for name in everyone if name not in names),
        p=friedman_p(rank_Nk) if enough else None,
        critical_difference=critical_difference(len(names), len(rank_Nk)) if enough else None,
    )


def friedman_p(rank_Nk: np.ndarray) -> float:
    """Friedman's test with ties: χ² of k - 1 degrees of freedom.

    χ² = (k - 1) Σ_j (Σ_i s_ij)² / Σ_ij s_ij², where s are the ranks less their mean; ranks may be averages.
    """
    from scipy.special import chdtrc

    k = rank_Nk.shape[1]
    centred_Nk = rank_Nk - (k + 1) / 2
    spread = float((centred_Nk**2).sum())
    if spread == 0:
        return 1.0
    return float(chdtrc(k - 1, (k - 1) * float((centred_Nk.sum(0) ** 2).sum()) / spread))


def critical_difference(algorithms: int, datasets: int, level: float = ALPHA) -> float:
    """Nemenyi: q · sqrt(k (k + 1) / (6 N)), q the quantile of the studentized range over sqrt(2).

    >>> round(critical_difference(4, 14), 2)  # Demšar 2006, section 3.2.2, rounds q to 2.569
    1.25
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, algorithms, np.inf)) / math.sqrt(2)
    return q * math.sqrt(algorithms * (algorithms + 1) / (6 * datasets))


def draw(found: Ranks, axes: Axes) -> None:
    """The critical-difference plot: ranks as points, and bars over those that it does not part."""
    names, places = list(found.mean), range(len(found.mean))
    axes.plot(list(found.mean.values()), places, "o", color="black")
    for name, place in zip(names, places, strict=True):
        axes.annotate(name, (found.mean[name], place), xytext=(6, 0), textcoords="offset points", va="center")
    for number, clique in enumerate(found.cliques):
        ends = [found.mean[clique[0]], found.mean[clique[-1]]]
        axes.plot(ends, [-0.8 - 0.4 * number] * 2, linewidth=4, solid_capstyle="butt", color="#7F7F7F")
    axes.set_title(f"Average ranks; bars join what differs by less than {found.critical_difference:.2f}")
    axes.set_xlabel("average rank (1 is best)")
    axes.set_xlim(0.8, len(names) + 0.8)
    axes.set_ylim(len(names) - 0.5, -1.2 - 0.4 * len(found.cliques))
    axes.set_yticks([])


def _ranked(domains: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """Ranks of the named algorithms on every held-out domain, 1 the best: ``[domains, k]``."""
    from scipy.stats import rankdata

    score = np.array([[domain[name] for name in names] for domain in domains.values()])
    return np.asarray(rankdata(-score, axis=1))
