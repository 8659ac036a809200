"""IRM games against networks that are stepped one at a time, each by an optimizer of its own."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.irm_games import irm_games
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def make_learner(make_model, domains=3, counts=None, **hp):
    config = OptimizerConfig(lr=1e-2, weight_decay=0.0)
    source = SimpleNamespace(counts_K=torch.tensor(counts)) if counts else None
    return Learner(
        irm_games,
        make_model(0),
        Dims(3, 5, domains, domains),
        irm_games.hparams(**hp),
        config,
        0,
        new_model=make_model,
        source=source,
    )


def movers(learner, make_step, updates, **step):
    """Which player's parameters each update changes, by the names that start with it."""
    moved = []
    for t in range(updates):
        before = {name: p.detach().clone() for name, p in learner.algorithm.named_parameters()}
        batch = make_step(seed=t, **step)
        learner.step(batch.x, batch.targets_EB, domain_EB=batch.domain_EB)
        changed = {n for n, p in learner.algorithm.named_parameters() if not p.equal(before[n])}
        moved.append(sorted({name.rsplit(".", 2 if "featurizer" in name else 1)[0] for name in changed}))
    return moved


FIXED = [
    ["model.classifier", "model.featurizer"],
    ["others.0.classifier", "others.0.featurizer"],
    ["others.1.classifier", "others.1.featurizer"],
]
VARIABLE = [["model.featurizer"], ["others.1"], ["others.0"], ["model.classifier"]]


@pytest.mark.parametrize(("variant", "order"), [("fixed", FIXED), ("variable", VARIABLE)])
def test_one_player_moves_per_update_in_turn(make_step, make_model, variant, order):
    learner = make_learner(make_model, variant=variant, termination_acc=0)
    assert movers(learner, make_step, 2 * len(order)) == order + order


@pytest.mark.parametrize(
    ("counts", "turns"),
    [
        ([30, 99, 40], [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]),  # 30 // 6 = 5 updates per epoch
        ([18, 18, 18], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]),
        ([13, 99, 99], [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]),  # two updates would leave the last player out
    ],
)
def test_the_order_starts_over_with_every_epoch_of_at_least_one_round(make_step, make_model, counts, turns):
    learner = make_learner(make_model, counts=counts, termination_acc=0)
    assert movers(learner, make_step, 10) == [FIXED[turn] for turn in turns]


def test_every_player_of_the_fixed_game_descends_its_own_domains_risk_of_the_mean(make_step, make_model):
    networks = [make_model(e) for e in range(3)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-2) for network in networks]
    learner = make_learner(make_model, termination_acc=0)
    for t in range(9):
        step = make_step(seed=t)
        x, y = step.x.unflatten(0, (3, 6))[t % 3], step.targets_EB[t % 3]
        loss = F.cross_entropy(sum(network(x) for network in networks) / 3, y)
        optimizers[t % 3].zero_grad()
        loss.backward()
        optimizers[t % 3].step()
        metrics = learner.step(step.x, step.targets_EB)
        torch.testing.assert_close(metrics["loss"], loss.detach(), **EXACT)
        ours = [learner.algorithm.model, *learner.algorithm.others]
        for own, other in zip(ours, networks, strict=True):
            for a, b in zip(own.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a, b, **EXACT)


def test_in_the_variable_game_the_features_descend_all_risks_at_their_own_rate(make_step, make_model):
    phi, heads = make_model(0).featurizer, [make_model(e).classifier for e in range(3)]
    modules = [phi, heads[2], heads[1], heads[0]]
    rates = [2e-3, 1e-2, 1e-2, 1e-2]
    optimizers = [torch.optim.Adam(m.parameters(), lr=lr) for m, lr in zip(modules, rates, strict=True)]
    learner = make_learner(
        make_model, variant="variable", representation_lr_multiplier=0.2, termination_acc=0
    )
    for t in range(9):
        step, turn = make_step(seed=t), t % 4
        domains = [0, 1, 2] if turn == 0 else [3 - turn]
        x_E = step.x.unflatten(0, (3, 6))
        risks = [
            F.cross_entropy(sum(head(phi(x_E[e])) for head in heads) / 3, step.targets_EB[e]) for e in domains
        ]
        for optimizer in optimizers:
            optimizer.zero_grad()
        (sum(risks) / len(risks)).backward()
        optimizers[turn].step()
        learner.step(step.x, step.targets_EB)
        ours = [learner.algorithm.model.classifier, *learner.algorithm.others]
        for own, other in zip([learner.algorithm.model.featurizer, *ours], [phi, *heads], strict=True):
            for a, b in zip(own.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a, b, **EXACT)


