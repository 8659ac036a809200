"""DRM against loops over domains and heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.drm import drm
from dgharness.errors import UsageError
from dgharness.step import Batch
from dgharness.testing import check_algorithm
from dgharness.testing.world import Case

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
K, C, D = 3, 3, 5
SELECTIONS = ["uniform", "entropy", "prototype", "cosine", "discriminator"]


def domain_head(objective, k):
    """Weight and bias of the head of one domain."""
    rows = slice(k * C, (k + 1) * C)
    return objective.heads.weight[rows], objective.heads.bias[rows]


def plain_loss(objective, step):
    """The mean over examples of half their domain head's and half the pooled head's cross-entropy."""
    losses = []
    for z_BD, y_B, d_B in zip(step.features_EBD, step.targets_EB, step.domain_EB, strict=True):
        for z_D, y, d in zip(z_BD, y_B, d_B.tolist(), strict=True):
            own = F.cross_entropy(F.linear(z_D, *domain_head(objective, d)), y)
            losses.append((own + F.cross_entropy(step.model.classify(z_D), y)) / 2)
    return sum(losses) / len(losses)


MIXED = torch.tensor([[0, 2, 2, 1], [1, 0, 2, 2]])
FEWER = torch.tensor([[2, 2, 2, 2], [0, 0, 0, 0]])


@pytest.mark.parametrize("domain_EB", [None, MIXED, FEWER], ids=["rows", "mixed", "fewer"])
def test_every_example_trains_the_head_of_its_domain_and_the_pooled_one(make_step, run, grads, domain_EB):
    step = make_step() if domain_EB is None else make_step(E=2, B=4, domain_EB=domain_EB)
    loss, _, objective = run(drm, step, domains=K)
    expected = plain_loss(objective, step)
    torch.testing.assert_close(loss, expected, **EXACT)
    for module in (step.model, objective):
        torch.testing.assert_close(grads(loss, module), grads(expected, module), **EXACT)


def test_the_loss_of_whole_rows_is_the_mean_over_domains(make_step, run):
    step = make_step()
    loss, _, objective = run(drm, step)
    own = [
        F.cross_entropy(F.linear(step.features_EBD[k], *domain_head(objective, k)), step.targets_EB[k])
        for k in range(K)
    ]
    expected = sum((own[k] + step.risks_E[k]) / 2 for k in range(K)) / K
    torch.testing.assert_close(loss, expected, **EXACT)


def test_with_one_domain_equal_heads_have_equal_losses(make_step, run):
    step = make_step(E=1)
    _, _, objective = run(drm, step)
    objective.heads.load_state_dict(step.model.classifier.state_dict())
    _, metrics = objective(step, drm.hparams())
    torch.testing.assert_close(metrics["own_head_risk"], metrics["risk"], **EXACT)


# --- the discriminator -----------------------------------------------------------------------------


@pytest.mark.parametrize("domain_EB", [None, MIXED, FEWER], ids=["rows", "mixed", "fewer"])
def test_the_discriminator_learns_the_domain_from_features_that_it_does_not_change(
    make_step, run, grads, domain_EB
):
    step = make_step() if domain_EB is None else make_step(E=2, B=4, domain_EB=domain_EB)
    loss, metrics, objective = run(drm, step, domains=K, selection="discriminator")
    risk = plain_loss(objective, step)
    guesses = [
        -objective.discriminator(z_D).log_softmax(-1)[d]
        for z_D, d in zip(step.features_EBD.detach().flatten(0, 1), step.domain_EB.flatten(), strict=True)
    ]
    guess = sum(guesses) / len(guesses)
    torch.testing.assert_close(metrics["domain_risk"], guess, **EXACT)
    torch.testing.assert_close(loss, risk + guess, **EXACT)
    for module in (step.model, objective.heads):
        torch.testing.assert_close(grads(loss, module), grads(risk, module), **EXACT)
    own = grads(loss, objective.discriminator)
    assert own.any()
    torch.testing.assert_close(own, grads(guess, objective.discriminator), **EXACT)


def batch_of(t):
    """Three domains that the last inputs tell apart."""
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(K, 16, 10, generator=draw)
    x[..., -K:] += 4 * torch.eye(K)[:, None]
    return x.flatten(0, 1), torch.randint(C, (K, 16), generator=draw)


def trained(updates, selection):
    learner = Case(drm, drm.hparams(selection=selection)).learner()
    for t in range(updates):
        learner.step(*batch_of(t))
    return learner


def test_a_discriminator_beside_them_changes_neither_heads_nor_features():
    state, other = (trained(10, selection).state_dict() for selection in ("discriminator", "entropy"))
    assert len([key for key in state["algorithm"] if "discriminator" in key]) == 6
    for part in ("model", "algorithm"):
        assert not any("discriminator" in key for key in other[part])
        for key, value in other[part].items():
            assert value.equal(state[part][key]), key


def test_a_trained_discriminator_finds_the_head_of_the_domain():
    predictor, (x, _) = trained(100, "discriminator").predictor(), batch_of(1000)
    z_ND = predictor.features(x)
    weight_KN = predictor.weights(predictor.heads(z_ND).log_softmax(-1), z_ND, 1.0)
    for k, own_KB in enumerate(weight_KN.split(16, dim=1)):
        assert own_KB[k].mean() > 0.8


def test_the_discriminator_weights_every_head_by_how_likely_its_domain_is(predicted):
    log_p_HNC, logits_NC, predictor, z_ND = predicted(selection="discriminator")
    weight_NK = predictor.drm.discriminator(z_ND).softmax(-1)
    assert (weight_NK - 1 / K).abs().max() > 1e-3
    expected = sum(weight_NK[:, k, None] * log_p_HNC[k].exp() for k in range(K))
    torch.testing.assert_close(logits_NC.exp(), expected, **EXACT)


@pytest.mark.parametrize("selection", ["discriminator", "cosine"])
def test_it_keeps_to_the_contract(selection):
    check_algorithm(drm, selection=selection)


# --- prediction ------------------------------------------------------------------------------------


class Domains:
    """A source whose domain k lies around the point k; remembers how much was asked of it."""

    def __init__(self):
        self.drawn = []

    def sample(self, where, n, generator):
        self.drawn.append(n)
        x = where["domain"] + torch.randn(n, 4, generator=generator, dtype=torch.float64)
        nothing_EB = torch.zeros(1, n, dtype=torch.long)
        return Batch(
            x=x, targets_EB=nothing_EB, domain_EB=nothing_EB, group_EB=nothing_EB, index_EB=nothing_EB
        )


@pytest.fixture
def predicted(make_step, run):
    """``predicted(**hp)``: (log p of the heads [K+1, N, C], logits [N, C], predictor, z)."""

    def predict(source=None, **hp):
        step = make_step()
        _, _, objective = run(drm, step, **hp)
        predictor = objective.predictor(step.model, drm.hparams(**hp), source)
        z_ND = step.model.features(step.x)
        heads = [F.linear(z_ND, *domain_head(objective, k)) for k in range(K)] + [step.model.classify(z_ND)]
        return torch.stack(heads).log_softmax(-1), predictor.classify(z_ND), predictor, z_ND

    return predict


def test_heads_are_the_domains_then_the_pooled_one(predicted):
    log_p_HNC, _, predictor, z_ND = predicted()
    assert predictor.head_names == ("domain 0", "domain 1", "domain 2", "pooled")
    torch.testing.assert_close(predictor.heads(z_ND).log_softmax(-1), log_p_HNC, **EXACT)


def test_uniform_selection_averages_the_probabilities(predicted):
    log_p_HNC, logits_NC, _, _ = predicted(selection="uniform")
    torch.testing.assert_close(logits_NC.exp(), log_p_HNC.exp().mean(0), **EXACT)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_entropy_selection_weights_each_example_by_the_heads_certainty(predicted, gamma):
    log_p_HNC, logits_NC, _, _ = predicted(gamma=gamma)
    for n in range(log_p_HNC.shape[1]):
        p_HC = log_p_HNC[:, n].exp()
        certainty_H = torch.distributions.Categorical(p_HC).entropy() ** -gamma
        expected = (certainty_H / certainty_H.sum()) @ p_HC
        torch.testing.assert_close(logits_NC[n].exp(), expected, rtol=1e-6, atol=0)


def test_gamma_0_is_the_uniform_mean(predicted):
    torch.testing.assert_close(predicted(gamma=0)[1], predicted(selection="uniform")[1], **EXACT)


def test_negative_gamma_takes_the_most_certain_head_alone(predicted):
    log_p_HNC, logits_NC, _, _ = predicted(gamma=-1)
    best_N = (log_p_HNC.exp() * log_p_HNC).sum(-1).argmax(0)
    expected = torch.stack([log_p_HNC[best, n] for n, best in enumerate(best_N.tolist())])
    torch.testing.assert_close(logits_NC, expected, **EXACT)


def test_prototype_selection_weights_the_domain_heads_by_closeness(predicted):
    source = Domains()
    log_p_HNC, logits_NC, predictor, z_ND = predicted(
        source, selection="prototype", gamma=2, prototype_samples=100
    )
    assert source.drawn == [64, 36] * K
    closeness_KN = torch.stack([(z_ND - mu).square().sum(-1).rsqrt() for mu in predictor.prototype_KD]) ** 2
    weight_KN = closeness_KN / closeness_KN.sum(0)
    expected = (weight_KN[..., None] * log_p_HNC[:K].exp()).sum(0)
    torch.testing.assert_close(logits_NC.exp(), expected, **EXACT)


def test_a_prototype_is_the_mean_feature_of_its_domain(predicted):
    _, _, predictor, _ = predicted(Domains(), selection="prototype", prototype_samples=20_000)
    draw = torch.Generator().manual_seed(1)
    for k, mu_D in enumerate(predictor.prototype_KD):
        x = k + torch.randn(20_000, 4, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(mu_D, predictor.features(x).mean(0), rtol=0, atol=0.03)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_cosine_selection_weights_the_domain_heads_by_the_angle_to_their_prototype(predicted, gamma):
    log_p_HNC, logits_NC, predictor, z_ND = predicted(
        Domains(), selection="cosine", gamma=gamma, prototype_samples=100
    )
    cosine_KN = torch.stack([F.cosine_similarity(z_ND, mu_D, dim=-1) for mu_D in predictor.prototype_KD])
    weight_KN = (1 - cosine_KN) ** -gamma
    expected = (weight_KN[..., None] * log_p_HNC[:K].exp()).sum(0) / weight_KN.sum(0)[:, None]
    torch.testing.assert_close(logits_NC.exp(), expected, **EXACT)


def test_negative_gamma_takes_the_head_of_the_most_similar_prototype(predicted):
    log_p_HNC, logits_NC, predictor, z_ND = predicted(Domains(), selection="cosine", gamma=-1)
    cosine_KN = torch.stack([F.cosine_similarity(z_ND, mu_D, dim=-1) for mu_D in predictor.prototype_KD])
    expected = torch.stack([log_p_HNC[k, n] for n, k in enumerate(cosine_KN.argmax(0).tolist())])
    torch.testing.assert_close(logits_NC, expected, **EXACT)


def test_an_example_on_its_prototype_has_that_head_alone(predicted):
    for selection in ("prototype", "cosine"):
        _, _, predictor, _ = predicted(Domains(), selection=selection)
        mu_1D = predictor.prototype_KD[1:2]
        expected = predictor.heads(mu_1D).log_softmax(-1)[1]
        torch.testing.assert_close(predictor.classify(mu_1D), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_predictions_are_probabilities_and_depend_on_no_other_example(predicted, selection):
    _, logits_NC, predictor, z_ND = predicted(Domains(), selection=selection)
    torch.testing.assert_close(logits_NC.exp().sum(-1), torch.ones(len(z_ND)).double(), **EXACT)
    alone = torch.cat([predictor.classify(z_1D) for z_1D in z_ND.split(1)])
    torch.testing.assert_close(logits_NC, alone, **EXACT)


def test_a_certain_head_does_not_break_the_mixture(predicted):
    _, _, predictor, z_ND = predicted()
    with torch.no_grad():
        predictor.drm.heads.weight.mul_(1e6)
    assert not predictor.classify(z_ND).isnan().any()


@pytest.mark.parametrize("selection", ["prototype", "cosine"])
def test_prototypes_without_training_data_are_a_clear_error(make_step, run, selection):
    step = make_step()
    _, _, objective = run(drm, step)
    with pytest.raises(UsageError, match=f"selection={selection} .* set selection=entropy"):
        objective.predictor(step.model, drm.hparams(selection=selection), None)


def test_separate_heads_are_copies_of_the_domains_and_the_pooled_one_itself(predicted):
    _, _, predictor, z_ND = predicted()
    *own, pooled = predictor.separate_heads()
    assert pooled is predictor.model.classifier and len(own) == K
    torch.testing.assert_close(torch.stack([head(z_ND) for head in [*own, pooled]]), predictor.heads(z_ND))
    before = predictor.heads(z_ND)
    with torch.no_grad():
        own[0].weight.zero_()
    assert predictor.heads(z_ND).equal(before)


def test_another_gamma_may_be_asked_of_the_mixture(predicted):
    _, expected, _, _ = predicted(gamma=5.0)
    _, _, predictor, z_ND = predicted(gamma=1.0)
    torch.testing.assert_close(predictor.mix(predictor.heads(z_ND), z_ND, 5.0), expected, **EXACT)
