"""IRMv2 as excess risk of the square loss, as a Newton decrement of others, and on the first unit test.

Shapes: E rows of a batch, B examples per row, C outputs, D features.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dgharness.algorithms.irmv1 import irm_penalty
from dgharness.algorithms.irmv2 import irmv2
from dgharness.plugin import Dims
from dgharness.step import Step
from dgharness.testing import check_algorithm

EXACT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-11}


def squared(outputs, targets):
    return (outputs[..., 0] - targets).square()


@pytest.fixture
def regression(make_step):
    """Thirty real targets in each of three domains, and a model of one output."""
    step = make_step(B=30, targets_EB=torch.randn(3, 30, generator=torch.Generator().manual_seed(5)).double())
    step.model.classifier = nn.Linear(5, 1).double()
    return Step(**{**vars(step), "loss": squared})


def least_squares(columns_BS, y_B):
    """Lowest mean squared error of any linear function of some columns."""
    best_S = torch.linalg.lstsq(columns_BS, y_B[:, None]).solution
    return (columns_BS @ best_S - y_B[:, None]).square().mean()


def columns(step, e, mode):
    one = torch.ones(step.targets_EB.shape[1], 1, dtype=torch.float64)
    outputs, features = step.logits_EBC[e], step.features_EBD[e]
    return {
        "scalar": outputs,
        "affine": torch.cat([outputs, one], 1),
        "vector": torch.cat([features, one], 1),
    }[mode]


# --- the square loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["scalar", "affine", "vector"])
def test_penalty_of_the_square_loss_is_the_risk_above_the_best_that_the_dummy_weights_reach(
    regression, run, mode
):
    step = regression
    excess = [step.risks_E[e] - least_squares(columns(step, e, mode), step.targets_EB[e]) for e in range(3)]
    _, metrics, _ = run(irmv2, step, mode=mode, eps=0.0)
    torch.testing.assert_close(metrics["penalty"], sum(excess) / 3, **EXACT)


@pytest.mark.parametrize("mode", ["scalar", "affine", "vector"])
def test_its_gradient_goes_through_the_gram_matrix(regression, run, grads, mode):
    step, expected = regression, 0.0
    for e in range(3):
        a_BS, y_B = columns(step, e, mode), step.targets_EB[e]
        residual_B1 = step.logits_EBC[e] - y_B[:, None]
        g_S1 = 2 * a_BS.T @ residual_B1 / len(y_B)
        gram = (
            a_BS.T @ a_BS / len(y_B)
            + 1e-3 / (1 if mode == "vector" else 2) * torch.eye(a_BS.shape[1]).double()
        )
        expected = expected + (g_S1.T @ torch.linalg.inv(gram) @ g_S1).squeeze() / 4 / 3
    if mode == "vector":
        expected = expected * 2 / (2 + 1e-3)
    _, metrics, _ = run(irmv2, step, mode=mode, eps=1e-3)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_irmv1_lies_between_this_penalty_times_four_times_the_extreme_eigenvalues(regression, run):
    for e in range(3):
        row = {
            key: getattr(regression, key)[e : e + 1]
            for key in ("targets_EB", "domain_EB", "group_EB", "index_EB")
        }
        step = Step(**{**vars(regression), **row, "x": regression.x[30 * e : 30 * e + 30]})
        a_B2 = columns(step, 0, "affine")
        eigenvalues = torch.linalg.eigvalsh(a_B2.T @ a_B2 / 30)
        irmv1 = irm_penalty(step, unbiased=False, affine=True)
        ours = run(irmv2, step, mode="affine", eps=0.0)[1]["penalty"]
        assert 4 * eigenvalues[0] * ours < irmv1 < 4 * eigenvalues[-1] * ours


def test_shrinking_the_outputs_and_their_optimum_cannot_hide_the_excess_risk(regression, run):
    """IRMv1's penalty vanishes with the scale of a representation that is as bad as before."""
    step = regression
    small = Step(**{**vars(step), "targets_EB": step.targets_EB * 1e-3})
    with torch.no_grad():
        before = [irm_penalty(step, unbiased=False), run(irmv2, step, eps=0.0)[1]["penalty"]]
        small.model.classifier.weight.mul_(1e-3)
        small.model.classifier.bias.mul_(1e-3)
        after = [irm_penalty(small, unbiased=False), run(irmv2, small, eps=0.0)[1]["penalty"]]
    torch.testing.assert_close(after[0] / before[0], torch.tensor(1e-12).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(after[1] / before[1], torch.tensor(1e-6).double(), rtol=1e-6, atol=0)


# --- cross-entropy ---------------------------------------------------------------------------------


def softmax_derivatives(step, e, i):
    p_C = step.logits_EBC[e, i].softmax(0)
    y_C = torch.eye(3, dtype=torch.float64)[step.targets_EB[e, i]]
    return p_C - y_C, torch.diag(p_C) - torch.outer(p_C, p_C)


@pytest.mark.parametrize("mode", ["scalar", "affine"])
def test_penalty_of_cross_entropy_is_the_newton_decrement(make_step, run, grads, mode):
    step, eps, expected = make_step(), 0.01, 0.0
    for e in range(3):
        g_S, H_SS = 0.0, 0.0
        for i in range(6):
            z_C = step.logits_EBC[e, i]
            J_SC = torch.cat([z_C[None], torch.eye(3).double()]) if mode == "affine" else z_C[None]
            g_C, h_CC = softmax_derivatives(step, e, i)
            g_S, H_SS = g_S + J_SC @ g_C / 6, H_SS + J_SC @ h_CC @ J_SC.T / 6
        expected = expected + g_S @ torch.linalg.inv(H_SS + eps * torch.eye(len(g_S)).double()) @ g_S / 2 / 3
    _, metrics, _ = run(irmv2, step, mode=mode, eps=eps)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


def test_vector_mode_multiplies_each_outputs_curvature_with_the_gram_of_the_features(make_step, run, grads):
    step, eps, expected = make_step(), 0.01, 0.0
    for e in range(3):
        z_BD = torch.cat([step.features_EBD[e], torch.ones(6, 1, dtype=torch.float64)], 1)
        inverse = torch.linalg.inv(z_BD.T @ z_BD / 6 + eps * torch.eye(6).double())
        g_BC, h_BCC = map(torch.stack, zip(*(softmax_derivatives(step, e, i) for i in range(6)), strict=True))
        for c in range(3):
            g_D = z_BD.T @ g_BC[:, c] / 6
            expected = expected + g_D @ inverse @ g_D / (h_BCC[:, c, c].mean() + eps) / 2 / 3
    _, metrics, _ = run(irmv2, step, mode="vector", eps=eps)
    torch.testing.assert_close(metrics["penalty"], expected, **EXACT)
    torch.testing.assert_close(grads(metrics["penalty"], step.model), grads(expected, step.model), **EXACT)


@pytest.mark.parametrize("mode", ["scalar", "affine", "vector"])
@pytest.mark.parametrize(("E", "B"), [(1, 1), (3, 1)])
def test_a_single_example_leaves_the_penalty_and_its_gradient_finite(make_step, run, grads, mode, E, B):
    step = make_step(E=E, B=B)
    loss, _, _ = run(irmv2, step, mode=mode)
    assert grads(loss, step.model).isfinite().all()


@pytest.mark.parametrize("mode", ["scalar", "affine", "vector"])
def test_it_conforms_in_force(mode):
    check_algorithm(irmv2, anneal_steps=3, weight=1.0, mode=mode)


# --- the first unit test ---------------------------------------------------------------------------


def unit_test_1(seed, test, n=10_000):
    """Mean [3, 11] and covariance [3, 11, 11] of inputs and target, in three environments.

    The target is the sum of five children of five causes; five more inputs are effects of the children.
    Where ``test``, these are shuffled within the environment.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=draw, dtype=torch.float64)

    W_xy, W_yz, moments = normal(5, 5) / 5, normal(5, 5) / 5, []
    for sigma in (0.1, 1.5, 2.0):
        for shuffled in (False, True):  # both are drawn, so that a seed gives one world
            x = sigma * normal(n, 5)
            y = x @ W_xy + sigma * normal(n, 5)
            z = y @ W_yz + normal(n, 5)
            z = z[torch.randperm(n, generator=draw)] if shuffled else z
            if shuffled == test:
                columns = torch.cat([x, z, y.sum(1, keepdim=True)], 1)
                moments.append((columns.mean(0), columns.T.cov(correction=0)))
    return tuple(torch.stack(part) for part in zip(*moments, strict=True))


def same_moments(mean_ED, cov_EDD):
    """2D examples [E, 2D, D] with these moments: all that the square loss of a linear model sees."""
    root_EDD = torch.linalg.cholesky(cov_EDD).mT * cov_EDD.shape[-1] ** 0.5
    return mean_ED[:, None] + torch.cat([root_EDD, -root_EDD], 1)


@pytest.mark.slow
def test_affine_mode_comes_near_the_oracle_on_the_first_unit_test():
    """Another implementation had 10.565 +- .108 over ten other worlds; oracle 10.46 and IRMv1 10.86 there."""
    seeds, lam = 10, 0.9
    data_SEBD = torch.stack([same_moments(*unit_test_1(seed, test=False)) for seed in range(seeds)])
    hp = irmv2.hparams(mode="affine", eps=1e-3, weight=3 * lam / (1 - lam), anneal_steps=0)
    objective = irmv2.objective(Dims(1, 1, 3, 3), hp)
    rows_EB = torch.arange(3)[:, None].expand(3, data_SEBD.shape[2])

    def loss_of(weight_DC, bias_C, data_EBD):
        model = SimpleNamespace(features=lambda x: x @ weight_DC + bias_C, classify=lambda z: z)
        fields = {"domain_EB": rows_EB, "group_EB": rows_EB, "index_EB": rows_EB, "loss": squared}
        x = data_EBD[..., :-1].flatten(0, 1)
        return objective(Step(x=x, targets_EB=data_EBD[..., -1], model=model, t=0, **fields), hp)[0]

    draw = torch.Generator().manual_seed(0)
    start = (2 * torch.rand(seeds, 11, 1, generator=draw, dtype=torch.float64) - 1) / 10**0.5
    weight_SDC, bias_SC = start[:, :10].clone().requires_grad_(), start[:, 10].clone().requires_grad_()
    optimizer = torch.optim.Adam([weight_SDC, bias_SC], lr=1e-3)
    for _ in range(10_000):
        optimizer.zero_grad()
        losses_S = torch.func.vmap(loss_of)(weight_SDC, bias_SC, data_SEBD)
        ((1 - lam) * losses_S.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        test_SEBD = torch.stack([same_moments(*unit_test_1(seed, test=True)) for seed in range(seeds)])
        residual_SEB = (test_SEBD[..., :-1] @ weight_SDC[:, None] + bias_SC[:, None, None])[..., 0]
        error_S = (residual_SEB - test_SEBD[..., -1]).square().mean((1, 2))
    assert abs(error_S.mean() - 10.565) < 0.11, f"{error_S.mean():.3f} +- {error_S.std(correction=0):.3f}"