def test_rows_belong_to_the_player_of_their_domain_wherever_they_stand(make_step, make_model):
    step, order = make_step(), torch.tensor([2, 0, 1])
    first, second = (make_learner(make_model, termination_acc=0) for _ in range(2))
    first.step(step.x, step.targets_EB)
    second.step(
        step.x.unflatten(0, (3, 6))[order].flatten(0, 1),
        step.targets_EB[order],
        domain_EB=step.domain_EB[order],
    )
    for a, b in zip(first.algorithm.parameters(), second.algorithm.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_a_player_whose_domain_is_absent_has_no_loss(make_step, make_model):
    step = make_step(E=1, domain_EB=torch.full((1, 6), 2))
    learner = make_learner(make_model, termination_acc=0)
    metrics = learner.step(step.x, step.targets_EB, domain_EB=step.domain_EB)
    assert metrics["loss"] == 0 and metrics["risk"] > 0
    assert all((p.grad == 0).all() for p in learner.algorithm.model.parameters())


@pytest.mark.parametrize("variant", ["fixed", "variable"])
def test_the_prediction_is_the_mean_of_the_players_logits(make_step, make_model, variant):
    learner, step = make_learner(make_model, variant=variant), make_step()
    heads = [make_model(e).classifier for e in range(3)]
    z = [make_model(e if variant == "fixed" else 0).features(step.x) for e in range(3)]
    expected = sum(head(z_ND) for head, z_ND in zip(heads, z, strict=True)) / 3
    torch.testing.assert_close(learner.predict(step.x), expected, **EXACT)


# --- the stopping rule -----------------------------------------------------------------------------


def test_it_stops_below_the_threshold_once_the_warm_start_is_over(make_step, make_model):
    learner = make_learner(make_model, warm_start=4, termination_acc=0.9)
    finished = []
    for t in range(5):
        step = make_step(seed=t)
        assert learner.step(step.x, step.targets_EB)["ensemble_accuracy"] < 0.9
        finished.append(learner.finished)
    assert finished == [False, False, False, True, True]


def test_the_accuracy_is_that_of_the_ensemble_after_the_update(make_step, make_model):
    learner, step = make_learner(make_model), make_step()
    measured = learner.step(step.x, step.targets_EB)["ensemble_accuracy"]
    predicted = learner.predict(step.x).argmax(1)
    assert measured == (predicted == step.targets_EB.flatten()).float().mean()


def test_a_resumed_game_that_has_stopped_stays_stopped(make_step, make_model):
    learner, step = make_learner(make_model, warm_start=0, termination_acc=1.0), make_step()
    learner.step(step.x, step.targets_EB)
    assert learner.finished
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed = make_learner(make_model, warm_start=0, termination_acc=1.0)
    assert not resumed.finished
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.finished and resumed.algorithm.stopped


def test_a_resting_player_that_is_frozen_stays_frozen(make_step, make_model):
    learner, step = make_learner(make_model, termination_acc=0), make_step()
    learner.algorithm.others[1].featurizer.requires_grad_(False)
    learner.step(step.x, step.targets_EB)
    frozen = [name for name, p in learner.algorithm.named_parameters() if not p.requires_grad]
    assert frozen == ["others.1.featurizer.0.weight", "others.1.featurizer.0.bias"]


@pytest.mark.parametrize(
    "hp",
    [
        {},
        {"variant": "variable"},
        {"warm_start": 3, "termination_acc": 0.75},
        {"variant": "variable", "warm_start": 0, "termination_acc": 0.0},
    ],
)
def test_irm_games_keeps_the_contract(hp):
    check_algorithm(irm_games, **hp)
