"""How strongly attributes go with the label, in training and in every domain.

A is an attribute, Y the label, H an entropy in nats and I their mutual information.

Shapes: L examples, A values of an attribute, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset
from dgharness.data.protocols import Splits
from dgharness.data.shift import imbalance, spurious_correlation
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.tracked import SEALED
from dgharness.diagnostics.trained import Trained, attributes, need_classes
from dgharness.figures import Figure, drawn, look
from dgharness.names import slug

NAMED = 5  # targets in a sentence
LOST = 0.1  # of its accuracy, which is worth a sentence

CAPTION = (
    "Subpopulation shift by its four kinds (Yang et al., Change is Hard, ICML 2023), of each attribute A "
    "and of the domain itself, in training rows and, of targets, in test rows. spurious_correlation: 2 "
    "I(A; Y) / (H(A) + H(Y)), 0 where A says nothing of the label and 1 where each tells the other; "
    "attribute_imbalance: 1 - H(A) / log |A|; class_imbalance: 1 - H(Y) / log |Y|; unseen: the share of a "
    "target's examples whose value does not occur in training (attribute generalisation). The correlation "
    "has no sign. rule_accuracy gives it one: the share of examples that are right under the rule 'of each "
    "value the class most frequent with it in training'. phi is the correlation coefficient of two columns "
    "of two "
    "values; that it changes its sign between domains means something, the sign itself does not. " + SEALED
)


def spurious_strength(trained: Trained) -> Diagnosis:
    """Strength of spurious correlations in the data of a run; without classes NotApplicable."""
    need_classes(trained, "spurious-strength")
    table = strengths(trained.dataset, trained.splits)
    pooled = table[table["part"] == "train"].set_index("attribute")
    metrics = {
        f"spurious-strength/{slug(str(name))}": float(value)
        for name, value in pooled["spurious_correlation"].items()
        if pd.notna(value)
    }
    return Diagnosis(
        name="spurious-strength",
        title=f"Attributes and labels of {trained.dataset.name}",
        caption=CAPTION,
        table=table,
        figure=partial(_figure, table),
        findings=tuple(_findings(table)),
        metrics=metrics,
    )


def strengths(dataset: Dataset, splits: Splits) -> pd.DataFrame:
    """A row for every attribute, and ``domain``, in all of the training rows, each domain and each target.

    Columns as in ``CAPTION``; what is undefined, because one value alone is known, is NaN.
    """
    y_M = dataset.manifest["y"].cat.codes.to_numpy(np.int64)
    train = splits.rows["train"]
    seen = np.concatenate(list(train.values()))
    parts = [("train", "all", seen)]
    parts += [("train domain", name, rows) for name, rows in train.items()]
    parts += [("target", name, rows) for name, rows in splits.rows["test"].items()]
    rows = []
    for attribute, column in {**attributes(dataset), "domain": dataset.manifest["domain"]}.items():
        a_M = column.cat.codes.to_numpy(np.int64)
        rule_A = majority_rule(a_M[seen], y_M[seen], len(column.cat.categories))
        known = np.unique(a_M[seen])
        for part, name, index in parts:
            if attribute == "domain" and part != "train":
                continue  # one value there
            a_L, y_L = a_M[index], y_M[index]
            found = {
                "attribute": attribute,
                "part": part,
                "domain": name,
                "examples": len(index),
                "spurious_correlation": spurious_correlation(a_L, y_L),
                "phi": phi(a_L, y_L),
                "rule_accuracy": rule_accuracy(rule_A, a_L, y_L),
                "attribute_imbalance": imbalance(a_L),
                "class_imbalance": imbalance(y_L),
                "unseen": _share_unseen(a_L, known) if part == "target" else None,
            }
            rows.append(found)
    table = pd.DataFrame(rows)
    numbers = table.columns.drop(["attribute", "part", "domain", "examples"])
    return table.astype(dict.fromkeys(numbers, float))


def majority_rule(a_L: np.ndarray, y_L: np.ndarray, values: int) -> np.ndarray:
    """The class [A] most frequent with every value, -1 for a value that does not occur.

    >>> majority_rule(np.array([0, 0, 0, 1, -1]), np.array([1, 1, 0, 0, 1]), 3)
    array([ 1,  0, -1])
    """
    known_L = (a_L >= 0) & (y_L >= 0)
    count_AC = np.zeros((values, max(int(y_L.max(initial=0)), 0) + 1))
    np.add.at(count_AC, (a_L[known_L], y_L[known_L]), 1)
    return np.where(count_AC.any(1), count_AC.argmax(1), -1)


def rule_accuracy(rule_A: np.ndarray, a_L: np.ndarray, y_L: np.ndarray) -> float | None:
    """Share of the examples, of those that the rule speaks of, whose class it gives; None of none.

    >>> rule_accuracy(np.array([1, 0, -1]), np.array([0, 0, 1, 2, -1]), np.array([1, 0, 0, 0, 0]))
    0.6666666666666666
    """
    asked_L = (a_L >= 0) & (y_L >= 0)
    asked_L[asked_L] = rule_A[a_L[asked_L]] >= 0
    return float((rule_A[a_L[asked_L]] == y_L[asked_L]).mean()) if asked_L.any() else None


def phi(a_L: np.ndarray, y_L: np.ndarray) -> float | None:
    """Correlation coefficient of two columns of codes 0 and 1 (-1 unknown), in [-1, 1]; else None.

    >>> phi(np.array([0, 0, 1, 1, -1]), np.array([1, 1, 0, 0, 0]))
    -1.0
    """
    known_L = (a_L >= 0) & (y_L >= 0)
    a_L, y_L = a_L[known_L], y_L[known_L]
    if set(a_L) != {0, 1} or set(y_L) != {0, 1}:
        return None
    return float(np.clip(np.corrcoef(a_L, y_L)[0, 1], -1, 1))


def _share_unseen(a_L: np.ndarray, known: np.ndarray) -> float | None:
    asked_L = a_L[a_L >= 0]
    return float((~np.isin(asked_L, known)).mean()) if len(asked_L) else None


def _findings(table: pd.DataFrame) -> Iterator[str]:
    pooled = table[table["part"] == "train"].to_dict("records")
    if [row["attribute"] for row in pooled] == ["domain"]:
        yield (
            "The data name no attribute, so that the domain alone can be looked at; name columns as "
            "attributes, see domain-predictability for what the features hold of the domain, or have "
            "groups found by an annotator such as eiil."
        )
    for row in pooled:
        name, accuracy = row["attribute"], row["rule_accuracy"]
        if math.isnan(row["spurious_correlation"]):
            yield f"{name}: it has a single known value in training, or the label has."
            continue
        yield (
            f"{name}: normalised mutual information {row['spurious_correlation']:.3f} with the label in "
            f"training; the rule by {name} alone is right for {accuracy:.0%} of it."
        )
        targets = table[(table["attribute"] == name) & (table["part"] == "target")]
        lost = targets[targets["rule_accuracy"] < accuracy - LOST]
        shares = [
            f"{share:.0%} of {domain}"
            for domain, share in zip(lost["domain"], lost["rule_accuracy"], strict=True)
        ]
        if shares:
            more = f" and of {len(shares) - NAMED} targets more" if len(shares) > NAMED else ""
            yield f"{name}: the same rule is right for only {', '.join(shares[:NAMED])}{more}."


def _figure(table: pd.DataFrame) -> Figure:
    apart = table[table["attribute"] != "domain"]
    shown = apart if len(apart) else table
    figure, axes = drawn(1, 2, width=4.5)
    looks = look(list(dict.fromkeys(shown["attribute"])))
    for axis, column, title in zip(
        axes,
        ("spurious_correlation", "rule_accuracy"),
        ("Normalised mutual information", "Accuracy of training's rule"),
        strict=True,
    ):
        for name, rows in shown.groupby("attribute", sort=False):
            places = [
                "train" if row["part"] == "train" else f"{row['domain']} ({row['part']})"
                for row in rows.to_dict("records")
            ]
            colour, marker = looks[str(name)]
            axis.plot(rows[column], places, color=colour, marker=marker, linestyle="", label=str(name))
        axis.set_title(title)
        axis.set_xlim(-0.03, 1.03)
        axis.invert_yaxis()
    axes[0].legend()
    return figure
