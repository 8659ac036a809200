"""Meta-DMoE against its two loops written out, finite differences, and the optimizers of its four stages.

Shapes: E rows, B examples per row, N = E*B, S support examples, D features, C classes, K domains, M experts.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness import config
from dgharness.algorithms.meta_dmoe import (
    Aggregator,
    MetaDMoEHparams,
    clusters,
    distance,
    inner_step,
    meta_dmoe,
    stage_at,
)
from dgharness.errors import NotApplicable
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.averaging import AveragingConfig
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
INPUTS, D, C, K, B = 4, 8, 3, 3, 10
NO_STAGES = {"expert_steps": 0, "aggregator_steps": 0, "student_steps": 0}


def model(number=0):
    torch.manual_seed(number)
    return Model(nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh()), nn.Linear(D, C)).double()


def learner(network=None, optimizer=None, make=model, domains=K, **hp):
    """A learner in float64; without stages named, its first update is one of meta-training."""
    spec_hp = MetaDMoEHparams(**{"support": 4, "inner_lr": 0.5, **NO_STAGES, **hp})
    options = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **(optimizer or {})}
    made = Learner(
        meta_dmoe,
        network or make(),
        Dims(C, D, domains, domains),
        spec_hp,
        OptimizerConfig(**options),
        seed=0,
        new_model=lambda number: make(number),
    )
    made.algorithm.double()
    return made


def batch(t=0, rows=K, examples=B):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(rows * examples, INPUTS, generator=draw, dtype=torch.float64)
    return x, torch.randint(C, (rows, examples), generator=draw)


def states(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, module):
    return {
        name.split(".")[0] for name, value in module.state_dict().items() if not value.equal(before[name])
    }


# --- who teaches whom ------------------------------------------------------------------------------


@pytest.mark.parametrize(("domains", "experts"), [(2, 2), (7, 3), (15, 5), (5, 5), (243, 10)])
def test_every_domain_has_one_expert_and_clusters_are_as_even_as_can_be(domains, experts):
    expert_K = clusters(domains, experts)
    sizes = expert_K.bincount(minlength=experts)
    assert len(expert_K) == domains and sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    assert expert_K.equal(clusters(domains, experts))  # nothing of the run's own randomness is in it


def test_domains_are_shuffled_before_they_are_cut():
    assert not clusters(40, 4).equal(torch.arange(40) * 4 // 40)


def test_there_are_no_more_experts_than_domains():
    assert len(learner(experts=10).algorithm.teacher.experts) == K


@pytest.mark.parametrize("domains", [0, 1])
def test_one_domain_leaves_no_one_to_teach(domains):
    with pytest.raises(NotApplicable, match="at least 2 training domains"):
        learner(domains=domains)


def test_a_featurizer_without_parameters_cannot_adapt():
    with pytest.raises(NotApplicable, match="parameters that train"):
        learner(make=lambda number=0: Model(nn.Flatten(), nn.Linear(INPUTS, C)).double())


# --- the aggregator --------------------------------------------------------------------------------


@pytest.fixture
def aggregator():
    torch.manual_seed(3)
    return Aggregator(D, C).double().eval()


def tokens(N=5, M=4):
    return torch.randn(N, M, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def plain_block(aggregator, tokens_MD):
    """One pre-norm transformer block on the tokens of one example, head by head, and the mean."""
    one, two = aggregator.norms
    attention = aggregator.attention
    z = F.layer_norm(tokens_MD, (D,), one.weight, one.bias)
    q, k, v = (z @ attention.in_proj_weight.mT + attention.in_proj_bias).split(D, dim=1)
    width = D // attention.num_heads
    heads = []
    for number in range(attention.num_heads):
        own = slice(number * width, (number + 1) * width)
        weights = torch.softmax(q[:, own] @ k[:, own].mT / width**0.5, dim=1)
        heads.append(weights @ v[:, own])
    tokens_MD = tokens_MD + attention.out_proj(torch.cat(heads, dim=1))
    z = F.layer_norm(tokens_MD, (D,), two.weight, two.bias)
    return (tokens_MD + aggregator.mlp[3](F.gelu(aggregator.mlp[0](z)))).mean(0)


@pytest.mark.parametrize("grad", [True, False])
def test_the_aggregator_is_one_prenorm_transformer_block_and_the_mean(aggregator, grad):
    tokens_NMD = tokens()
    with torch.set_grad_enabled(grad):
        found = aggregator(tokens_NMD, torch.ones(5, 4).bool())
    expected = torch.stack([plain_block(aggregator, tokens_MD) for tokens_MD in tokens_NMD])
    torch.testing.assert_close(found, expected.to(found), **EXACT)


def test_the_order_of_the_experts_does_not_matter(aggregator):
    tokens_NMD, keep_NM, order = tokens(), torch.ones(5, 4).bool(), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        aggregator(tokens_NMD[:, order], keep_NM), aggregator(tokens_NMD, keep_NM), **EXACT
    )


@pytest.mark.parametrize("grad", [True, False])
def test_a_masked_expert_is_as_if_it_were_not_there_whatever_it_says(aggregator, grad):
    tokens_NMD = tokens()
    for dropped in range(4):
        others = [m for m in range(4) if m != dropped]
        keep_NM = torch.ones(5, 4).bool()
        keep_NM[:, dropped] = False
        with torch.set_grad_enabled(grad):
            expected = aggregator(tokens_NMD[:, others], torch.ones(5, 3).bool())
            loud = tokens_NMD.clone()
            loud[:, dropped] = 1e3
            torch.testing.assert_close(aggregator(loud, keep_NM), expected, **EXACT)


@pytest.mark.parametrize(("features", "heads"), [(2048, 16), (1024, 16), (390, 2), (6, 2), (7, 1)])
def test_there_are_sixteen_heads_where_the_features_divide_into_them(features, heads):
    assert Aggregator(features, C).attention.num_heads == heads


# --- the inner step --------------------------------------------------------------------------------


def test_the_inner_step_of_a_scalar_encoder_is_the_analytic_one():
    x_S1 = torch.tensor([[1.0], [-2.0], [4.0]], dtype=torch.float64)
    encoder, rate = nn.Linear(1, 1, bias=False).double(), 0.05
    phi = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    theta = encoder.weight
    moved_to, _ = inner_step(encoder, {"weight": theta}, x_S1, phi.expand(3, 1), rate)
    expected = theta - 2 * rate * (x_S1 * (theta * x_S1 - phi)).mean()
    torch.testing.assert_close(moved_to["weight"], expected, **EXACT)
    (slope,) = torch.autograd.grad(moved_to["weight"].sum(), phi)
    torch.testing.assert_close(slope, 2 * rate * x_S1.mean(), **EXACT)


def plain_query_risk(algorithm, x, y_EB, rate, support):
    """Both loops with a copy of the student for every row and an ordinary step of gradient descent."""
    risks, distances, M = [], [], len(algorithm.teacher.experts)
    for row in range(len(y_EB)):
        x_BI = x.unflatten(0, y_EB.shape)[row]
        kept = [m for m in range(M) if m != algorithm.expert_K[row]]
        with torch.no_grad():
            features = [algorithm.teacher.experts[m].featurizer(x_BI[:support]) for m in kept]
            taught_SD = torch.stack(
                [
                    plain_block(algorithm.teacher.aggregator, torch.stack([z[i] for z in features]))
                    for i in range(support)
                ]
            )
        student = copy.deepcopy(algorithm.model)
        optimizer = torch.optim.SGD(student.featurizer.parameters(), lr=rate)
        optimizer.zero_grad()
        apart = (student.featurizer(x_BI[:support]) - taught_SD).pow(2).sum() / (support * D)
        apart.backward()
        optimizer.step()
        with torch.no_grad():
            logits = student.classifier(student.featurizer(x_BI[support:]))
            risks.append(F.cross_entropy(logits, y_EB[row, support:]))
        distances.append(apart.detach())
    return torch.stack(risks), torch.stack(distances).mean()


def at(made, rows=K, **fields):
    """A step of the learner's algorithm, as it stands."""
    found = {}
    update = made.algorithm.update
    made.algorithm.update = lambda step, descend: found.update(step=step) or {}
    x, y_EB = batch(rows=rows)
    made.step(x, y_EB, **fields)
    made.algorithm.update = update
    return found["step"]


