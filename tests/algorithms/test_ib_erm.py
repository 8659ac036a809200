"""IB-ERM against loops over domains and entries, and against DomainBed's update."""

from typing import Any

import pytest
import torch
from side_by_side import Reference, assert_same_updates

from dgharness.algorithms.ib_erm import ib_erm
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def sample_variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def mean_variance(z_ND):
    return sum(sample_variance(list(z_ND[:, j])) for j in range(z_ND.shape[1])) / z_ND.shape[1]


@pytest.mark.parametrize("of", ["features", "logits"])
@pytest.mark.parametrize("pooled", [False, True])
def test_penalty_is_the_unbiased_variance_of_each_entry(make_step, run, grads, of, pooled):
    step = make_step()
    z = step.features_EBD if of == "features" else step.logits_EBC
    expected = mean_variance(z.flatten(0, 1)) if pooled else sum(map(mean_variance, z)) / len(z)
    _, metrics, _ = run(ib_erm, step, of=of, pooled=pooled)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_weight_is_0_before_the_anneal_step_and_its_own_from_there(make_step, run):
    for t, weight in [(499, 0.0), (500, 100.0)]:
        loss, metrics, _ = run(ib_erm, make_step(t=t))
        torch.testing.assert_close(loss, metrics["risk"] + weight * metrics["penalty"], **EXACT)


@pytest.mark.parametrize("pooled", [False, True])
def test_one_example_has_no_variance(make_step, run, grads, pooled):
    step = make_step(E=1, B=1)
    loss, metrics, _ = run(ib_erm, step, pooled=pooled)
    assert metrics["penalty"] == 0
    assert grads(loss, step.model).isfinite().all()


def test_variance_is_taken_in_float32_under_autocast(make_step, run):
    step = make_step(B=64)
    step.model.float()
    with torch.no_grad():
        step.model.featurizer[0].bias.fill_(3.0)  # features near 1, where bfloat16 has no room for a variance
    x = step.x.float()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = run(ib_erm, make_step(B=64, x=x, model=step.model))[1]["penalty"]
    z_EBD = step.model.features(x.bfloat16().float()).unflatten(0, (3, 64))
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, z_EBD.var(1).mean(), rtol=0.2, atol=0)


class DomainBed(Reference):
    def update(self, minibatches):
        if self.count == self.hp.anneal_steps:
            self.restart()
        weight = self.hp.weight if self.count >= self.hp.anneal_steps else 0.0
        variances = [self.model.features(x).var(dim=0).mean() for x, _ in minibatches]
        self.descend(self.risks(minibatches).mean() + weight * sum(variances) / len(variances))


@pytest.mark.parametrize("anneal_steps", [0, 3])
def test_updates_are_those_of_domainbed(make_model, anneal_steps):
    assert_same_updates(ib_erm, make_model(), DomainBed, 8, weight=2.5, anneal_steps=anneal_steps)


def test_it_conforms_in_force():
    check_algorithm(ib_erm)
    check_algorithm(ib_erm, anneal_steps=3, weight=0.5)
    check_algorithm(ib_erm, anneal_steps=3, weight=0.1, of="logits", pooled=True)
