"""Laws of whole updates, also for methods with networks and optimizers of their own."""

import pytest
import torch
from toy_settings import toy

from dgharness import registry
from dgharness.plugin import Dims
from dgharness.testing import small_batch, small_model, small_source
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

DIMS = Dims(outputs=3, features=6, domains=3, groups=3, input_shape=(10,))
RUNG_3 = [
    entry.name
    for entry in registry.entries("algorithms", include_unverified=True)
    if entry.source == "built-in" and registry.load("algorithms", entry.name).rung == 3
]
# What these draw belongs to a place in the minibatch: partners, dropout, a first part that is support.
BY_PLACE = {"ddg", "meta-dmoe"}
BY_PLACE_IN_THE_ROW = BY_PLACE | {"support-alignment"}  # its queues take the last examples


def trained(name, steps=6, rearrange=lambda x_EBI, y_EB, rows_EB: (x_EBI, y_EB, rows_EB), **hp):
    """Model weights in float64 after some updates on minibatches that are rearranged first."""
    spec = registry.load("algorithms", name)
    model = small_model(0).double()
    learner = Learner(
        spec,
        model,
        DIMS,
        spec.hparams(**{**toy(name), **hp}),
        OptimizerConfig(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0),
        seed=0,
        steps=steps,
        new_model=lambda number: small_model(number).double(),
        source=small_source(),
    )
    learner.algorithm.double()
    for t in range(steps):
        x, y_EB = small_batch(t)
        rows_EB = torch.arange(3)[:, None].expand(3, 8)
        x_EBI, y_EB, rows_EB = rearrange(x.double().unflatten(0, (3, 8)), y_EB, rows_EB)
        noise = spec.noise(3, 8, torch.Generator().manual_seed(t)) if spec.noise else None
        learner.step(x_EBI.flatten(0, 1), y_EB, domain_EB=rows_EB, noise=noise)
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("name", [name for name in RUNG_3 if name not in BY_PLACE])
def test_the_order_of_the_domains_does_not_matter_to_an_update(name):
    order = torch.tensor([2, 0, 1])
    moved = trained(name, rearrange=lambda *batch: tuple(part[order] for part in batch))
    torch.testing.assert_close(moved, trained(name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in RUNG_3 if name not in BY_PLACE_IN_THE_ROW])
def test_the_order_of_the_examples_does_not_matter_to_an_update(name):
    order = torch.tensor([3, 7, 0, 5, 1, 6, 4, 2])
    moved = trained(name, rearrange=lambda *batch: tuple(part[:, order] for part in batch))
    torch.testing.assert_close(moved, trained(name), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "hp"),
    [
        ("iga", {}),
        ("dann-grl", {}),
        ("cdann-grl", {}),
        ("center-loss", {}),
        ("ridg", {}),
        ("fishr", {"anneal_steps": 0}),
        ("cil", {"anneal_steps": 0}),
        ("ib-irm", {"irm_weight": 0.0, "ib_weight": 0.0, "irm_anneal_steps": 0, "ib_anneal_steps": 0}),
        ("irmx", {"irm_weight": 0.0, "rex_weight": 0.0}),
        ("nci", {}),
        ("support-alignment", {}),
        ("par", {"anneal_steps": 0}),
        ("smos", {}),
    ],
)
def test_without_its_weight_a_method_is_plain_risk_minimisation(name, hp):
    weight = {} if "irm_weight" in hp else {"weight": 0.0}
    if "anneal_steps" in registry.load("algorithms", name).hparams.model_fields:
        hp = {"anneal_steps": 0, **hp}
    torch.testing.assert_close(trained(name, **weight, **hp), trained("erm"), rtol=1e-10, atol=1e-12)