@pytest.mark.parametrize("experts", [2, 3])
def test_the_outer_loss_is_the_risk_of_query_examples_after_one_step_towards_the_other_experts(experts):
    made = learner(experts=experts)
    _, metrics = made.algorithm.query_risk(at(made))
    risks_E, apart = plain_query_risk(made.algorithm, *batch(), 0.5, 4)
    torch.testing.assert_close(metrics["risks_E"].detach(), risks_E, **EXACT)
    torch.testing.assert_close(metrics["risk"].detach(), risks_E.mean(), **EXACT)
    torch.testing.assert_close(metrics["distance"].detach(), apart, **EXACT)


def test_its_gradients_go_through_the_inner_step_to_student_head_and_aggregator():
    made = learner()
    algorithm = made.algorithm
    loss, _ = algorithm.query_risk(at(made))
    loss.backward()
    draw = torch.Generator().manual_seed(8)
    checked = {
        "encoder": algorithm.model.featurizer,
        "head": algorithm.model.classifier,
        "attention": algorithm.teacher.aggregator.attention,
        "mlp": algorithm.teacher.aggregator.mlp,
        "norms": algorithm.teacher.aggregator.norms,
    }
    for name, module in checked.items():
        parameters = list(module.parameters())
        directions = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in parameters]
        values = []
        for sign in (1, -1):
            for p, direction in zip(parameters, directions, strict=True):
                p.data.add_(direction, alpha=sign * 1e-5)
            values.append(plain_query_risk(algorithm, *batch(), 0.5, 4)[0].mean())
            for p, direction in zip(parameters, directions, strict=True):
                p.data.sub_(direction, alpha=sign * 1e-5)
        slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
        assert slope.abs() > 1e-6, f"no gradient reaches the {name}"
        torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-10, msg=name)
    assert all(p.grad is None for p in algorithm.teacher.experts.parameters())
    assert all(p.grad is None for p in algorithm.teacher.aggregator.head.parameters())


