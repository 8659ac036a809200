"""Small steps in float64, and the gradients of what is made of them.

Shapes: E rows of a batch, B examples per row, C outputs, D features.
"""

import pytest
import torch
from torch import nn

from dgharness.data.tasks import cross_entropy
from dgharness.models.model import Model
from dgharness.plugin import Dims
from dgharness.step import Step

INPUTS, D, C = 4, 5, 3


def small_model(seed=0):
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(INPUTS, D), nn.Tanh()), nn.Linear(D, C)).double()


@pytest.fixture
def make_model():
    """``make_model(seed)``: a small model in float64."""
    return small_model


@pytest.fixture
def make_step():
    """``make_step(E, B, seed, **fields)``: a random step whose rows are domains and groups."""

    def make(E=3, B=6, seed=0, **fields):
        draw = torch.Generator().manual_seed(seed)
        rows_EB = torch.arange(E)[:, None].expand(E, B)
        defaults = {
            "x": torch.randn(E * B, INPUTS, generator=draw, dtype=torch.float64),
            "targets_EB": torch.randint(C, (E, B), generator=draw),
            "domain_EB": rows_EB,
            "group_EB": rows_EB,
            "index_EB": torch.full((E, B), -1),
            "noise": torch.rand(E, generator=draw, dtype=torch.float64),
            "t": 10**6,  # after every anneal step
            "model": small_model(),
            "loss": cross_entropy,
        }
        return Step(**{**defaults, **fields})

    return make


@pytest.fixture
def run():
    """``run(spec, step, domains, groups, **hp)``: (loss, metrics, objective) of one forward pass."""

    def forward(spec, step, domains=None, groups=None, **hp):
        rows = len(step.domain_EB)
        hparams = spec.hparams(**hp)
        torch.manual_seed(1)
        objective = spec.objective(Dims(C, D, domains or rows, groups or rows), hparams).double()
        loss, metrics = objective(step, hparams)
        return loss, metrics, objective

    return forward


@pytest.fixture
def grads():
    """``grads(value, module)``: all its gradients in one vector, 0 where the value does not depend on it."""

    def flat(value, module):
        found = torch.autograd.grad(
            value, list(module.parameters()), retain_graph=True, materialize_grads=True
        )
        return torch.cat([grad.flatten() for grad in found])

    return flat
