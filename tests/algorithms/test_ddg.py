"""DDG: its update written out plainly, the multiplier, the partners, the swap, what it cannot run on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.ddg import ddg, partners
from dgharness.errors import NotApplicable, UsageError
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.seeds import generator
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

C, E, B, SHAPE = 3, 2, 5, (2, 4, 4)
DIMS = Dims(outputs=C, features=6, domains=E, groups=E, input_shape=SHAPE)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def network():
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh()), nn.Linear(6, C))


def learner(dims=DIMS, optimizer="sgd", **hp):
    settings = OptimizerConfig(name=optimizer, lr=0.1, weight_decay=0.0, momentum=0.0)
    made = Learner(ddg, network(), dims, ddg.hparams(code=3, width=7, **hp), settings, 0)
    made.algorithm.double()
    return made


def batch(t=0):
    draw = torch.Generator().manual_seed(t)
    x = torch.rand(E * B, *SHAPE, generator=draw, dtype=torch.float64)
    return x, torch.randint(C, (E, B), generator=draw)


# --- the update ------------------------------------------------------------------------------------


def test_three_updates_equal_the_method_written_out():
    hp = {"margin": 0.2, "dual_start": 0.5, "dual_step": 0.3, "swap_weight": 0.7, "lr_multiplier": 2.0}
    ours, twin = learner(**hp), learner(**hp)
    model, v, decoder = twin.algorithm.model, twin.algorithm.variation, twin.algorithm.decoder
    beta = 0.5
    for t in range(3):
        x, y_EB = batch(t)
        y = y_EB.flatten()
        draw = generator(0, "algorithm/partners", t)  # of the learner's seed and update
        alike, other = partners(y, draw), torch.randperm(len(y), generator=draw)
        f, code = model.features(x), v(x.mean(1))
        errors = []
        for n in range(len(y)):
            rebuilt = decoder(torch.cat([code[n], f[alike[n]]])[None])[0]
            errors.append((rebuilt - x[n]).abs().mean())
        swapped = [
            F.cross_entropy(model(decoder(torch.cat([code[other[n]], f[n]])[None])), y[n : n + 1])
            for n in range(len(y))
        ]
        mean_error = sum(error.item() for error in errors) / len(y)
        beta = min(max(beta + 0.3 * (mean_error - 0.2), 0), 1)
        hinge = torch.stack([torch.relu(error - 0.2) for error in errors]).mean()
        risk = F.cross_entropy(model.classify(f), y)
        loss = risk + beta * hinge + 0.7 * torch.stack(swapped).mean()
        own = [*v.parameters(), *decoder.parameters()]
        parts = [*model.parameters(), *own]
        moves = torch.autograd.grad(loss, parts)
        with torch.no_grad():
            for number, (p, g) in enumerate(zip(parts, moves, strict=True)):
                p -= (0.1 if number < len(parts) - len(own) else 0.2) * g
        metrics = ours.step(x, y_EB)
        assert metrics["error"].item() == pytest.approx(mean_error, rel=1e-9)
        assert metrics["beta"].item() == ours.algorithm.beta.item() == pytest.approx(beta, rel=1e-9)
    for (name, p), q in zip(ours.algorithm.named_parameters(), twin.algorithm.parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT, msg=name)


@pytest.mark.parametrize(("margin", "end"), [(0.0, 1.0), (9.0, 0.0)])
def test_the_multiplier_rises_while_the_constraint_is_broken_and_stays_between_0_and_1(margin, end):
    made = learner(margin=margin, dual_step=0.1)
    values = [float(made.step(*batch(t))["beta"]) for t in range(30)]
    assert values == sorted(values, reverse=end == 0.0)
    assert values[-1] == end and 0 <= min(values) <= max(values) <= 1


def test_the_multiplier_moves_once_per_update_whatever_the_optimizer_evaluates():
    plain, twice = learner(dual_step=0.1), learner(optimizer="sam", dual_step=0.1)
    for made in (plain, twice):
        made.step(*batch())
    assert plain.algorithm.beta.equal(twice.algorithm.beta) and plain.algorithm.beta != 0.5


def test_reconstructions_come_within_the_margin():
    """Four inputs, two of each class and one per variation: enough capacity, so the constraint can be met."""
    made = learner(optimizer="adam", margin=0.02, dual_step=0.1, swap_weight=0.0)
    x = torch.rand(2, 1, *SHAPE, dtype=torch.float64).expand(2, 2, *SHAPE).flatten(0, 1).clone()
    y_EB = torch.tensor([[0, 0], [1, 1]])
    errors = [float(made.step(x, y_EB)["error"]) for _ in range(200)]
    assert errors[-1] < 0.1 < errors[0]


# --- partners --------------------------------------------------------------------------------------


def test_a_partner_is_another_example_of_the_class_or_itself_if_alone():
    y_N = torch.randint(4, (40,), generator=torch.Generator().manual_seed(1))
    y_N[7] = 4  # alone
    partner_N = partners(y_N, torch.Generator().manual_seed(0))
    assert y_N[partner_N].equal(y_N) and partner_N[7] == 7
    assert sorted(partner_N.tolist()) == list(range(40)), "everyone is someone's partner"
    assert (partner_N == torch.arange(40)).sum() == 1


def test_partners_differ_from_update_to_update():
    y_N = torch.zeros(20, dtype=torch.long)
    one, other = (partners(y_N, torch.Generator().manual_seed(seed)) for seed in range(2))
    assert not one.equal(other)


# --- inputs ----------------------------------------------------------------------------------------


def test_the_variation_code_sees_no_colour():
    made = learner()
    seen = []
    made.algorithm.variation.register_forward_hook(lambda module, args, output: seen.append(output))
    x, y_EB = batch()
    made.step(x, y_EB)
    other = learner()
    other.algorithm.variation.register_forward_hook(lambda module, args, output: seen.append(output))
    other.step(x.flip(1), y_EB)
    torch.testing.assert_close(seen[0], seen[1])


def test_flat_inputs_are_taken_whole():
    model = Model(nn.Sequential(nn.Linear(9, 6)), nn.Linear(6, C))
    dims = Dims(C, 6, E, E, input_shape=(9,))
    made = Learner(ddg, model, dims, ddg.hparams(), OptimizerConfig(lr=0.01, weight_decay=0), 0)
    metrics = made.step(torch.randn(E * B, 9), batch()[1])
    assert all(value.isfinite().all() for value in metrics.values())


def test_an_unknown_or_too_large_input_is_refused():
    with pytest.raises(UsageError, match=r"must know their shape: give Dims\(input_shape="):
        learner(Dims(C, 6, E, E))
    with pytest.raises(NotApplicable, match=r"ddg cannot run here: .* these have 3 x 224 x 224"):
        learner(Dims(C, 6, E, E, input_shape=(3, 224, 224)))


@pytest.mark.parametrize("settings", [{}, {"margin": 0.25, "dual_step": 0.1, "swap_weight": 1.0}])
def test_it_conforms(settings):
    check_algorithm(ddg, **settings)