def test_without_an_inner_rate_the_student_is_plain_and_the_aggregator_learns_nothing():
    made = learner(inner_lr=0.0)
    step = at(made)
    loss, _ = made.algorithm.query_risk(step)
    query = step.logits_EBC[:, 4:], step.targets_EB[:, 4:]
    torch.testing.assert_close(loss, step.loss(*query).mean(1).mean(), **EXACT)
    loss.backward()
    assert all((p.grad == 0).all() for p in made.algorithm.teacher.aggregator.attention.parameters())


def test_an_expert_has_no_say_about_its_own_domains():
    made = learner()
    algorithm = made.algorithm
    step = at(made)
    before_E = algorithm.query_risk(step)[1]["risks_E"]
    with torch.no_grad():
        for parameter in algorithm.teacher.experts[1].parameters():
            parameter.mul_(3.0)
    after_E = algorithm.query_risk(step)[1]["risks_E"]
    own_E = algorithm.expert_K == 1
    assert own_E.sum() == 1
    assert after_E[own_E].equal(before_E[own_E]) and (after_E[~own_E] != before_E[~own_E]).all()


def test_rows_are_known_by_their_domain_and_not_by_their_place():
    made = learner()
    order = torch.tensor([2, 0, 1])
    step, (x, y_EB) = at(made), batch()
    shuffled = x.unflatten(0, y_EB.shape)[order].flatten(0, 1)
    found = {}
    made.algorithm.update = lambda step, descend: found.update(step=step) or {}
    made.step(shuffled, y_EB[order], domain_EB=order[:, None].expand(K, B))
    risks_E = made.algorithm.query_risk(found["step"])[1]["risks_E"]
    torch.testing.assert_close(risks_E, made.algorithm.query_risk(step)[1]["risks_E"][order], **EXACT)


