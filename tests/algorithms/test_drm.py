"""DRM against loops over domains and heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgharness.algorithms.drm import drm
from dgharness.errors import UsageError
from dgharness.step import Batch

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
K, C, D = 3, 3, 5


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


@pytest.mark.parametrize("selection", ["uniform", "entropy", "prototype"])
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


def test_prototypes_without_training_data_are_a_clear_error(make_step, run):
    step = make_step()
    _, _, objective = run(drm, step)
    with pytest.raises(UsageError, match="selection=entropy"):
        objective.predictor(step.model, drm.hparams(selection="prototype"), None)
