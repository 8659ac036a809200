"""Style: how alike the examples of a class are within a domain (ICV), and how unlike domains are (IDD).

Paper: Luo et al., Grounding Stylistic Domain Generalization with Quantitative Domain Shift Measures and
    Synthetic Scene Images, CVPR Workshops 2024, arXiv:2405.15961
Our reading: the paper builds both on the Jensen-Shannon divergence; the formulas here are our own.
Trust: unverified

Shapes: N examples, D features, C classes, K domains.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.label_shift import jensen_shannon
from dgharness.diagnostics.tracked import SEALED
from dgharness.diagnostics.trained import SAMPLED, Trained, need_classes, need_domains
from dgharness.figures import Figure, drawn, heat_map

CAPTION = (
    "Our reading of ICV and IDD (arXiv:2405.15961), whose exact formulas we could not verify: compare "
    "these numbers with one another and not with published ones. p_i is the softmax of the features of "
    "example i, P_dc their mean over class c in domain d, and JS the Jensen-Shannon divergence in nats, at "
    "most log 2 = 0.693. icv_js of a domain: the mean of JS(p_i, P_dc) over its examples, small where the "
    "examples of a class are alike; idd_js of two domains: JS of their means over the classes that both "
    "have, large where the domains are unlike. The features are those of the run's own network, and "
    f"numbers of two networks cannot be compared. {SAMPLED} {SEALED}"
)


def style(trained: Trained) -> Diagnosis:
    """ICV of every domain and IDD of every two; without classes or a second domain NotApplicable."""
    need_classes(trained, "style")
    sample = trained.sample
    need_domains(sample, "style")
    class_N = trained.dataset.targets_M.numpy()[sample.row_N]
    p_ND = softmax(sample.features_ND)
    mean_KCD, count_KC = class_means(
        p_ND, sample.domain_N, class_N, len(sample.domains), len(trained.classes)
    )
    icv_K = icv_js(p_ND, sample.domain_N, class_N, mean_KCD)
    idd_KK = idd_js(mean_KCD, count_KC)
    table = pd.DataFrame(
        {
            "domain": sample.domains,
            "part": ["train" if trained_on else "target" for trained_on in sample.trained_on],
            "examples": count_KC.sum(1).astype(int),
            "icv_js": icv_K,
            **{f"idd_js to {name}": idd_K for name, idd_K in zip(sample.domains, idd_KK.T, strict=True)},
        }
    )
    apart_P = idd_KK[np.triu_indices(len(idd_KK), 1)]
    findings = [
        f"Examples are {np.nanmean(icv_K):.3g} nats from their class's mean, on average over the domains."
    ]
    metrics = {"style/icv_js_mean": float(np.nanmean(icv_K))}
    if not np.isnan(apart_P).all():
        first, second = np.unravel_index(np.nanargmax(np.triu(idd_KK, 1)), idd_KK.shape)
        findings.append(
            f"{sample.domains[first]} and {sample.domains[second]} are the least alike in style: "
            f"idd_js {idd_KK[first, second]:.3g}, of {np.nanmean(apart_P):.3g} on average."
        )
        metrics["style/idd_js_mean"] = float(np.nanmean(apart_P))
    return Diagnosis(
        name="style",
        title=f"Style within and between domains (icv_js, idd_js), checkpoint {trained.checkpoint}",
        caption=CAPTION,
        table=table,
        figure=partial(_figure, sample.domains, icv_K, idd_KK),
        findings=tuple(findings),
        metrics=metrics,
    )


def softmax(z_ND: np.ndarray) -> np.ndarray:
    """Features as distributions over the features.

    >>> softmax(np.array([[0.0, 0.0], [1000.0, 0.0]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    from scipy.special import softmax as over

    return over(z_ND, axis=1)


def class_means(
    p_ND: np.ndarray, domain_N: np.ndarray, class_N: np.ndarray, domains: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [K, C, D] of each class in each domain, NaN of none, and how many examples it has [K, C]."""
    known_N = class_N >= 0
    cell_N = domain_N[known_N] * classes + class_N[known_N]
    member = np.zeros((domains * classes, len(cell_N)))
    member[cell_N, np.arange(len(cell_N))] = 1
    count_KC = member.sum(1)
    with np.errstate(invalid="ignore"):
        mean_KCD = member @ p_ND[known_N] / count_KC[:, None]
    return mean_KCD.reshape(domains, classes, -1), count_KC.reshape(domains, classes)


def icv_js(p_ND: np.ndarray, domain_N: np.ndarray, class_N: np.ndarray, mean_KCD: np.ndarray) -> np.ndarray:
    """Mean divergence [K] of the examples of a domain from the mean of their class there; NaN of none."""
    known_N = class_N >= 0
    p_ND, domain_N, class_N = p_ND[known_N], domain_N[known_N], class_N[known_N]
    apart_N = jensen_shannon(p_ND, mean_KCD[domain_N, class_N])
    count_K = np.bincount(domain_N, minlength=len(mean_KCD))
    with np.errstate(invalid="ignore"):
        return np.bincount(domain_N, apart_N, minlength=len(mean_KCD)) / count_K


def idd_js(mean_KCD: np.ndarray, count_KC: np.ndarray) -> np.ndarray:
    """Divergence [K, K] of the domains' means over the classes that both have; NaN where they share none."""
    both_KKC = (count_KC[:, None] > 0) & (count_KC[None] > 0)
    filled_KCD = np.nan_to_num(mean_KCD)
    with np.errstate(invalid="ignore"):
        shared_KKC = both_KKC / both_KKC.sum(-1, keepdims=True)
    first_KKD = np.einsum("klc,kcd->kld", shared_KKC, filled_KCD)
    return jensen_shannon(first_KKD, first_KKD.swapaxes(0, 1))


def _figure(domains: tuple[str, ...], icv_K: np.ndarray, idd_KK: np.ndarray) -> Figure:
    side = max(3.0, 1.6 + 0.4 * len(domains))
    figure, (within, between) = drawn(1, 2, width=side + 0.8, height=side)
    within.barh(range(len(domains)), icv_K)
    within.set_yticks(range(len(domains)), domains)
    within.invert_yaxis()
    within.set_title("icv_js: within a class")
    heat_map(between, idd_KK, domains, domains)
    between.set_title("idd_js: between domains")
    return figure