@pytest.mark.parametrize(("examples", "support"), [(1, 0), (2, 1), (4, 3), (5, 4)])
def test_a_small_row_keeps_one_example_for_the_query(examples, support):
    made = learner()
    x, y_EB = batch(examples=examples)
    metrics = made.step(x, y_EB)
    assert all(value.isfinite().all() for value in metrics.values())
    if support:
        risks_E, _ = plain_query_risk(learner().algorithm, x, y_EB, 0.5, support)
        torch.testing.assert_close(metrics["risks_E"], risks_E, **EXACT)
    else:
        torch.testing.assert_close(metrics["risk"], F.cross_entropy(model()(x), y_EB.flatten()).detach())


def test_the_distance_is_measured_in_full_precision():
    z_SD = torch.full((2, 3), 1.0, dtype=torch.bfloat16)
    assert distance(z_SD, torch.full((2, 3), 1.001)).dtype == torch.float32
    assert distance(z_SD, torch.full((2, 3), 1.001)) > 0


# --- the stages ------------------------------------------------------------------------------------

SHORT = {"expert_steps": 2, "aggregator_steps": 3, "student_steps": 1}


def test_stages_follow_one_another_and_the_last_takes_the_rest():
    hp = MetaDMoEHparams(**SHORT)
    names = [stage_at(hp, t) for t in range(9)]
    assert names == ["experts"] * 2 + ["aggregator"] * 3 + ["student"] + ["meta"] * 3
    assert [stage.name for stage in meta_dmoe.stages(hp)] == ["experts", "aggregator", "student", "meta"]
    assert stage_at(MetaDMoEHparams(**NO_STAGES), 0) == "meta"


def test_each_stage_trains_its_own_networks_alone():
    made = learner(**SHORT, optimizer={"name": "adam", "lr": 0.01})
    groups = {
        "experts": made.algorithm.teacher.experts,
        "aggregator": made.algorithm.teacher.aggregator,
        "model": made.algorithm.model,
    }
    trained = {
        "experts": {"experts"},
        "aggregator": {"aggregator"},
        "student": {"model"},
        "meta": {"aggregator", "model"},
    }
    for t in range(8):
        before = {name: states(module) for name, module in groups.items()}
        made.step(*batch(t))
        changed = {name for name, module in groups.items() if moved(before[name], module)}
        assert changed == trained[stage_at(made.hp, t)], f"update {t}"
        head_moved = "head" in moved(before["aggregator"], groups["aggregator"])
        assert head_moved == (stage_at(made.hp, t) == "aggregator")


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_every_expert_is_plain_training_on_its_own_domains(name):
    made = learner(domains=5, experts=2, expert_steps=10, optimizer={"name": name, "weight_decay": 0.1})
    plain = [model(number) for number in (1, 2)]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizers = [kind(network.parameters(), lr=0.1, weight_decay=0.1) for network in plain]
    for t in range(4):
        x, y_EB = batch(t, rows=5)
        made.step(x, y_EB)
        for number, (network, optimizer) in enumerate(zip(plain, optimizers, strict=True)):
            own_E = made.algorithm.expert_K == number
            optimizer.zero_grad()
            logits = network(x.unflatten(0, y_EB.shape)[own_E].flatten(0, 1))
            F.cross_entropy(logits, y_EB[own_E].flatten()).backward()
            optimizer.step()
    for expert, network in zip(made.algorithm.teacher.experts, plain, strict=True):
        for mine, other in zip(expert.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(mine, other, **EXACT)


def test_an_expert_without_examples_in_the_minibatch_stays_as_it_is():
    made = learner(expert_steps=5)
    before = states(made.algorithm.teacher.experts)
    x, y_EB = batch(rows=1)
    made.step(x, y_EB, domain_EB=torch.full((1, B), 2))
    assert moved(before, made.algorithm.teacher.experts) == {str(int(made.algorithm.expert_K[2]))}


def test_the_student_stage_is_plain_training():
    made, network = learner(student_steps=5, optimizer={"weight_decay": 0.1}), model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    for t in range(4):
        x, y_EB = batch(t)
        made.step(x, y_EB)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y_EB.flatten()).backward()
        optimizer.step()
    for mine, other in zip(made.algorithm.model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **EXACT)


