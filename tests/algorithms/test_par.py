"""PAR: the two players written out plainly, where they look, and what they cannot run on."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgharness.algorithms.par import par
from dgharness.errors import NotApplicable
from dgharness.models.mnist_cnn import mnist_cnn
from dgharness.models.model import Model, build_model
from dgharness.models.resnet import resnet18
from dgharness.plugin import Dims
from dgharness.testing import check_algorithm
from dgharness.testing.world import small_model
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

C, E, B, SHAPE = 3, 2, 4, (2, 8, 8)
DIMS = Dims(outputs=C, features=6, domains=E, groups=E, input_shape=SHAPE)
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    ]
    return Model(nn.Sequential(*layers, nn.Flatten()), nn.Linear(6, C))


def learner(model=None, dims=DIMS, optimizer="sgd", **hp):
    settings = OptimizerConfig(name=optimizer, lr=0.1, weight_decay=0.0, momentum=0.0)
    made = Learner(par, model or network(), dims, par.hparams(**hp), settings, 0)
    made.algorithm.double()
    return made


def batch(t=0, shape=SHAPE):
    draw = torch.Generator().manual_seed(t)
    x = torch.randn(E * B, *shape, generator=draw, dtype=torch.float64)
    return x, torch.randint(C, (E, B), generator=draw)


def local_risk(q, map_, y):
    """The loss of a linear classifier at every position, one after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(map_.shape[2]):
        for column in range(map_.shape[3]):
            total = total + F.cross_entropy(map_[:, :, row, column] @ q.weight[:, :, 0, 0].T + q.bias, y)
    return total / (map_.shape[2] * map_.shape[3])


def test_the_network_ascends_the_local_risk_and_then_the_local_classifier_descends_it():
    ours = learner(weight=0.3, anneal_steps=1, lr_multiplier=2.0)
    model, q = network().double(), nn.Conv2d(5, C, 1).double()
    q.load_state_dict(ours.algorithm.q.state_dict())
    for t in range(3):
        x, y_EB = batch(t)
        y, weight = y_EB.flatten(), 0.3 if t >= 1 else 0.0
        map_ = model.featurizer[0](x)
        risk = F.cross_entropy(model.classifier(model.featurizer[1:](map_)), y)
        local = local_risk(q, map_, y)
        moves = torch.autograd.grad(risk - weight * local, list(model.parameters()))
        learns = torch.autograd.grad(local_risk(q, map_.detach(), y), list(q.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), moves, strict=True):
                p -= 0.1 * g
            for p, g in zip(q.parameters(), learns, strict=True):
                p -= 0.2 * g
        metrics = ours.step(x, y_EB)
        torch.testing.assert_close(metrics["risk"], risk.detach(), **EXACT)
        torch.testing.assert_close(metrics["local_risk"], local.detach(), **EXACT)
    theirs = [*model.parameters(), *q.parameters()]
    mine = [*ours.algorithm.model.parameters(), *ours.algorithm.q.parameters()]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_strong_weight_makes_the_first_layer_say_less_about_the_label():
    """Each class has its own colour: the local risk stays at chance where the penalty holds it there."""

    def trained(weight):
        made = learner(optimizer="adam", weight=weight, anneal_steps=0)
        for t in range(60):
            x, y_EB = batch(t)
            x = 0.1 * x
            x[:, 0] += y_EB.flatten()[:, None, None]
            metrics = made.step(x, y_EB)
        return float(metrics["local_risk"])

    assert trained(0.0) < 0.6 < trained(1.0)


def test_the_first_convolution_is_taken_unless_a_layer_is_named():
    assert learner().algorithm.layer == "0"
    other = learner(layer="2").algorithm
    assert other.layer == "2" and other.q.in_channels == 6
    model = build_model(mnist_cnn, (2, 16, 16), C, mnist_cnn.options(), 0)[0]
    dims = Dims(C, 128, E, E, input_shape=(2, 16, 16))
    named = learner(model, dims, layer="block1")
    assert named.algorithm.q.in_channels == 64 and model.featurizer.training
    assert named.step(*batch(shape=(2, 16, 16)))["local_risk"].isfinite()


def test_the_stem_of_a_residual_network_can_be_named():
    model = build_model(resnet18, (3, 32, 32), C, resnet18.options(weights="scratch"), 0)[0]
    made = learner(model, Dims(C, 512, E, E, input_shape=(3, 32, 32)), layer="relu")
    before = made.algorithm.model.featurizer.bn1.num_batches_tracked.item()
    assert made.step(*batch(shape=(3, 32, 32)))["risk"].isfinite()
    assert made.algorithm.model.featurizer.bn1.num_batches_tracked.item() == before + 1, "one forward pass"


@pytest.mark.parametrize(
    ("local", "layers", "sides"), [("linear", 1, {1}), ("broad", 1, {3}), ("deep", 3, {1})]
)
def test_the_local_classifier_has_the_published_variants(local, layers, sides):
    q = learner(local=local, weight=0.1, anneal_steps=0).algorithm.q
    convolutions = [module for module in q.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == layers and {c.kernel_size[0] for c in convolutions} == sides
    assert q(torch.zeros(2, 5, 8, 8, dtype=torch.float64)).shape == (2, C, 8, 8)


def test_a_featurizer_of_linear_layers_has_one_position():
    made = Learner(
        par, small_model(0), Dims(3, 6, 3, 3), par.hparams(), OptimizerConfig(lr=0.1, weight_decay=0), 0
    )
    assert made.algorithm.layer == "0" and made.algorithm.q.in_channels == 6


def test_a_featurizer_without_any_such_layer_and_a_wrong_name_are_refused():
    flat = Model(nn.Flatten(), nn.Linear(128, C))
    with pytest.raises(
        NotApplicable, match=r"par cannot run here: .* neither a convolution nor a linear layer"
    ):
        learner(flat)
    model = build_model(mnist_cnn, (2, 16, 16), C, mnist_cnn.options(), 0)[0]
    with pytest.raises(NotApplicable, match="no layer 'block'; did you mean 'block4'"):
        learner(model, layer="block")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"anneal_steps": 3, "weight": 0.1},
        {"anneal_steps": 0, "weight": 0.1, "local": "deep"},
        {"anneal_steps": 0, "weight": 0.1, "local": "broad", "layer": "1"},
    ],
)
def test_it_conforms(settings):
    check_algorithm(par, **settings)
