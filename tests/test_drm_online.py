"""Online retraining of DRM against the loop of the paper's code, head by head.

Shapes: N examples of a batch, C classes, D features, H = K + 1 heads, the pooled one last.
"""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.drm import drm
from dgharness.errors import UsageError
from dgharness.hparams import draw, spaces
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.tta.drm_online import drm_online

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
K, C, D = 3, 4, 6
LABELS = ("own", "last", "uniform", "drm")


def predictor(gamma=1.0, selection="entropy"):
    """A trained-looking drm: features with BatchNorm, and heads that are sure of some examples."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(5, D), nn.BatchNorm1d(D), nn.Tanh()), nn.Linear(D, C)).double()
    hp = drm.hparams(gamma=gamma, selection=selection)
    own = drm.objective(Dims(C, D, K, K), hp).double()
    with torch.no_grad():
        pooled = model.classifier.weight.mul_(6)
        own.heads.weight.mul_(3).add_(pooled.repeat(K, 1))  # so that the heads agree on many an example
    return own.predictor(model, hp, None).eval()


def stream(batches=4, N=16):
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(N, 5, generator=draws, dtype=torch.float64) for _ in range(batches)]


def adapted(own, **hp):
    return drm_online.factory(copy.deepcopy(own), drm_online.hparams(**hp), None, 0)


class Plain:
    """The paper's loop with heads in a list, an optimizer over all, and one example at a time for labels."""

    def __init__(self, own, hp):
        self.hp, self.features = hp, copy.deepcopy(own.model.featurizer).eval()
        weights, biases = own.drm.heads.weight.split(C), own.drm.heads.bias.split(C)
        pooled = own.model.classifier
        self.heads = [
            tuple(p.detach().clone().requires_grad_() for p in pair)
            for pair in [*zip(weights, biases, strict=True), (pooled.weight, pooled.bias)]
        ]
        params = [p for head in self.heads for p in head]
        if hp.update == "all":
            params += list(self.features.parameters())
        self.optimizer = torch.optim.Adam(params, lr=hp.lr_multiplier * hp.training_lr)
        self.gamma = own.hp.gamma if hp.gamma is None else hp.gamma
        self.learned_from = 0

    def mixture(self, p_NC_by_head):
        mixed = []
        for n in range(len(p_NC_by_head[0])):
            p_HC = torch.stack([p_NC[n] for p_NC in p_NC_by_head])
            entropy_H = -(p_HC * p_HC.log()).sum(1)
            if self.gamma < 0:
                mixed.append(p_HC[entropy_H.argmin()])
            else:
                weight_H = entropy_H**-self.gamma
                mixed.append((weight_H / weight_H.sum()) @ p_HC)
        return torch.stack(mixed).detach()

    def __call__(self, x):
        for _ in range(self.hp.steps):
            z_ND = self.features(x)
            logits = [F.linear(z_ND, *head) for head in self.heads]
            p = [logits_NC.detach().softmax(-1) for logits_NC in logits]
            result = self.mixture(p)
            loss = 0
            for number, logits_NC in enumerate(logits):
                source_NC = {
                    "own": p[number],
                    "last": p[-1],
                    "uniform": sum(p) / len(p),
                    "drm": result,
                }[self.hp.pseudo_label]
                kept = [n for n in range(len(x)) if source_NC[n].max() >= self.hp.threshold]
                if kept:
                    losses = [F.cross_entropy(logits_NC[n], source_NC[n].argmax()) for n in kept]
                    loss = loss + sum(losses) / len(kept)
                    self.learned_from += len(kept)
            if torch.is_tensor(loss):
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return result


@pytest.mark.parametrize("update", ["heads", "all"])
@pytest.mark.parametrize("pseudo_label", LABELS)
@pytest.mark.parametrize(("steps", "gamma"), [(1, None), (3, None), (2, -1.0), (1, 5.0)])
def test_every_batch_follows_the_plain_loop(update, pseudo_label, steps, gamma):
    hp = drm_online.hparams(
        update=update,
        pseudo_label=pseudo_label,
        steps=steps,
        gamma=gamma,
        threshold=0.75,
        lr_multiplier=2.0,
        training_lr=1e-2,
    )
    own = predictor(gamma=0.5)
    method, plain = drm_online.factory(copy.deepcopy(own), hp, None, 0), Plain(own, hp)
    for x in stream():
        torch.testing.assert_close(method(x).exp(), plain(x), **EXACT)
    for head, (weight, bias) in zip(method.heads, plain.heads, strict=True):
        torch.testing.assert_close(head.weight, weight, **EXACT)
        torch.testing.assert_close(head.bias, bias, **EXACT)
    for mine, theirs in zip(
        method.predictor.model.featurizer.parameters(), plain.features.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **EXACT)
    possible = 4 * 16 * (K + 1) * steps
    assert possible / 20 < plain.learned_from < possible * 19 / 20


