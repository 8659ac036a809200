"""How far apart the domains are in the features of a trained network.

Shapes: N examples, D features, K domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.domain_predictability import readability
from dgharness.diagnostics.trained import Sample, Trained, need_domains, shown
from dgharness.distances import adaptive_kernel, moments, sinkhorn_divergence
from dgharness.figures import Figure, drawn, heat_map

EACH = 300  # examples of a domain
MOST_DOMAINS = 8  # 28 pairs
KERNELS = 5  # that ``adaptive_kernel`` sums
EPS = 0.05  # of the entropic transport, where two unrelated examples of one domain cost about 1
MEASURES = ("mmd", "coral", "sinkhorn", "a_distance")

CAPTION = (
    f"Distances between two domains in feature space, on at most {EACH} examples of each that were not "
    f"trained on and at most {MOST_DOMAINS} domains, each feature standardised over the training domains "
    "(one that is constant there is left out). mmd: squared maximum mean discrepancy, unbiased and so "
    "below 0 by chance where nothing differs, under the mean of five Gaussian kernels exp(-|a - b|^2 / "
    "(2^i s)), i = -2..2, where s is the mean squared distance over all the domains together. coral: |C - "
    "C'|_F^2 / (4 D^2) of their covariances (Sun and Saenko 2016). sinkhorn: debiased entropic optimal "
    f"transport at cost |a - b|^2 / (2 D), eps {EPS}: two domains one standard deviation apart in every "
    "feature are 1/2 apart. Both are above 0 by chance, and the more so the fewer the examples. "
    "a_distance: proxy A-distance 2 (1 - 2 err), err the balanced error on held-out examples (five folds) "
    "of a logistic regression that tells the two domains apart: about 0 where it guesses, 2 where it is "
    "never wrong."
)


def domain_distances(trained: Trained) -> Diagnosis:
    """Distances between every two domains in feature space; without a second domain NotApplicable."""
    sample = trained.sample
    need_domains(sample, "domain-distances")
    kept = _kept_domains(sample)
    z_ND = standardised(sample)
    parts = [z_ND[sample.domain_N == number][:EACH] for number in kept]
    found = distances(parts, seed=trained.seed)
    first, second = (np.array(kept)[found[side]] for side in ("first", "second"))
    names, trained_on = np.array(sample.domains), np.array(sample.trained_on, dtype=int)
    sides = np.array(["target-target", "train-target", "train-train"])
    table = pd.DataFrame(
        {
            "domain": names[first],
            "other": names[second],
            "part": sides[trained_on[first] + trained_on[second]],
            **{measure: found[measure] for measure in MEASURES},
        }
    )
    means = table.groupby("part")[list(MEASURES)].mean().to_dict("index")
    matrices = {measure: _matrix(found, measure, len(kept)) for measure in MEASURES}
    return Diagnosis(
        name="domain-distances",
        title=f"Distances between domains in feature space, checkpoint {trained.checkpoint}",
        caption=CAPTION,
        table=table,
        figure=partial(_figure, [str(name) for name in names[kept]], matrices),
        findings=tuple(_findings(table, means, len(sample.domains))),
        metrics={
            f"domain-distances/{part}/{measure}": float(value)
            for part, values in means.items()
            for measure, value in values.items()
        },
    )


def distances(parts: list[np.ndarray], *, seed: int = 0) -> pd.DataFrame:
    """Every measure for every two samples [N, D] of standardised features.

    Columns ``first`` and ``second`` (numbers of the samples) and ``MEASURES``.
    """
    tensors = [torch.from_numpy(part) for part in parts]
    mmd_KK = unbiased_mmd(tensors)
    rows = []
    for first, second in combinations(range(len(parts)), 2):
        x_ND, y_MD = tensors[first], tensors[second]
        scale = x_ND.shape[1] ** 0.5
        rows.append(
            {
                "first": first,
                "second": second,
                "mmd": float(mmd_KK[first, second]),
                "coral": coral_distance(x_ND, y_MD),
                "sinkhorn": float(sinkhorn_divergence(x_ND / scale, y_MD / scale, EPS)),
                "a_distance": proxy_a_distance(parts[first], parts[second], seed=seed),
            }
        )
    return pd.DataFrame(rows)


def unbiased_mmd(parts: list[Tensor]) -> Tensor:
    """Unbiased squared MMD [K, K] of every two samples, under kernels that suit all of them together.

    The diagonal is 0, and a sample of a single example is NaN from all others.
    """
    kernel_NN = adaptive_kernel(torch.cat(parts)) / KERNELS
    size_K = torch.tensor([len(part) for part in parts], dtype=kernel_NN.dtype)
    member_KN = torch.repeat_interleave(torch.eye(len(parts), dtype=kernel_NN.dtype), size_K.long(), dim=1)
    sum_KK = member_KN @ kernel_NN @ member_KN.T
    within_K = (sum_KK.diagonal() - size_K) / (size_K * (size_K - 1))  # an example is 1 to itself
    between_KK = sum_KK / (size_K[:, None] * size_K)
    mmd_KK = within_K[:, None] + within_K - 2 * between_KK
    return mmd_KK.fill_diagonal_(0)


def coral_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """Squared Frobenius distance of the unbiased covariances over 4 D^2 (Sun and Saenko 2016).

    >>> coral_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]]))  # variances 2 and 8
    9.0
    """
    (_, x_1DD), (_, y_1DD) = moments(x_ND[None]), moments(y_MD[None])
    return float((x_1DD - y_1DD).square().sum() / (4 * x_ND.shape[1] ** 2))


def proxy_a_distance(x_ND: np.ndarray, y_MD: np.ndarray, *, seed: int = 0) -> float:
    """2 (1 - 2 err) of a linear classifier on held-out examples; NaN where there are too few of them."""
    side = np.repeat([0, 1], [len(x_ND), len(y_MD)])
    right = readability(np.concatenate([x_ND, y_MD]), side, seed=seed).balanced_accuracy
    return 2 * (2 * right - 1)


def standardised(sample: Sample) -> np.ndarray:
    """Features [N, D] with mean 0 and variance 1 over the training domains; constant ones are left out."""
    reference = sample.features_ND[np.array(sample.trained_on)[sample.domain_N]]
    reference = reference if len(reference) else sample.features_ND
    mean_D, spread_D = reference.mean(0), reference.std(0)
    varies_D = spread_D > 1e-8 * max(1.0, float(np.abs(reference).max(initial=0)))
    return (sample.features_ND[:, varies_D] - mean_D[varies_D]) / spread_D[varies_D]


def _kept_domains(sample: Sample) -> list[int]:
    count_K = np.bincount(sample.domain_N, minlength=len(sample.domains)).tolist()
    counts = {name: count for name, count in zip(sample.domains, count_K, strict=True) if count > 1}
    trained_on = [name for name, seen in zip(sample.domains, sample.trained_on, strict=True) if seen]
    return [sample.domains.index(name) for name in shown(counts, trained_on, MOST_DOMAINS)]


def _matrix(table: pd.DataFrame, measure: str, domains: int) -> np.ndarray:
    value_KK = np.zeros((domains, domains))
    value_KK[table["first"], table["second"]] = table[measure]
    return value_KK + value_KK.T


def _findings(table: pd.DataFrame, means: dict[Any, dict[Any, float]], domains: int) -> Iterator[str]:
    if domains > MOST_DOMAINS:
        yield f"Of {domains} domains {MOST_DOMAINS} are shown, those with most examples."
    if {"train-train", "train-target"} <= set(means):
        for measure in MEASURES:
            yield (
                f"{measure}: {means['train-target'][measure]:.3g} from a training domain to a target on "
                f"average, {means['train-train'][measure]:.3g} between two training domains."
            )
    told_apart = table.dropna(subset="a_distance").sort_values("a_distance").to_dict("records")[-1:]
    for row in told_apart:
        yield (
            f"{row['domain']} and {row['other']} are told apart best: proxy A-distance "
            f"{row['a_distance']:.3g} of at most 2."
        )


def _figure(names: list[str], matrices: dict[str, np.ndarray]) -> Figure:
    side = max(3.0, 1.6 + 0.4 * len(names))
    figure, axes = drawn(2, 2, width=side + 0.8, height=side)
    for axis, (measure, value_KK) in zip(axes, matrices.items(), strict=True):
        heat_map(axis, value_KK, names, names, top=2.0 if measure == "a_distance" else None)
        axis.set_title(measure.replace("_", " "))
    return figure
