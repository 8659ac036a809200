"""How well the domain, and every attribute, can be read from the features of a trained network.

Shapes: N examples, D features, F folds, K values of what is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.diagnostics.tracked import SEALED
from dgharness.diagnostics.trained import SAMPLED, Trained, attributes, need_domains
from dgharness.figures import COLOURS, Figure, drawn
from dgharness.names import slug

FOLDS = 5
CLEARLY = 2.8  # standard errors: 95 % of Student's t with as many degrees of freedom as folds less one
MOST_VALUES = 20  # of an attribute; what has more is a name rather than a property

CAPTION = (
    "What a multinomial logistic regression (L2, C = 1, all values weighted alike) reads from the "
    "features, each standardised by the examples fitted on: balanced accuracy, the mean of the recalls, "
    f"over {FOLDS} stratified folds, with the standard error over the folds, which does not count that they "
    "share examples. Chance is 1/K for K values, however unequal their sizes. within_class: the same among "
    "the examples of one class, averaged over the classes by their examples; it leaves out what the label "
    "alone tells of the domain, sees what differs between domains within a class, and has fewer examples "
    "to learn from. label: how well the class can be read, which should remain when the domain is gone. "
    f"{SAMPLED} Values with fewer than {FOLDS} examples and attributes of more than {MOST_VALUES} values "
    f"are left out. {SEALED}"
)


@dataclass(frozen=True)
class Readability:
    """A balanced accuracy over folds, its standard error, and what guessing gives; NaN of nothing."""

    balanced_accuracy: float
    standard_error: float
    chance: float
    values: int
    examples: int


NOTHING = Readability(float("nan"), float("nan"), float("nan"), 0, 0)


def domain_predictability(trained: Trained) -> Diagnosis:
    """How well domain, attributes and label can be read from the features; two domains are needed."""
    sample = trained.sample
    need_domains(sample, "domain-predictability")
    nuisances = {"domain": sample.domain_N}
    if 1 < sum(sample.trained_on) < len(sample.domains):
        trained_on_N = np.array(sample.trained_on)[sample.domain_N]
        nuisances["training domain"] = np.where(trained_on_N, sample.domain_N, -1)
    for name, column in attributes(trained.dataset).items():
        if len(column.cat.categories) <= MOST_VALUES:
            nuisances[name] = column.cat.codes.to_numpy(np.int64)[sample.row_N]
    class_N = trained.dataset.targets_M.numpy()[sample.row_N] if trained.classes else None
    table = readable(sample.features_ND, nuisances, class_N, seed=trained.seed)
    metrics = {
        f"domain-predictability/{slug(row['read'])}/{number}": row[number]
        for row in table.to_dict("records")
        for number in ("balanced_accuracy", "within_class")
        if not np.isnan(row[number])
    }
    return Diagnosis(
        name="domain-predictability",
        title=f"What can be read from the features, checkpoint {trained.checkpoint}",
        caption=CAPTION,
        table=table,
        figure=partial(_figure, table),
        findings=tuple(_findings(table)),
        metrics=metrics,
    )


def readable(
    z_ND: np.ndarray, nuisances: Mapping[str, np.ndarray], class_N: np.ndarray | None, *, seed: int = 0
) -> pd.DataFrame:
    """A row for every nuisance, and one for the label where there are classes; codes are -1 where unknown."""
    rows = []
    for name, a_N in {**nuisances, **({} if class_N is None else {"label": class_N})}.items():
        found, within = readability(z_ND, a_N, seed=seed), NOTHING
        if class_N is not None and name != "label":
            within = readability_within(z_ND, a_N, class_N, seed=seed)
        rows.append(
            {
                "read": name,
                "values": found.values,
                "examples": found.examples,
                "balanced_accuracy": found.balanced_accuracy,
                f"{SPREAD}balanced_accuracy": found.standard_error,
                "chance": found.chance,
                "within_class": within.balanced_accuracy,
                f"{SPREAD}within_class": within.standard_error,
                "within_class_chance": within.chance,
            }
        )
    return pd.DataFrame(rows)


def readability(z_ND: np.ndarray, a_N: np.ndarray, *, folds: int = FOLDS, seed: int = 0) -> Readability:
    """Cross-validated balanced accuracy of reading codes (-1 unknown) from features.

    Values with fewer examples than folds are left out; of fewer than two values it is ``NOTHING``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    usable_N = np.isin(a_N, [value for value, count in zip(*_counts(a_N), strict=True) if count >= folds])
    z_ND, a_N = z_ND[usable_N], a_N[usable_N]
    values = len(np.unique(a_N))
    if values < 2:
        return NOTHING
    reader = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-3)
    )
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    score_F = [
        balanced_accuracy_score(a_N[held], reader.fit(z_ND[fitted], a_N[fitted]).predict(z_ND[held]))
        for fitted, held in split.split(z_ND, a_N)
    ]
    error = np.std(score_F, ddof=1) / np.sqrt(folds)
    return Readability(float(np.mean(score_F)), float(error), 1 / values, values, len(a_N))


def readability_within(
    z_ND: np.ndarray, a_N: np.ndarray, class_N: np.ndarray, *, folds: int = FOLDS, seed: int = 0
) -> Readability:
    """As ``readability`` among the examples of each class, averaged by their number."""
    by_class = [
        readability(z_ND[class_N == c], a_N[class_N == c], folds=folds, seed=seed)
        for c in np.unique(class_N[class_N >= 0])
    ]
    found = [one for one in by_class if one.examples]
    if not found:
        return NOTHING
    examples = np.array([one.examples for one in found])
    share = examples / examples.sum()
    return Readability(
        float(share @ [one.balanced_accuracy for one in found]),
        float(np.sqrt(share**2 @ np.square([one.standard_error for one in found]))),
        float(share @ [one.chance for one in found]),
        max(one.values for one in found),
        int(examples.sum()),
    )


def _counts(a_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(a_N[a_N >= 0], return_counts=True)


def _findings(table: pd.DataFrame) -> Iterator[str]:
    for row in table.to_dict("records"):
        if not row["examples"]:
            yield f"{row['read']} cannot be read: fewer than two values of it have {FOLDS} examples."
            continue
        found = row["balanced_accuracy"] > row["chance"] + CLEARLY * row[f"{SPREAD}balanced_accuracy"]
        within = row["within_class"]
        yield (
            f"{row['read']} is {'' if found else 'not '}read from the "
            f"features{'' if found else ' beyond chance'}: balanced accuracy {row['balanced_accuracy']:.3f} "
            f"± {row[f'{SPREAD}balanced_accuracy']:.3f}, chance {row['chance']:.3f}"
            + (
                "."
                if np.isnan(within)
                else f"; within a class {within:.3f}, chance {row['within_class_chance']:.3f}."
            )
        )


def _figure(table: pd.DataFrame) -> Figure:
    figure, (axes,) = drawn(height=0.8 + 0.5 * len(table))
    place = np.arange(len(table))
    for name, prefix, shift, colour, label in (
        ("balanced_accuracy", "", -0.18, COLOURS[0], "balanced accuracy"),
        ("within_class", "within_class_", 0.18, COLOURS[4], "within a class"),
    ):
        spread = table[f"{SPREAD}{name}"]
        axes.barh(place + shift, table[name], 0.34, xerr=spread, color=colour, label=label)
        axes.plot(table[f"{prefix}chance"], place + shift, "|", color="black", markersize=14)
    axes.plot([], [], "|", color="black", label="chance")
    axes.set_yticks(place, table["read"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("Balanced accuracy of reading it from the features")
    return figure