def test_the_aggregator_hears_all_experts_in_its_own_stage():
    made = learner(aggregator_steps=1)
    aggregator = made.algorithm.teacher.aggregator.eval()
    step = at(made)
    loss, _ = made.algorithm.aggregator_risk(step)
    tokens_NMD = torch.stack([expert.featurizer(step.x) for expert in made.algorithm.teacher.experts], 1)
    taught_ND = torch.stack([plain_block(aggregator, tokens_MD) for tokens_MD in tokens_NMD])
    expected = F.cross_entropy(aggregator.head(taught_ND), step.targets_EB.flatten())
    torch.testing.assert_close(loss, expected, **EXACT)


def test_one_update_of_meta_training_moves_student_and_aggregator_together_at_their_own_rates():
    rates = {"meta_lr_multiplier": 0.5, "meta_aggregator_lr_multiplier": 0.2}
    made, other = learner(**rates, optimizer={"weight_decay": 0.1}), learner(**rates)
    other.algorithm.query_risk(at(other))[0].backward()
    x, y_EB = batch()
    made.step(x, y_EB)
    for network, rate in [("model", 0.05), ("teacher.aggregator.attention", 0.01)]:
        pairs = zip(
            made.algorithm.get_submodule(network).parameters(),
            other.algorithm.get_submodule(network).parameters(),
            strict=True,
        )
        for mine, start in pairs:
            assert (start.grad != 0).any()
            torch.testing.assert_close(mine, start - rate * start.grad, **EXACT)


def test_rates_are_multiples_of_the_configured_one_and_decay_is_for_plain_training():
    made = learner(
        aggregator_lr_multiplier=0.2,
        meta_lr_multiplier=0.5,
        meta_aggregator_lr_multiplier=0.1,
        optimizer={"name": "adam", "lr": 0.1, "weight_decay": 0.3},
    )
    found = {
        name: [(round(group["lr"], 12), group["weight_decay"]) for group in optimizer.param_groups]
        for name, optimizer in made.optimizers.items()
    }
    assert found == {
        "experts": [(0.1, 0.3)],
        "aggregator": [(0.02, 0.0)],
        "student": [(0.1, 0.3)],
        "meta": [(0.05, 0.0), (0.005, 0.0)],
    }


def normed(number=0):
    torch.manual_seed(number)
    layers = [nn.Linear(INPUTS, D), nn.BatchNorm1d(D), nn.ReLU(), nn.Dropout(0.5)]
    return Model(nn.Sequential(*layers), nn.Linear(D, C)).double()


def test_only_networks_that_train_plainly_have_batch_statistics_and_dropout():
    made = learner(make=normed, **SHORT)
    statistics = {"experts": made.algorithm.teacher.experts, "model": made.algorithm.model}
    seen = []
    for t in range(8):
        before = {name: [b.clone() for b in module.buffers()] for name, module in statistics.items()}
        made.step(*batch(t))
        made.predictor()  # as an evaluation between updates, which leaves everything in evaluation mode
        changed = {
            name
            for name, module in statistics.items()
            if any(not a.equal(b) for a, b in zip(module.buffers(), before[name], strict=True))
        }
        seen.append(changed)
    assert seen == [{"experts"}] * 2 + [set()] * 3 + [{"model"}] + [set()] * 2


