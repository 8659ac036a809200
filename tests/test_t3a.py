"""T3A against lists kept class by class.

Shapes: N examples of a batch, D features, C classes.
"""

from typing import Any

import pytest
import torch
from torch import nn

from dgharness.errors import UsageError
from dgharness.models.model import Model
from dgharness.tta.t3a import t3a

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
C, D = 3, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(nn.Identity(), nn.Linear(D, C)).double().eval()


def stream(batches=4, N=8):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(N, D, generator=draw, dtype=torch.float64) for _ in range(batches)]


def adapted(model, keep=20):
    return t3a.factory(model, t3a.hparams(keep=keep), None, 0)


class Plain:
    """One list of (entropy, feature) per class."""

    def __init__(self, model, keep):
        self.classifier, self.keep = model.classifier, keep
        self.supports = {k: [] for k in range(C)}
        self.add(model.classifier.weight.detach())

    def add(self, z_ND):
        for z_D in z_ND:
            p_C = self.classifier(z_D).detach().softmax(-1)
            entropy = float(-(p_C * p_C.log()).sum())
            self.supports[int(p_C.argmax())].append((entropy, z_D))
        if self.keep > 0:
            self.supports = {
                k: sorted(own, key=lambda s: s[0])[: self.keep] for k, own in self.supports.items()
            }

    def __call__(self, z_ND):
        self.add(z_ND)
        scores = []
        for own in self.supports.values():
            prototype_D = sum((z_D / z_D.norm() for _, z_D in own), torch.zeros(D).double())
            scores.append(z_ND @ (prototype_D / prototype_D.norm().clamp(min=1e-12)))
        return torch.stack(scores, 1)


@pytest.mark.parametrize("keep", [1, 2, 5, 20, -1])
def test_scores_follow_the_plain_lists_batch_by_batch(model, keep):
    method, plain = adapted(model, keep), Plain(model, keep)
    for x in stream():
        torch.testing.assert_close(method(x), plain(x), **EXACT)
        assert len(method.support_SD) == sum(len(own) for own in plain.supports.values())


def test_minus_one_keeps_every_support(model):
    method = adapted(model, -1)
    for x in stream():
        method(x)
    assert len(method.support_SD) == C + 4 * 8


def test_an_example_counts_before_it_is_scored(model):
    x = stream()[0]
    after_others = adapted(model, -1)
    after_others(x)
    assert not torch.allclose(after_others(x[:1]), adapted(model, -1)(x[:1]))


def test_before_any_target_example_the_prototypes_are_the_rows_of_the_head(model):
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(C, D)).mul_(torch.tensor([[1.0], [2.0], [3.0]]))
        model.classifier.bias.zero_()
    method = adapted(model, -1)
    assert method.label_S.tolist() == [0, 1, 2]
    torch.testing.assert_close(method.support_SD, model.classifier.weight.detach(), **EXACT)


def test_a_class_without_support_scores_zero(model):
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, -1e3]))
    assert (adapted(model)(stream()[0])[:, 2] == 0).all()


def test_the_model_is_left_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits_NC = adapted(model)(stream()[0])
    assert not logits_NC.requires_grad
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("classifier", [nn.Sequential(nn.Linear(D, C)), None])
def test_a_head_that_is_not_one_linear_layer_is_a_clear_error(model, classifier):
    with pytest.raises(UsageError, match="linear classifier"):
        adapted(Model(nn.Identity(), classifier) if classifier else nn.Identity())


def test_keeping_nothing_is_a_clear_error(model):
    with pytest.raises(UsageError, match="keep=0"):
        adapted(model, 0)


def test_what_it_declares():
    assert t3a.needs.linear_classifier
    assert [line.split(":")[0] for line in t3a.doc.splitlines() if line and line[0] != " "][1:] == [
        "Paper",
        "Equation",
        "Agrees with",
        "Trust",
    ]
