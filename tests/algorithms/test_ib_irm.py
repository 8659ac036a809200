"""IB-IRM against its two penalties written out, DomainBed's update, and the unit tests' objective."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from side_by_side import Reference, assert_same_updates

from dgharness.algorithms.ib_irm import ib_irm
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def binary(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[..., 0], (targets > 0).double(), reduction="none")


def dummy_penalty(step, e):
    """Squared gradient of one domain's mean risk in a factor and in a shift of the output, by autograd."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    risk = step.loss(step.logits_EBC[e] * scale + shift, step.targets_EB[e]).mean()
    return sum(g.square() for g in torch.autograd.grad(risk, [scale, shift], create_graph=True))


def test_each_penalty_has_its_own_weight_and_anneal_step(make_step, run):
    hp = {"irm_anneal_steps": 10, "ib_anneal_steps": 20, "irm_weight": 7.0, "ib_weight": 0.3}
    for t, irm, ib in [(9, 1.0, 0.0), (10, 7.0, 0.0), (19, 7.0, 0.0), (20, 7.0, 0.3)]:
        loss, metrics, _ = run(ib_irm, make_step(t=t), **hp)
        expected = metrics["risk"] + irm * metrics["irm_penalty"] + ib * metrics["ib_penalty"]
        torch.testing.assert_close(loss, expected, **EXACT)


def test_the_optimizer_starts_afresh_when_either_penalty_comes_into_force():
    hp = ib_irm.hparams(irm_anneal_steps=10, ib_anneal_steps=20)
    assert ib_irm.restarts(hp) == [(10, None), (20, None)]
    assert ib_irm.restarts(hp.model_copy(update={"restart": False})) == []


def test_the_unit_tests_objective_is_this_one_divided_by_1_minus_lambda(make_step, run, grads):
    step, irm_lambda, ib_lambda = make_step(loss=binary), 0.9, 0.1
    penalty = sum(dummy_penalty(step, e) for e in range(3))
    variance = torch.stack([step.logits_EBC[e].var(0).mean() for e in range(3)]).mean()
    published = (1 - irm_lambda) * step.risks_E.mean() + irm_lambda * penalty + ib_lambda * variance
    loss, _, _ = run(
        ib_irm,
        step,
        unbiased=False,
        affine=True,
        of="logits",
        irm_weight=irm_lambda / (1 - irm_lambda),
        ib_weight=ib_lambda / (1 - irm_lambda),
    )
    torch.testing.assert_close((1 - irm_lambda) * loss, published, **EXACT)
    torch.testing.assert_close(
        (1 - irm_lambda) * grads(loss, step.model), grads(published, step.model), **EXACT
    )


class DomainBed(Reference):
    def update(self, minibatches):
        hp = self.hp
        if self.count in (hp.irm_anneal_steps, hp.ib_anneal_steps):
            self.restart()
        irm_weight = hp.irm_weight if self.count >= hp.irm_anneal_steps else 1.0
        ib_weight = hp.ib_weight if self.count >= hp.ib_anneal_steps else 0.0
        irm = sum(self.slope(x[::2], y[::2]) * self.slope(x[1::2], y[1::2]) for x, y in minibatches)
        ib = sum(self.model.features(x).var(dim=0).mean() for x, _ in minibatches)
        self.descend(self.risks(minibatches).mean() + (irm_weight * irm + ib_weight * ib) / len(minibatches))

    def slope(self, x, y):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(F.cross_entropy(self.model(x) * scale, y), scale, create_graph=True)[0]


@pytest.mark.parametrize(("irm_anneal_steps", "ib_anneal_steps"), [(0, 0), (3, 3), (2, 5), (5, 2)])
def test_updates_are_those_of_domainbed(make_model, irm_anneal_steps, ib_anneal_steps):
    steps = {"irm_anneal_steps": irm_anneal_steps, "ib_anneal_steps": ib_anneal_steps}
    assert_same_updates(ib_irm, make_model(), DomainBed, 8, irm_weight=7.0, ib_weight=2.5, **steps)


def test_it_conforms_in_force():
    check_algorithm(ib_irm)
    check_algorithm(ib_irm, irm_anneal_steps=3, ib_anneal_steps=5, irm_weight=2.0, ib_weight=0.1)
    unit_tests = {
        "irm_anneal_steps": 0,
        "ib_anneal_steps": 0,
        "affine": True,
        "unbiased": False,
        "of": "logits",
    }
    check_algorithm(ib_irm, irm_weight=2.0, ib_weight=0.1, **unit_tests)
