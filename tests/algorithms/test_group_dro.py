"""GroupDRO against a loop over groups, over several steps."""

from typing import Any

import torch

from dgharness.algorithms.group_dro import group_dro
from dgharness.plugin import Dims

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def plain_step(q, step, eta):
    """The q and the loss after one step, group by group."""
    loss_EB = step.loss(step.logits_EBC, step.targets_EB)
    risks = {g: loss_EB[step.group_EB == g].mean() for g in range(len(q)) if (step.group_EB == g).any()}
    raised = [q[g] * torch.exp(eta * risks[g].detach()) if g in risks else q[g] for g in range(len(q))]
    q = [value / sum(raised) for value in raised]
    return q, sum(q[g] * risk for g, risk in risks.items())


def follow(steps, groups, grads, eta=0.3):
    """Compare the objective with the plain loop along some steps; gives the objective."""
    hp = group_dro.hparams(eta=eta)
    objective = group_dro.objective(Dims(3, 5, 3, groups), hp).double()
    q = [torch.tensor(1 / groups, dtype=torch.float64)] * groups
    for step in steps:
        loss, metrics = objective(step, hp)
        q, expected = plain_step(q, step, eta)
        torch.testing.assert_close(loss, expected, **EXACT)
        torch.testing.assert_close(grads(loss, step.model), grads(expected, step.model), **EXACT)
        torch.testing.assert_close(objective.q_G, torch.stack(q), **EXACT)
        assert metrics["q_max"] == objective.q_G.max()
    return objective


def test_domains_as_groups_follow_the_plain_loop(make_step, grads):
    follow([make_step(seed=seed) for seed in range(3)], 3, grads)


def test_groups_mixed_in_the_rows_and_absent_at_times_follow_the_plain_loop(make_step, grads):
    mixed = [
        torch.tensor([[0, 1, 1, 3], [3, 3, 0, 1]]),
        torch.tensor([[2, 2, 2, 2], [0, 0, 0, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]),
    ]
    steps = [make_step(E=2, B=4, seed=seed, group_EB=group_EB) for seed, group_EB in enumerate(mixed)]
    follow(steps, 4, grads)


def test_examples_of_unknown_group_are_left_out(make_step, grads):
    group_EB = torch.tensor([[0, -1, 1], [1, 0, -1]])
    follow([make_step(E=2, B=3, group_EB=group_EB)], 2, grads)


def test_only_unknown_groups_give_no_loss_and_leave_q_alone(make_step, run):
    step = make_step(E=2, B=3, group_EB=torch.full((2, 3), -1))
    loss, _, objective = run(group_dro, step)
    assert loss == 0
    torch.testing.assert_close(objective.q_G, torch.full((2,), 0.5, dtype=torch.float64), **EXACT)


def test_one_step_from_uniform_by_hand(make_step):
    step = make_step(E=2, B=1, loss=lambda logits, targets: 0 * logits.sum(-1) + targets)
    step = make_step(
        E=2, B=1, loss=step.loss, model=step.model, targets_EB=torch.tensor([[1.0], [2.0]]).double()
    )
    hp = group_dro.hparams(eta=0.01)
    objective = group_dro.objective(Dims(3, 5, 2, 2), hp).double()
    loss, _ = objective(step, hp)
    torch.testing.assert_close(objective.q_G, torch.tensor([0.4975, 0.5025]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, torch.tensor(1.5025).double(), rtol=0, atol=1e-6)


def test_group_weights_are_part_of_the_state(make_step, run):
    _, _, objective = run(group_dro, make_step())
    assert list(objective.state_dict()) == ["q_G"]


def test_a_second_forward_before_the_backward_is_allowed(make_step, grads):
    step, hp = make_step(), group_dro.hparams()
    objective = group_dro.objective(Dims(3, 5, 3, 3), hp).double()
    first, _ = objective(step, hp)
    objective(step, hp)
    assert grads(first, step.model).isfinite().all()


def test_a_huge_loss_does_not_overflow_the_weights(make_step, run):
    step = make_step(E=2, loss=lambda logits, targets: 0 * logits.sum(-1) + 1e6 * (1 + targets))
    loss, metrics, _ = run(group_dro, step, eta=0.1)
    assert loss.isfinite() and metrics["q_max"] == 1
