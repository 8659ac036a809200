"""CIL: who descends what, the index and its scale, and independence where the label adds nothing.

Shapes: E rows of a batch, B examples per row.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.cil import cil
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
T_EB = torch.tensor([[0.5, 1.5, 4.0, 2.0, 2.5, 7.0]] * 3, dtype=torch.float64) + torch.arange(3)[:, None]


@pytest.fixture
def errors():
    """``errors(objective, step, t_EB)``: the squared errors of h and g about a standardised index."""

    def plain(objective, step, t_EB):
        t_EB = (t_EB - t_EB.mean()) / t_EB.std(correction=0)
        z_EBD, y_EBC = step.features_EBD, F.one_hot(step.targets_EB, 3).double()
        with_y_EBD = torch.cat([z_EBD, y_EBC], -1)
        return ((objective.h(z_EBD)[..., 0] - t_EB) ** 2).mean(), (
            (objective.g(with_y_EBD)[..., 0] - t_EB) ** 2
        ).mean()

    return plain


def test_features_and_classifier_descend_the_risk_and_the_weighted_difference(make_step, run, grads, errors):
    step = make_step(attributes={"time": T_EB})
    loss, metrics, objective = run(cil, step, weight=7.0)
    L_h, L_g = errors(objective, step, T_EB)
    torch.testing.assert_close(metrics["penalty"], L_h - L_g, **EXACT)
    expected = step.risks_E.mean() + 7.0 * (L_h - L_g)
    torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)


def test_each_regressor_descends_its_own_error_whatever_the_weight(make_step, run, grads, errors):
    for weight in (0.0, 7.0):
        step = make_step(attributes={"time": T_EB})
        loss, _, objective = run(cil, step, weight=weight)
        L_h, L_g = errors(objective, step, T_EB)
        torch.testing.assert_close(grads(loss, objective), grads(L_h + L_g, objective), **EXACT)


def test_before_the_anneal_step_the_features_descend_the_risk_alone(make_step, run, grads):
    step = make_step(t=499)
    loss, _, objective = run(cil, step)
    torch.testing.assert_close(grads(loss, step.model), grads(step.risks_E.mean(), step.model), **EXACT)
    assert grads(loss, objective).norm() > 0


def test_the_number_of_the_domain_is_the_index_where_there_is_no_time(make_step, run, errors):
    step = make_step(domain_EB=torch.tensor([[4], [0], [9]]).expand(3, 6))
    _, metrics, objective = run(cil, step)
    L_h, L_g = errors(objective, step, step.domain_EB.double())
    torch.testing.assert_close(metrics["penalty"], L_h - L_g, **EXACT)


def test_the_index_is_standardised_over_all_minibatches_so_far(make_step, run):
    parts = [T_EB, 3 * T_EB - 1, T_EB.square()]
    _, _, objective = run(cil, make_step(attributes={"time": parts[0]}))
    for count, t_EB in enumerate(parts[1:], 2):
        seen = torch.cat([part.flatten() for part in parts[:count]])
        expected = (t_EB - seen.mean()) / seen.std(correction=0)
        torch.testing.assert_close(objective.standardised(t_EB), expected, **EXACT)


def test_an_index_that_never_changes_leaves_everything_finite(make_step, run, grads):
    step = make_step(E=1)
    loss, _, _ = run(cil, step)
    assert loss.isfinite() and grads(loss, step.model).isfinite().all()


def test_a_real_target_enters_as_it_is(make_step, run):
    targets_EB = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    step = make_step(targets_EB=targets_EB, loss=lambda outputs, y: (outputs[..., 0] - y).square())
    step.model.classifier = torch.nn.Linear(5, 1).double()
    objective = cil.objective(Dims(1, 5, 3, 3), cil.hparams()).double()
    objective(step, cil.hparams())
    assert objective.g[0].in_features == 6


def test_regressors_have_a_learning_rate_of_their_own():
    assert cil.lr_multipliers(cil.hparams(lr_multiplier=5.0)) == {"objective.": 5.0}


def test_it_conforms_in_force():
    check_algorithm(cil)
    check_algorithm(cil, anneal_steps=3, weight=1.0)
