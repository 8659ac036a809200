"""SMOS: the bound and the divergence written out plainly, the precursor, the rates, the legacy form."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from dgharness.algorithms.smos import divergence, smos, unlikelihood
from dgharness.errors import NotApplicable
from dgharness.models.model import Model, build_model
from dgharness.models.resnet import resnet18
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

C, E, B, SHAPE = 3, 2, 4, (2, 6, 6)
DIMS = Dims(outputs=C, features=6, domains=E, groups=E, input_shape=SHAPE)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return Model(nn.Sequential(*layers, nn.Flatten()), nn.Linear(6, C)).double()


def learner(optimizer="sgd", **hp):
    settings = OptimizerConfig(name=optimizer, lr=0.1, weight_decay=0.0, momentum=0.0)
    made = Learner(smos, network(), DIMS, smos.hparams(**hp), settings, 0)
    made.algorithm.double()
    return made


def batch(t=0):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, *SHAPE, generator=draw, dtype=torch.float64)
    return x, torch.randint(C, (E, B), generator=draw)


def softplus(b):
    return math.log(1 + math.exp(b)) + 1e-5


def plain_bound(f, target, variances):
    """Half the mean of the squared error over the variance plus the logarithm of the variance."""
    total, count = 0.0, 0
    for n in range(f.shape[0]):
        for c in range(f.shape[1]):
            for value, wanted in zip(
                f[n, c].flatten().tolist(), target[n, c].flatten().tolist(), strict=True
            ):
                total += (value - wanted) ** 2 / variances[c] + math.log(variances[c])
                count += 1
    return total / count / 2


def plain_js(f_ND, target_ND):
    total = 0.0
    for f, target in zip(f_ND.tolist(), target_ND.tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, f)) for v in f]
        q = [math.exp(v) / sum(map(math.exp, target)) for v in target]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        total += sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True)) / 2
    return total / len(f_ND)


# --- the terms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5)])
def test_the_bound_has_a_variance_per_channel(shape):
    f, target = torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    b = torch.randn(3, dtype=torch.float64)
    expected = plain_bound(f, target, [softplus(value) for value in b.tolist()])
    assert unlikelihood(f, target, b).item() == pytest.approx(expected, rel=1e-12)


def test_the_divergence_is_that_of_jensen_and_shannon_in_nats():
    f, target = (3 * torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    found = divergence(f, target, smos.hparams())
    assert found.item() == pytest.approx(plain_js(f, target), rel=1e-12)
    assert found.item() == pytest.approx(divergence(target, f, smos.hparams()).item(), rel=1e-12)
    assert divergence(f, f, smos.hparams()).abs() < 1e-15
    far = torch.eye(2, dtype=torch.float64) * 1e3
    assert divergence(far, far.flip(0), smos.hparams()).item() == pytest.approx(math.log(2))


def test_temperature_divides_the_features_and_kl_is_one_sided():
    f, target = (torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    warm = divergence(2 * f, 2 * target, smos.hparams(temperature=2.0))
    assert warm.item() == pytest.approx(divergence(f, target, smos.hparams()).item(), rel=1e-12)
    log_p, log_q = f.log_softmax(-1), target.log_softmax(-1)
    expected = sum(float(log_p[n, d].exp() * (log_p[n, d] - log_q[n, d])) for n in range(4) for d in range(5))
    assert divergence(f, target, smos.hparams(divergence="kl")).item() == pytest.approx(
        expected / 4, rel=1e-12
    )


def test_the_legacy_divergence_is_the_authors_and_may_be_negative():
    f, target = (torch.rand(4, 5, dtype=torch.float64) + 0.5 for _ in range(2))
    total = 0.0
    for a, b in zip(f.flatten().tolist(), target.flatten().tolist(), strict=True):
        m = (a + b) / 2
        total += m * (math.log(m) - b) + m * (math.log(m) - a)
    found = divergence(f, target, smos.hparams(legacy=True))
    assert found.item() == pytest.approx(total / 2 / 20, rel=1e-12)
    assert found < 0
    expected = (f * (f.log() - target)).mean()
    torch.testing.assert_close(divergence(f, target, smos.hparams(legacy=True, divergence="kl")), expected)


# --- the update ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), ("1", "3")])
def test_three_updates_equal_the_loss_written_out(layers):
    ours = learner(weight=0.2, lr_multiplier=5.0, layers=layers)
    model, precursor = network(), network()
    biases = [b.detach().clone().requires_grad_() for b in ours.algorithm.variances]

    def outputs(net, x):
        early = net.featurizer[1](net.featurizer[0](x))
        late = net.featurizer[3](net.featurizer[2](early))
        z = net.featurizer[5](net.featurizer[4](late))
        return ([early, late] if layers else [z]), z

    for t in range(3):
        x, y_EB = batch(t)
        (maps, z), (wanted, wanted_z) = outputs(model, x), outputs(precursor, x)
        risk = nn.functional.cross_entropy(model.classifier(z), y_EB.flatten())
        bound = 0
        for f, target, b in zip(maps, wanted, biases, strict=True):
            s = (nn.functional.softplus(b) + 1e-5).view(1, -1, *[1] * (f.dim() - 2))
            bound = bound + ((f - target.detach()) ** 2 / s + s.log()).mean() / 2
        p, q = z.softmax(-1), wanted_z.detach().softmax(-1)
        m = (p + q) / 2
        js = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
        loss = risk + 0.2 / 5.0 * bound + 0.2 * js
        parts = [*model.parameters(), *biases]
        moved = torch.autograd.grad(loss, parts)
        with torch.no_grad():
            for p_, g in zip(parts, moved, strict=True):
                p_ -= (0.5 if any(p_ is b for b in biases) else 0.1) * g
        metrics = ours.step(x, y_EB)
        torch.testing.assert_close(metrics["bound"], bound.detach(), **EXACT)
        torch.testing.assert_close(metrics["divergence"], js.detach(), **EXACT)
    mine = [*ours.algorithm.model.parameters(), *ours.algorithm.variances]
    for one, other in zip(mine, [*model.parameters(), *biases], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_the_variances_start_at_a_tenth_and_learn_at_their_own_rate():
    made = learner(lr_multiplier=7.0)
    (b,) = made.algorithm.variances
    assert softplus(b[0].item()) == pytest.approx(0.1)
    assert sorted(group["lr"] for group in made.optimizers["model"].param_groups) == pytest.approx([0.1, 0.7])


def test_the_precursor_stays_what_the_model_was():
    made = learner(optimizer="adam")
    before = [p.clone() for p in made.pretrained.parameters()]
    for t in range(3):
        made.step(*batch(t))
    assert all(p.equal(was) for p, was in zip(made.pretrained.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in made.pretrained.parameters()) and not made.pretrained.training


def test_the_layers_of_the_paper_fit_a_residual_network():
    model = build_model(resnet18, (3, 32, 32), C, resnet18.options(weights="scratch"), 0)[0]
    hp = smos.hparams(layers=("maxpool", "layer1", "layer2", "layer3", "layer4"))
    dims = Dims(C, 512, E, E, input_shape=(3, 32, 32))
    made = Learner(smos, model, dims, hp, OptimizerConfig(lr=1e-3, weight_decay=0), 0)
    assert [len(b) for b in made.algorithm.variances] == [64, 64, 128, 256, 512]
    x = torch.randn(E * B, 3, 32, 32)
    assert made.step(x, torch.zeros(E, B, dtype=torch.long))["bound"].isfinite()


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(NotApplicable, match="smos cannot run here: the featurizer has no layer 'layer9'"):
        learner(layers=("layer9",))


@pytest.mark.parametrize("settings", [{}, {"layers": ("0", "1"), "divergence": "kl", "weight": 1.0}])
def test_it_conforms(settings):
    check_algorithm(smos, **settings)