def test_a_head_without_a_confident_example_stays_where_it_is_momentum_and_all():
    own = predictor()
    method = adapted(own, pseudo_label="own", threshold=0.6, training_lr=1e-2)
    method(stream()[0])  # all heads move, and have momentum from here on
    assert len(method.optimizer.state) == 2 * (K + 1)
    unsure = method.heads[1]
    with torch.no_grad():
        unsure.weight.mul_(1e-3)
        unsure.bias.zero_()
    before = copy.deepcopy(method.heads)
    steps = {id(p): int(state["step"]) for p, state in method.optimizer.state.items()}
    method(stream()[1])
    for number, (old, new) in enumerate(zip(before, method.heads, strict=True)):
        stayed = number == 1
        assert new.weight.equal(old.weight) is new.bias.equal(old.bias) is stayed
        taken = method.optimizer.state[new.weight]["step"] - steps[id(new.weight)]
        assert int(taken) == (0 if stayed else 1)


def test_heads_alone_leave_the_features_and_all_moves_them_too():
    own = predictor()
    before = own.model.featurizer.state_dict()
    for update, moves in (("heads", False), ("all", True)):
        method = adapted(own, update=update, threshold=0.1)
        method(stream()[0])
        after = dict(method.predictor.model.featurizer.named_parameters())
        assert all(p.equal(before[name]) != moves for name, p in after.items() if "0.bias" not in name)
        for name, buffer in method.predictor.model.featurizer.named_buffers():
            assert buffer.equal(before[name]), "BatchNorm keeps the statistics of training"
        assert not method.predictor.training


@pytest.mark.parametrize("selection", ["uniform", "entropy", "discriminator"])
@pytest.mark.parametrize("update", ["heads", "all"])
@pytest.mark.parametrize("off", [{"lr_multiplier": 0.0}, {"threshold": 1.1}])
def test_without_a_rate_or_an_example_to_learn_from_it_predicts_what_drm_does(selection, update, off):
    own = predictor(gamma=5.0, selection=selection)
    method = adapted(own, update=update, **{"threshold": 0.1, "steps": 3, **off})
    for x in stream():
        torch.testing.assert_close(method(x), own(x), **EXACT)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_batch_is_predicted_before_the_last_step_on_it(steps):
    own, (x, *_) = predictor(), stream()
    if steps == 1:
        torch.testing.assert_close(adapted(own, threshold=0.1, steps=1)(x), own(x), **EXACT)
    twice = adapted(own, threshold=0.1, steps=1)
    for _ in range(steps - 1):
        twice(x)
    torch.testing.assert_close(adapted(own, threshold=0.1, steps=steps)(x), twice(x), **EXACT)


def test_confidence_is_a_plain_probability():
    """In four classes the second softmax of the paper's code would leave none above 0.476."""
    own = predictor()
    with torch.no_grad():
        own.model.classifier.weight.mul_(100)
        own.drm.heads.weight.copy_(own.model.classifier.weight.repeat(K, 1))
    for pseudo_label in LABELS:
        method = adapted(own, pseudo_label=pseudo_label, threshold=0.75)
        method(stream()[0])
        assert method.optimizer.state, pseudo_label


@pytest.mark.parametrize("update", ["heads", "all"])
def test_averaged_weights_which_ask_for_no_gradient_are_retrained_all_the_same(update):
    own = predictor().requires_grad_(False)
    method = adapted(own, update=update, threshold=0.1)
    before = copy.deepcopy(method.heads)
    with torch.no_grad():
        assert not method(stream()[0]).requires_grad
    assert all(not new.weight.equal(old.weight) for old, new in zip(before, method.heads, strict=True))


def test_a_single_example_is_a_batch():
    method = adapted(predictor(), threshold=0.1)
    assert all(method(x_15).isfinite().all() for x_15 in stream()[0].split(1))


@pytest.mark.parametrize("other", [nn.Identity(), Model(nn.Identity(), nn.Linear(2, 2))])
def test_a_predictor_of_another_method_is_a_clear_error(other):
    with pytest.raises(UsageError, match=f"{type(other).__name__} has none; train with --algorithm drm"):
        drm_online.factory(other, drm_online.hparams(), None, 0)


def test_the_search_is_over_the_papers_grid():
    assert {name: space.options for name, space in spaces(drm_online.hparams).items()} == {
        "lr_multiplier": (0.1, 1.0, 10.0),
        "steps": (1, 3),
        "threshold": (0.1, 0.25, 0.75, 1.1),
        "pseudo_label": LABELS,
        "gamma": (-1.0, 0.0, 0.5, 1.0, 5.0),
    }
    for seed in range(20):
        drawn = draw(drm_online.hparams, seed, 0)
        assert drm_online.hparams.model_validate(drawn.model_dump(mode="json")) == drawn


def test_what_it_declares():
    assert drm_online.needs.tasks == ("classification",)
    assert [line.split(":")[0] for line in drm_online.doc.splitlines() if line and line[0] != " "][1:] == [
        "Paper",
        "Equation",
        "Agrees with",
        "Trust",
        "Shapes",
    ]
