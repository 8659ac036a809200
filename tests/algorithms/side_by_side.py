"""An algorithm and a plain reference, stepped on the same minibatches in float64.

Shapes: E rows of a batch, B examples per row, C outputs, D features.
"""

import copy

import torch
import torch.nn.functional as F

from dgharness.plugin import Dims
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

E, B = 3, 7
DIMS = Dims(outputs=3, features=5, domains=E, groups=E)
LR, DECAY = 0.01, 0.1


class Reference:
    """The skeleton of a DomainBed algorithm: ``update`` gets one (x, y) per domain."""

    def __init__(self, model, hp):
        self.model, self.hp, self.count = model, hp, 0
        self.restart()

    def restart(self, lr=LR):
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, weight_decay=DECAY)

    def risks(self, minibatches):
        return torch.stack([F.cross_entropy(self.model(x), y) for x, y in minibatches])

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count += 1


def assert_same_updates(spec, model, reference, updates, **hp):
    """Every parameter agrees to a relative 1e-9 after each of some updates."""
    hparams = spec.hparams(**hp)
    other = reference(copy.deepcopy(model), hparams)
    config = OptimizerConfig(lr=LR, weight_decay=DECAY)
    learner = Learner(spec, model, DIMS, hparams, config, 0, steps=updates)
    learner.algorithm.double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for t in range(updates):
        draw = torch.Generator().manual_seed(t)
        x_EBI = torch.randn(E, B, 4, generator=draw, dtype=torch.float64)
        y_EB = torch.randint(3, (E, B), generator=draw)
        learner.step(x_EBI.flatten(0, 1), y_EB)
        other.update(list(zip(x_EBI, y_EB, strict=True)))
        for one, two in zip(model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert all(not one.equal(two) for one, two in zip(model.parameters(), before, strict=True))
