"""EIIL: slopes against autograd, the split against a plain ascent, and what it finds on coloured digits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import run_small, stored
from torch import nn

from dgharness import registry
from dgharness.annotators import eiil as module
from dgharness.annotators.eiil import EIILHparams, eiil, slopes, split
from dgharness.data.colored_digits import load
from dgharness.data.coloring import ColoringOptions
from dgharness.data.groups import grouping
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.source import TrainingSource
from dgharness.data.tasks import squared_error
from dgharness.errors import UsageError
from dgharness.models.model import build_model

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


class Rows:
    """Training data of vectors, in batches."""

    def __init__(self, x, y):
        self.x, self.y, self.columns = x, y, {"y": y}

    def batches(self, split, size):
        for x, y in zip(self.x.split(size), self.y.split(size), strict=True):
            yield SimpleNamespace(x=x, targets_EB=y[None])


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=draw, dtype=torch.float64)
    return Rows(x, torch.randint(3, (30,), generator=draw))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def test_the_slope_of_an_example_is_the_derivative_of_its_loss_in_a_scale(vectors, model):
    expected = []
    for x, y in zip(vectors.x, vectors.y, strict=True):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        expected.append(torch.autograd.grad(F.cross_entropy(model(x).detach() * scale, y), scale)[0])
    torch.testing.assert_close(slopes(vectors, model), torch.stack(expected), **EXACT)


def test_of_two_classes_the_slope_is_the_error_times_the_logit(vectors):
    vectors.y = vectors.y.clamp(max=1)
    model = nn.Linear(4, 2).double()
    f = model(vectors.x).detach().diff(dim=1).squeeze(1)
    torch.testing.assert_close(slopes(vectors, model), (f.sigmoid() - vectors.y) * f, **EXACT)


def test_numbers_have_the_slope_of_the_squared_error(vectors):
    vectors.y = vectors.y.double()
    model = nn.Linear(4, 1).double()
    outputs = model(vectors.x).detach().squeeze(1)
    torch.testing.assert_close(slopes(vectors, model), 2 * (outputs - vectors.y) * outputs, **EXACT)
    assert squared_error(model(vectors.x), vectors.y).shape == (30,)


def test_the_split_is_that_of_an_ascent_by_autograd(vectors, model):
    slope = slopes(vectors, model)
    hp = EIILHparams(inference_steps=60, inference_lr=0.02)
    q = torch.randn(30, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    start = (q <= 0).long()
    optimizer = torch.optim.Adam([q], lr=0.02)
    for _ in range(60):
        parts = [(q.sigmoid() * slope).mean() ** 2, ((1 - q.sigmoid()) * slope).mean() ** 2]
        optimizer.zero_grad()
        (-sum(parts) / 2).backward()
        optimizer.step()
    found = split(slope, hp, torch.Generator().manual_seed(3))
    assert found.equal((q <= 0).long())
    assert not found.equal(start)


def test_the_reference_descends_the_mean_risk_over_all_examples(vectors, model):
    other = nn.Linear(4, 3).double()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(other.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(other(vectors.x), vectors.y).backward()
        optimizer.step()
    trained = module.reference(vectors, model, EIILHparams(steps=5, lr=0.1, weight_decay=0.01))
    torch.testing.assert_close(trained.weight, other.weight, **EXACT)
    assert not trained.training


def test_a_domain_without_examples_is_a_clear_error(vectors, model):
    alone = Rows(vectors.x[:1], vectors.y[:1])
    with pytest.raises(UsageError, match="eiil put all 1 training examples into one domain"):
        eiil.annotate(alone, lambda: model, EIILHparams(steps=1, inference_steps=1), 0)


# --- coloured digits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    dataset = load(None, None, 0, ColoringOptions())
    splits = leave_one_domain_out(dataset, ("-90%",), 0)
    groups = grouping(dataset.manifest, ["domain"]).group_M
    return TrainingSource(dataset, splits, groups, torch.device("cpu"), splits.train_domains)


def annotate(source, seed=0, **hp):
    spec = registry.load("models", "mlp")
    options = spec.options(width=64, depth=2)
    hp = EIILHparams(**{"steps": 50, "lr": 1e-3, "inference_steps": 1000, "inference_lr": 0.01, **hp})
    return eiil.annotate(source, lambda: build_model(spec, (2, 8, 8), 2, options, 0, -1)[0], hp, seed)[
        "domain"
    ]


def test_it_parts_the_examples_whose_colour_tells_the_label_from_those_where_it_lies(digits):
    domain_L = annotate(digits)
    agrees_L = digits.columns["y"] == digits.columns["color"]
    rates = sorted(float(agrees_L[domain_L == e].double().mean()) for e in (0, 1))
    assert rates[0] < 0.05 and rates[1] > 0.95, f"colour tells the label in {rates}"


def test_the_same_seed_finds_the_same_domains(digits):
    first = annotate(digits, inference_steps=50)
    torch.rand(3)
    assert annotate(digits, inference_steps=50).equal(first)
    assert not annotate(digits, seed=1, inference_steps=50).equal(first)


def test_a_method_trains_on_the_domains_that_it_finds(mlflow_store, tmp_path):
    settings = {"name": "eiil", "steps": 30, "inference_steps": 300, "inference_lr": 0.03}
    result = run_small(mlflow_store, tmp_path, "irmv1", annotator=settings)
    assert result.status == "FINISHED"
    run = stored(mlflow_store, result.path)
    assert run["tags"]["dg.uses"] == "eiil"
    assert {"train/risk/0", "train/risk/1"} <= {key for key, _, _ in run["metrics"]}
