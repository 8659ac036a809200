"""How the labels of every domain differ from those that were trained on.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.tracked import SEALED
from dgharness.diagnostics.trained import Trained
from dgharness.errors import NotApplicable
from dgharness.figures import COLOURS, Figure, drawn, heat_map
from dgharness.names import slugs

CLASSES = (
    "The distribution of the labels in every training domain (training rows) and every target (test rows), "
    "and how far it is from that of the pooled training rows q: total variation sum |p - q| / 2, "
    "Kullback-Leibler divergence sum p log(p / q) (infinite where q lacks a class), and Jensen-Shannon "
    "divergence, the mean divergence of p and q from (p + q) / 2, at most log 2; in nats. A training "
    "domain is part of q itself. " + SEALED
)
NUMBERS = (
    "The labels of every training domain (training rows) and every target (test rows), and the Wasserstein-1 "
    "distance of their distribution from that of the pooled training rows: in the unit of the label, and "
    "divided by the standard deviation of the pooled training labels. A training domain is part of the pool "
    "itself. " + SEALED
)


def label_shift(trained: Trained) -> Diagnosis:
    """Label distributions by domain against the pooled training domains; of classes or of numbers."""
    dataset, splits = trained.dataset, trained.splits
    y_M = dataset.targets_M.numpy()
    if y_M.ndim > 1 or dataset.task.name not in ("classification", "regression"):
        raise NotApplicable(
            f"label-shift needs one class or number of each example, and {dataset.name} is "
            f"{dataset.task.name}"
        )
    known_M = y_M >= 0 if trained.classes else ~np.isnan(y_M)
    parts = [("train", name, rows) for name, rows in splits.rows["train"].items()]
    parts += [("target", name, rows) for name, rows in splits.rows["test"].items()]
    labels = [(part, name, y_M[rows[known_M[rows]]]) for part, name, rows in parts]
    labels = [(part, name, y_L) for part, name, y_L in labels if len(y_L)]
    pool_L = np.concatenate([y_L for part, _, y_L in labels if part == "train"])
    table = pd.DataFrame(
        [
            {"part": part, "domain": name, "examples": len(y_L)}
            | (_of_classes(y_L, pool_L, trained.classes) if trained.classes else _of_numbers(y_L, pool_L))
            for part, name, y_L in labels
        ]
    )
    measure = "total_variation" if trained.classes else "wasserstein"
    slug_of = slugs(table["domain"])
    return Diagnosis(
        name="label-shift",
        title="Labels by domain",
        caption=CLASSES if trained.classes else NUMBERS,
        table=table,
        figure=partial(_shares, table, trained.classes) if trained.classes else partial(_curves, labels),
        findings=tuple(_findings(table, measure)),
        metrics={
            f"label-shift/{measure}/{slug_of[row['domain']]}": row[measure]
            for row in table[table["part"] == "target"].to_dict("records")
        },
    )


def total_variation(p_C: np.ndarray, q_C: np.ndarray) -> float:
    """Half the sum of absolute differences, in [0, 1].

    >>> total_variation(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    0.5
    """
    return float(np.abs(p_C - q_C).sum() / 2)


def kullback_leibler(p_C: np.ndarray, q_C: np.ndarray) -> np.ndarray:
    """Divergence [...] in nats of distributions p [..., C] from q; infinite where q lacks what p has.

    >>> kullback_leibler(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])).round(4)
    array([0.6931])
    """
    from scipy.special import rel_entr

    return rel_entr(p_C, q_C).sum(-1)


def jensen_shannon(p_C: np.ndarray, q_C: np.ndarray) -> np.ndarray:
    """Mean divergence [...] in nats of two distributions [..., C] from the one midway, in [0, log 2].

    >>> jensen_shannon(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).round(4)
    array([0.6931])
    """
    middle_C = (p_C + q_C) / 2
    return (kullback_leibler(p_C, middle_C) + kullback_leibler(q_C, middle_C)) / 2


def _of_classes(y_L: np.ndarray, pool_L: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    p_C = np.bincount(y_L, minlength=len(classes)) / len(y_L)
    q_C = np.bincount(pool_L, minlength=len(classes)) / len(pool_L)
    return {
        "total_variation": total_variation(p_C, q_C),
        "kullback_leibler": float(kullback_leibler(p_C, q_C)),
        "jensen_shannon": float(jensen_shannon(p_C, q_C)),
        **{f"share {name}": float(share) for name, share in zip(classes, p_C, strict=True)},
    }


def _of_numbers(y_L: np.ndarray, pool_L: np.ndarray) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    distance, spread = float(wasserstein_distance(y_L, pool_L)), float(pool_L.std())
    return {
        "wasserstein": distance,
        "wasserstein_scaled": distance / spread if spread else float("nan"),
        "mean": float(y_L.mean()),
        "standard_deviation": float(y_L.std()),
    }


def _findings(table: pd.DataFrame, measure: str) -> Iterator[str]:
    farthest = table.loc[table["part"] == "train", measure].max()
    for row in table[table["part"] == "target"].to_dict("records"):
        yield (
            f"{row['domain']}: {measure.replace('_', ' ')} {row[measure]:.3g} from the pooled training "
            f"labels; of the training domains at most {farthest:.3g}."
        )
        if row.get("kullback_leibler") == np.inf:
            yield f"{row['domain']} has classes that the training domains lack."


def _shares(table: pd.DataFrame, classes: tuple[str, ...]) -> Figure:
    rows = [f"{row['domain']} ({row['part']})" for row in table.to_dict("records")]
    figure, (axes,) = drawn(width=max(4.0, 2 + 0.5 * len(classes)), height=max(2.0, 1 + 0.35 * len(rows)))
    heat_map(axes, table[[f"share {name}" for name in classes]].to_numpy(), rows, classes)
    axes.set_title("Share of each class")
    return figure


def _curves(labels: list[tuple[str, str, np.ndarray]]) -> Figure:
    figure, (axes,) = drawn()
    for number, (part, name, y_L) in enumerate(labels):
        line = "-" if part == "train" else "--"
        axes.ecdf(y_L, color=COLOURS[number % len(COLOURS)], linestyle=line, label=f"{name} ({part})")
    axes.set(xlabel="label", ylabel="share below", title="Distribution of the labels")
    if len(labels) <= len(COLOURS):
        axes.legend()
    return figure