@pytest.mark.parametrize("rows", [1, K])
@pytest.mark.parametrize("examples", [1, 2])
def test_the_smallest_minibatches_stay_finite_in_every_stage(rows, examples):
    made = learner(**SHORT)
    for t in range(8):
        metrics = made.step(*batch(t, rows, examples))
        assert all(value.isfinite().all() for value in metrics.values()), f"update {t}"
    assert all(p.isfinite().all() for p in made.algorithm.parameters())


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"averaging": AveragingConfig(name="sma", start=2)}]
)
@pytest.mark.parametrize("optimizer", ["adam", "sam"])
def test_every_stage_runs_in_low_precision_averaged_and_with_sam(options, optimizer):
    made = Learner(
        meta_dmoe,
        model().float(),
        Dims(C, D, K, K),
        MetaDMoEHparams(support=4, inner_lr=0.5, **SHORT),
        OptimizerConfig(name=optimizer, lr=0.01, weight_decay=0.0),
        seed=0,
        new_model=lambda number: model(number).float(),
        **options,
    )
    before = states(made.algorithm)
    for t in range(8):
        x, y_EB = batch(t)
        assert all(value.isfinite().all() for value in made.step(x.float(), y_EB).values())
    still = [n for n, p in made.algorithm.named_parameters() if p.equal(before[n])]
    assert not still, still
    assert made.predict(batch()[0].float()).isfinite().all()


# --- prediction and the kit ------------------------------------------------------------------------


def test_it_predicts_with_the_unadapted_student():
    made = learner()
    x, _ = batch()
    torch.testing.assert_close(made.predict(x), made.algorithm.model(x).detach(), **EXACT)
    assert meta_dmoe.tta == "meta-dmoe"
    assert made.predictor().classifier is made.algorithm.model.classifier


@pytest.mark.parametrize(
    "settings",
    [
        {"expert_steps": 4, "aggregator_steps": 4, "student_steps": 8, "experts": 3},
        {"expert_steps": 2, "aggregator_steps": 2, "student_steps": 2, "experts": 2},
    ],
)
def test_it_keeps_the_contract(settings):
    check_algorithm(meta_dmoe, support=4, inner_lr=0.1, meta_lr_multiplier=1.0, **settings)


# --- the published settings ------------------------------------------------------------------------

# Training images, batch (support + query), epochs of the stages, rates: plain, aggregator, student and
# aggregator in meta-training; M, support, inner rate.
WILDS = {
    "iwildcam": (129_809, 24 + 16, (12, 12, 12, 20), (3e-5, 1e-6, 3e-5, 1e-6), (10, 24, 3e-4)),
    "camelyon17": (302_436, 64 + 32, (5, 5, 5, 10), (1e-3, 3e-6, 1e-4, 1e-6), (5, 64, 1e-3)),
    "rxrx1": (40_612, 75 + 48, (90, 90, 90, 10), (1e-4, 1e-5, 1e-6, 3e-6), (3, 75, 1e-4)),
    "fmow": (76_863, 64 + 48, (30, 50, 20, 30), (1e-4, 3e-6, 1e-5, 1e-6), (4, 64, 1e-4)),
}


@pytest.mark.parametrize("dataset", WILDS)
def test_presets_hold_the_published_settings(dataset):
    images, size, epochs, rates, rest = WILDS[dataset]
    composed = config.compose(preset=f"wilds/{dataset}/meta-dmoe", flags={"algorithm": "meta-dmoe"})
    hp, lr = MetaDMoEHparams(**composed.hp), composed.optimizer.lr
    steps = [int(count * images / size + 0.5) for count in epochs]
    assert [hp.expert_steps, hp.aggregator_steps, hp.student_steps] == steps[:3]
    assert (composed.train.steps, composed.train.batch_size) == (sum(steps), size)
    meta = lr * hp.meta_lr_multiplier
    found = (lr, lr * hp.aggregator_lr_multiplier, meta, meta * hp.meta_aggregator_lr_multiplier)
    assert found == pytest.approx(rates, rel=1e-9)
    assert (hp.experts, hp.support, hp.inner_lr) == rest
    assert (composed.tta.options, composed.tta.batch_size) == ({}, hp.support)
    assert composed.tta.order == "manifest"


@pytest.mark.parametrize("dataset", WILDS)
def test_presets_say_what_they_assume(dataset):
    about = config.preset_tree(f"wilds/{dataset}/meta-dmoe")["about"]
    assert f"{WILDS[dataset][0]:,} training images / {WILDS[dataset][1]}" in about
    assert "Not expressed here" in about
