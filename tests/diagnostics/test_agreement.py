"""Agreement of runs, and the accuracies that it foretells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dgharness.diagnostics.agreement import (
    Agreement,
    Pairs,
    agreement,
    agreement_line,
    aline_d,
    aline_s,
    joined,
    pairs_of,
)
from dgharness.diagnostics.line import scaled, unscaled
from dgharness.predictions import Predictions


def predictions(
    classes: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor | None = None
) -> Predictions:
    n = len(rows)
    return Predictions(
        task="classification",
        row_N=rows,
        split_N=np.full(n, "test"),
        outputs_NC=torch.nn.functional.one_hot(classes, 4).float(),
        targets=classes if targets is None else targets,
        domain_N=torch.zeros(n, dtype=torch.long),
        domains=("a",),
        group=torch.zeros(n, dtype=torch.long),
        groups=("all",),
    )


def test_agreement_is_the_share_of_shared_rows_on_which_two_predict_the_same():
    chance = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (3, 200), generator=chance)
    order = torch.randperm(200, generator=chance)
    runs = [
        predictions(classes[0], torch.arange(200)),
        predictions(classes[1][order], order),  # in another order
        predictions(classes[2][:120], torch.arange(120)),  # of fewer rows
    ]
    found = agreement(runs)
    same = (classes[:, None] == classes[None]).float()
    assert found.agreement_RR[0, 1] == pytest.approx(same[0, 1].mean().item())
    assert found.agreement_RR[0, 2] == pytest.approx(same[0, 2, :120].mean().item())
    assert found.shared_RR.tolist() == [[200, 200, 120], [200, 200, 120], [120, 120, 120]]
    assert np.diag(found.agreement_RR) == pytest.approx(1)


def test_accuracy_is_over_the_runs_own_rows():
    classes = torch.tensor([0, 1, 2, 3] * 10)
    found = agreement([predictions(classes, torch.arange(40), torch.zeros(40, dtype=torch.long))])
    assert found.accuracy_R == pytest.approx([0.25])


def test_runs_that_share_too_few_rows_make_no_pair():
    classes = torch.zeros(60, dtype=torch.long)
    found = agreement([predictions(classes, torch.arange(60)), predictions(classes, torch.arange(31, 91))])
    assert found.shared_RR[0, 1] == 29 and np.isnan(found.agreement_RR[0, 1])
    assert not len(pairs_of(found, found, np.arange(2)))


def on_the_line(slope: float, bias: float, runs: int = 8) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Accuracies and agreements that lie exactly on one line of the probit scale.

    Agreement in distribution is anything; the gap between agreement and accuracy grows with the slope.
    """
    chance = np.random.default_rng(0)
    q_id = chance.uniform(0.2, 1.5, runs)
    one, other = np.triu_indices(runs, 1)
    agreement_id = (q_id[one] + q_id[other]) / 2 + chance.uniform(-0.2, 0.4, len(one))
    pairs = Pairs(one, other, agreement_id, slope * agreement_id + bias)
    return unscaled(q_id, "probit"), unscaled(slope * q_id + bias, "probit"), pairs


@pytest.mark.parametrize(("slope", "bias"), [(1.0, 0.0), (0.7, -0.4)])
def test_where_agreement_is_on_the_line_of_accuracy_both_estimates_are_exact(slope, bias):
    id_accuracy, ood_accuracy, pairs = on_the_line(slope, bias)
    assert agreement_line(pairs) == pytest.approx((slope, bias))
    assert aline_s(id_accuracy, slope, bias) == pytest.approx(ood_accuracy)
    assert aline_d(id_accuracy, pairs, slope) == pytest.approx(ood_accuracy)


def test_aline_d_solves_the_papers_least_squares_problem():
    id_accuracy, _, pairs = on_the_line(0.8, -0.2)
    noisy = pairs.ood_P + 0.1 * np.random.default_rng(1).standard_normal(len(pairs))
    pairs = Pairs(pairs.one_P, pairs.other_P, pairs.id_P, noisy)
    q_id = scaled(id_accuracy, "probit")
    system = np.zeros((len(pairs), len(id_accuracy)))
    for row, (one, other) in enumerate(zip(pairs.one_P, pairs.other_P, strict=True)):
        system[row, [one, other]] = 0.5
    wanted = noisy + 0.8 * ((q_id[pairs.one_P] + q_id[pairs.other_P]) / 2 - pairs.id_P)
    reference = np.linalg.lstsq(system, wanted, rcond=None)[0]
    assert aline_d(id_accuracy, pairs, 0.8) == pytest.approx(unscaled(reference, "probit"))


def test_runs_that_agreements_do_not_determine_have_no_estimate():
    id_accuracy, ood_accuracy, pairs = on_the_line(0.7, -0.4, runs=3)
    apart = Pairs(np.array([3]), np.array([4]), np.array([0.5]), np.array([0.2]))  # two runs, one equation
    accuracy = np.concatenate([id_accuracy, [0.8, 0.7, 0.6]])  # and the last is in no pair at all
    found = aline_d(accuracy, joined([pairs, apart]), 0.7)
    assert found[:3] == pytest.approx(ood_accuracy)
    assert np.isnan(found[3:]).all()


def test_runs_of_other_data_are_never_paired():
    both = Agreement(np.full((2, 2), 0.8), np.full((2, 2), 90), np.array([0.7, 0.7]), np.array([90, 90]))
    pairs = joined([pairs_of(both, both, np.arange(2), first) for first in (0, 2)])
    assert list(zip(pairs.one_P, pairs.other_P, strict=True)) == [(0, 1), (2, 3)]
