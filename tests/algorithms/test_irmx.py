"""IRMX as the sum of the two methods that it is made of."""

from typing import Any

import pytest
import torch

from dgharness.algorithms.irmv1 import irmv1
from dgharness.algorithms.irmx import irmx
from dgharness.algorithms.vrex import vrex
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def scaled_risk(step, e, scale):
    return step.loss(step.logits_EBC[e] * scale, step.targets_EB[e]).mean()


def test_loss_is_the_risk_and_both_penalties_each_with_its_weight(make_step, run, grads):
    step = make_step()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    risks = [scaled_risk(step, e, scale) for e in range(3)]
    slopes = [torch.autograd.grad(risk, scale, create_graph=True)[0] for risk in risks]
    mean = sum(risks) / 3
    expected = (
        mean
        + 7.0 * sum(slope**2 for slope in slopes) / 3
        + 5.0 * sum((risk - mean) ** 2 for risk in risks) / 3
    )
    loss, _, _ = run(irmx, step, irm_weight=7.0, rex_weight=5.0, unbiased=False)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("unbiased", [True, False])
def test_a_weight_of_0_leaves_the_other_method(make_step, run, unbiased):
    step = make_step()
    irm_alone = run(irmx, step, irm_weight=7.0, rex_weight=0.0, unbiased=unbiased)[0]
    torch.testing.assert_close(irm_alone, run(irmv1, step, weight=7.0, unbiased=unbiased)[0], **EXACT)
    rex_alone = run(irmx, step, irm_weight=0.0, rex_weight=5.0, unbiased=unbiased)[0]
    torch.testing.assert_close(rex_alone, run(vrex, step, weight=5.0)[0], **EXACT)


def test_both_weights_are_1_before_the_anneal_step(make_step, run):
    for t, irm, rex in [(499, 1.0, 1.0), (500, 100.0, 10.0)]:
        loss, metrics, _ = run(irmx, make_step(t=t))
        expected = metrics["risk"] + irm * metrics["irm_penalty"] + rex * metrics["rex_penalty"]
        torch.testing.assert_close(loss, expected, **EXACT)


def test_the_optimizer_starts_afresh_at_the_anneal_step():
    assert irmx.restarts(irmx.hparams(anneal_steps=7)) == [(7, None)]
    assert irmx.restarts(irmx.hparams(anneal_steps=7, restart=False)) == []


def test_it_conforms_in_force():
    check_algorithm(irmx)
    check_algorithm(irmx, anneal_steps=3, irm_weight=2.0)
