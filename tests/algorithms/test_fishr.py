"""Fishr against per-example gradients taken by autograd, DomainBed's update and the ColoredMNIST script.

Shapes: E rows of a batch, B examples per row, C outputs, D features, P parameters of the classifier.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from side_by_side import Reference, assert_same_updates
from torch import nn

from dgharness.algorithms.fishr import fishr, product_variance
from dgharness.data.tasks import cross_entropy
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def gradients(model, x, y, loss=cross_entropy):
    """One gradient of the classifier per example [B, P], each by a backward pass of its own."""
    parameters = list(model.classifier.parameters())
    rows = []
    for i in range(len(y)):
        found = torch.autograd.grad(loss(model(x[i])[None], y[i, None]).sum(), parameters, create_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


def variances(step):
    """[E, P]"""
    x_EBI = step.x.unflatten(0, step.targets_EB.shape)
    found = [gradients(step.model, x, y, step.loss) for x, y in zip(x_EBI, step.targets_EB, strict=True)]
    return torch.stack([((g - g.mean(0)) ** 2).mean(0) for g in found])


def test_penalty_is_the_mean_squared_distance_of_the_variances_of_the_gradients(make_step, run, grads):
    step = make_step()
    v_EP = variances(step)
    expected = sum(((v_EP[e] - v_EP.mean(0)) ** 2).mean() for e in range(3)) / 3
    _, metrics, _ = run(fishr, step)  # averages that start at 0 give the first minibatch its full size
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_the_colored_mnist_form_sums_over_parameters_and_domains(make_step, run, grads):
    step = make_step(E=2)
    v_EP = variances(step)
    expected = sum(((v_EP[e] - v_EP.mean(0)) ** 2).sum() for e in range(2))
    _, metrics, objective = run(fishr, step, form="colored-mnist")
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)
    assert (objective.average_KCD == 0).all()


def test_two_softmax_outputs_double_the_penalty_of_the_scripts_one_logit(make_step, run):
    def binary(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs[..., 0], targets.double(), reduction="none")

    targets_EB = make_step().targets_EB.clamp(max=1)
    one, two = make_step(targets_EB=targets_EB, loss=binary), make_step(targets_EB=targets_EB)
    logit, two.model.classifier = one.model.classifier, nn.Linear(5, 2).double()
    with torch.no_grad():
        two.model.classifier.weight.copy_(torch.stack([torch.zeros(5), logit.weight[0]]))
        two.model.classifier.bias.copy_(torch.stack([torch.zeros(()), logit.bias[0]]))
    v_one, v_two = variances(one), variances(two)
    torch.testing.assert_close(one.risks_E, two.risks_E, **EXACT)
    torch.testing.assert_close(
        (v_two - v_two.mean(0)).square().sum(), 2 * (v_one - v_one.mean(0)).square().sum(), **EXACT
    )
    ours = [run(fishr, step, form="colored-mnist")[1]["penalty"] for step in (one, two)]
    torch.testing.assert_close(ours[1], 2 * ours[0], **EXACT)


def test_a_classifier_without_bias_has_fewer_parameters_to_average_over(make_step, run):
    step = make_step()
    step.model.classifier = nn.Linear(5, 3, bias=False).double()
    v_EP = variances(step)
    assert v_EP.shape == (3, 15)
    expected = ((v_EP - v_EP.mean(0)) ** 2).mean()
    torch.testing.assert_close(run(fishr, step)[1]["penalty"], expected, **EXACT)


def test_any_loss_per_example_will_do(make_step, run, grads):
    def squared(outputs, targets):
        return (outputs[..., 0] - targets).square()

    step = make_step(loss=squared)
    v_EP = variances(step)
    expected = ((v_EP - v_EP.mean(0)) ** 2).mean()
    _, metrics, _ = run(fishr, step)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


# --- moving averages -------------------------------------------------------------------------------


def test_averages_belong_to_domains_wherever_these_stand_in_the_minibatch(make_step, run):
    first, hp = make_step(seed=1), fishr.hparams(gamma=0.9)
    _, _, objective = run(fishr, first, domains=4, gamma=0.9)
    v_1 = variances(first)
    held = objective.average_KCD.clone()
    second = make_step(E=2, seed=2, domain_EB=torch.tensor([[3], [1]]).expand(2, 6))
    _, metrics = objective(second, hp)
    v_2 = variances(second)
    u = torch.stack([0.1 * v_2[0] / 0.1, (0.9 * 0.1 * v_1[1] + 0.1 * v_2[1]) / 0.1])
    torch.testing.assert_close(metrics["penalty"], ((u - u.mean(0)) ** 2).mean(), **EXACT)
    assert objective.average_KCD[[0, 2]].equal(held[[0, 2]])  # they were not drawn
    weights = objective.average_KCD[..., :-1].flatten(1)
    torch.testing.assert_close(weights[[3, 1]], 0.1 * u[:, :15], **EXACT)
    torch.testing.assert_close(objective.average_KCD[[3, 1], :, -1], 0.1 * u[:, 15:], **EXACT)


def test_averages_grow_before_the_penalty_has_a_weight(make_step, run):
    loss, metrics, objective = run(fishr, make_step(t=1499))
    torch.testing.assert_close(loss, metrics["risk"], **EXACT)
    assert (objective.average_KCD.flatten(1).norm(dim=1) > 0).all()


# --- weight ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "before"), [("domainbed", 0.0), ("colored-mnist", 1.0)])
def test_weight_before_the_anneal_step_is_that_of_the_form(make_step, run, form, before):
    for t, weight in [(1499, before), (1500, 1000.0)]:
        loss, metrics, _ = run(fishr, make_step(t=t), form=form)
        torch.testing.assert_close(loss, metrics["risk"] + weight * metrics["penalty"], **EXACT)


def test_l2_and_rescale_are_those_of_the_script(make_step, run):
    for t, weight in [(0, 1.0), (1500, 1000.0)]:
        step = make_step(t=t)
        loss, metrics, _ = run(fishr, step, form="colored-mnist", l2=0.3, rescale=True)
        norm = sum(p.square().sum() for p in step.model.parameters())
        expected = (metrics["risk"] + 0.3 * norm + weight * metrics["penalty"]) / weight
        torch.testing.assert_close(loss, expected, **EXACT)


def test_anneal_steps_are_drawn_as_integers_over_the_whole_range():
    draws = [fishr.hparams.model_fields["anneal_steps"].metadata[-1].sample(u) for u in (0.0, 0.5, 0.9999)]
    assert draws == [0, 2500, 4999]


# --- precision -------------------------------------------------------------------------------------


def test_variance_is_exact_where_it_is_small_beside_the_mean():
    draw = torch.Generator().manual_seed(0)
    g_EBC = 1 + 1e-3 * torch.randn(2, 50, 3, generator=draw)
    z_EBD = 1 + 1e-3 * torch.randn(2, 50, 4, generator=draw)
    products = g_EBC[..., None] * z_EBD[..., None, :].double()
    expected = products.var(1, correction=0)
    torch.testing.assert_close(product_variance(g_EBC, z_EBD), expected, rtol=1e-8, atol=0)


# --- against DomainBed -----------------------------------------------------------------------------


class DomainBed(Reference):
    past: Any = None

    def update(self, minibatches):
        hp, variances = self.hp, []
        for x, y in minibatches:
            g = gradients(self.model, x, y)
            variances.append(((g - g.mean(0)) ** 2).mean(0))
        v_EP = torch.stack(variances)
        average = (
            hp.gamma * (torch.zeros_like(v_EP) if self.past is None else self.past) + (1 - hp.gamma) * v_EP
        )
        self.past = average.detach()
        u_EP = average / (1 - hp.gamma)
        penalty = sum(((u - u_EP.mean(0)) ** 2).mean() for u in u_EP) / len(u_EP)
        weight = hp.weight if self.count >= hp.anneal_steps else 0.0
        if self.count == hp.anneal_steps != 0:
            self.restart()
        self.descend(self.risks(minibatches).mean() + weight * penalty)


@pytest.mark.parametrize("anneal_steps", [0, 3])
def test_updates_are_those_of_domainbed(make_model, anneal_steps):
    assert_same_updates(fishr, make_model(), DomainBed, 8, weight=700.0, anneal_steps=anneal_steps)


def test_it_conforms_in_force():
    check_algorithm(fishr)
    check_algorithm(fishr, anneal_steps=3)
    script = {"form": "colored-mnist", "rescale": True, "l2": 1e-3, "restart": False}
    check_algorithm(fishr, anneal_steps=3, **script)
