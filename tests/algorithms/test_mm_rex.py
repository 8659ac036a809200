"""MM-REx against the paper's own parametrisation, and as the worst of all extrapolated mixtures."""

from itertools import permutations
from typing import Any

import pytest
import torch

from dgharness.algorithms.mm_rex import mm_rex
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("E", [2, 4])
@pytest.mark.parametrize("lambda_min", [-3.0, -0.2, 0.0, 0.2])
def test_loss_is_that_of_the_paper_with_the_weight_1_minus_m_lambda_min(make_step, run, grads, E, lambda_min):
    step = make_step(E=E)
    risks = [step.loss(step.logits_EBC[e], step.targets_EB[e]).mean() for e in range(E)]
    expected = (1 - E * lambda_min) * max(risks) + lambda_min * sum(risks)
    loss, _, _ = run(mm_rex, step, weight=1 - E * lambda_min)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)


def test_loss_is_the_worst_mixture_whose_weights_are_at_least_lambda_min(make_step, run):
    step, lambda_min = make_step(E=3), -1.0
    corners = set(permutations([1 - 2 * lambda_min, lambda_min, lambda_min]))
    mixtures = [sum(w * r for w, r in zip(corner, step.risks_E, strict=True)) for corner in corners]
    torch.testing.assert_close(run(mm_rex, step, weight=4.0)[0], torch.stack(mixtures).max(), **EXACT)


def test_two_domains_give_half_of_the_scripts_sum_plus_weighted_difference(make_step, run):
    step = make_step(E=2)
    R1, R2 = step.risks_E
    torch.testing.assert_close(run(mm_rex, step, weight=9.0)[0], (R1 + R2 + 9 * (R1 - R2).abs()) / 2, **EXACT)


def test_the_worst_risk_alone_counts_before_the_anneal_step(make_step, run):
    step = make_step(t=499)
    torch.testing.assert_close(run(mm_rex, step)[0], step.risks_E.max(), **EXACT)
    step = make_step(t=500)
    expected = step.risks_E.mean() + 10 * (step.risks_E.max() - step.risks_E.mean())
    torch.testing.assert_close(run(mm_rex, step)[0], expected, **EXACT)


def test_it_conforms_in_force():
    check_algorithm(mm_rex)
    check_algorithm(mm_rex, anneal_steps=3)
