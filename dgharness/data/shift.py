"""How far the training data are from balance, in the four kinds of subpopulation shift.

A is an attribute, Y the label, H an entropy and I their mutual information, over the training examples at
which both are known; |A| and |Y| count the values that occur there.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023

Shapes: M rows of the manifest, L of them looked at, A values of an attribute, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset

NO_ATTRIBUTES = ("y", "domain", "split")


def shift_measures(dataset: Dataset, split: str = "train") -> dict[str, Any]:
    """Each kind of shift as a number from 0 (none) to 1; empty without classes or without attributes.

    ``class_imbalance`` is 1 - H(Y) / log |Y|, and under ``attributes`` stand for each of them

    - ``spurious_correlation``: 2 I(A; Y) / (H(A) + H(Y));
    - ``attribute_imbalance``: 1 - H(A) / log |A|;
    - ``attribute_generalization``: the share of the test examples whose value does not occur in ``split``,
      and ``unseen``: those values; ``unseen_with_class``: the share of those whose value does not occur there
      together with their class. Only where the dataset has a split of its own.

    A number that is undefined, because at most one value is known, is None. Without a split, all rows count.
    """
    manifest = dataset.manifest
    categorical = manifest.select_dtypes("category").columns
    attributes = [name for name in categorical if name not in NO_ATTRIBUTES]
    if dataset.task.name != "classification" or not attributes:
        return {}
    rows, tested = manifest, None
    if "split" in manifest:
        rows, tested = manifest[manifest["split"] == split], manifest[manifest["split"] == "test"]
    y_L = rows["y"].cat.codes.to_numpy()
    found: dict[str, Any] = {"class_imbalance": imbalance(y_L), "attributes": {}}
    for name in attributes:
        a_L = rows[name].cat.codes.to_numpy()
        found["attributes"][name] = {
            "spurious_correlation": spurious_correlation(a_L, y_L),
            "attribute_imbalance": imbalance(a_L),
        }
        if tested is not None:
            found["attributes"][name] |= _generalization(rows[name], tested[name])
            found["attributes"][name]["unseen_with_class"] = _unseen_with_class(rows, tested, name)
    return found


def described(measures: dict[str, Any]) -> list[str]:
    """A line for the classes and one for every attribute, none for no measures.

    >>> described({"class_imbalance": 0.5, "attributes": {"place": {"spurious_correlation": None}}})
    ['class imbalance 0.5', 'place: spurious correlation undefined']
    >>> described({})
    []
    """
    lines = [f"class imbalance {_number(measures['class_imbalance'])}"] if measures else []
    for name, found in measures.get("attributes", {}).items():
        numbers = [f"{key.replace('_', ' ')} {_number(found[key])}" for key in found if key != "unseen"]
        unseen = found.get("unseen", [])
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        numbers += [f"unseen in training {', '.join(unseen[:3])}{more}"] if unseen else []
        lines.append(f"{name}: {', '.join(numbers)}")
    return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def spurious_correlation(a_L: np.ndarray, y_L: np.ndarray) -> float | None:
    """Normalised mutual information of two columns of codes, -1 unknown.

    >>> spurious_correlation(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    1.0
    >>> spurious_correlation(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    0.0
    """
    known_L = (a_L >= 0) & (y_L >= 0)
    if not known_L.any():
        return None
    a_L, y_L = a_L[known_L].astype(np.int64), y_L[known_L].astype(np.int64)
    classes = int(y_L.max()) + 1
    count_AC = np.bincount(a_L * classes + y_L, minlength=(int(a_L.max()) + 1) * classes).reshape(-1, classes)
    of_a, of_y = entropy(count_AC.sum(1)), entropy(count_AC.sum(0))
    shared = of_a + of_y - entropy(count_AC.ravel())
    return max(0.0, 2 * shared / (of_a + of_y)) if of_a and of_y else None  # 0 may come out as -1e-17


def imbalance(code_L: np.ndarray) -> float | None:
    """How far the known values (codes, -1 unknown) are from equally frequent.

    >>> imbalance(np.array([0, 0, 1, 1])), round(imbalance(np.array([0, 0, 0, 1, -1])), 4)
    (0.0, 0.1887)
    >>> imbalance(np.arange(3))
    0.0
    """
    count = np.bincount(code_L[code_L >= 0])
    values = np.count_nonzero(count)
    if values < 2:
        return None
    return max(0.0, round(1 - entropy(count) / float(np.log(values)), 12))  # beyond that it is rounding


def entropy(count: np.ndarray) -> float:
    """In nats, of counts.

    >>> round(entropy(np.array([2, 0, 2])), 4)
    0.6931
    """
    p = count[count > 0] / count.sum()
    return float(-(p * np.log(p)).sum())


def _generalization(trained: pd.Series, tested: pd.Series) -> dict[str, Any]:
    counts, known = tested.value_counts(sort=False), trained.value_counts(sort=False)
    if not counts.sum() or not known.sum():  # nobody noted it there
        return {"attribute_generalization": None, "unseen": []}
    unseen = counts[(counts > 0) & (known == 0)]
    return {
        "attribute_generalization": float(unseen.sum() / counts.sum()),
        "unseen": [str(value) for value in unseen.index],
    }


def _unseen_with_class(trained: pd.DataFrame, tested: pd.DataFrame, name: str) -> float | None:
    known, asked = (part[["y", name]].dropna() for part in (trained, tested))
    if not len(known) or not len(asked):
        return None
    seen = pd.MultiIndex.from_frame(asked).isin(pd.MultiIndex.from_frame(known.drop_duplicates()))
    return float(1 - seen.mean())
