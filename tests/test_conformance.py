"""Every built-in algorithm passes the kit that plugin authors call, and the kit fails what it should."""

import pytest
from torch import nn
from toy_settings import TOY

from dgharness import registry
from dgharness.plugin import Algorithm, algorithm, objective, penalty
from dgharness.testing import check_algorithm

BUILT_IN = [entry.name for entry in registry.entries("algorithms", include_unverified=True)]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_algorithm_conforms(name):
    only_by_these = TOY[name] if name in ("meta-dmoe", "sparse-irm", "iga") else {}
    check_algorithm(registry.load("algorithms", name), **only_by_these)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("irmv1", {"unbiased": False, "rescale": True, "l2": 1e-3}),
        ("irmv1", {"anneal_steps": 3}),
        ("coral", {"scaling": "sun2016"}),
        ("drm", {"selection": "uniform"}),
        ("drm", {"selection": "prototype", "prototype_samples": 64}),
    ],
)
def test_it_conforms_with_other_settings(name, options):
    check_algorithm(registry.load("algorithms", name), **options)


def test_the_kit_sees_a_parameter_that_no_optimizer_has():
    @algorithm()
    class Forgetful(Algorithm):
        """Trains the model and forgets its own layer."""

        def __init__(self, setup):
            super().__init__(setup)
            self.context = nn.Linear(2, 2)

        def optimizers(self, make):
            return {"model": make((f"model.{n}", p) for n, p in self.model.named_parameters())}

        def update(self, step, descend):
            descend("model", lambda: step.fresh().risks_E.mean())
            return {"risk": step.risks_E.mean()}

    with pytest.raises(AssertionError, match=r"in no optimizer: context\.weight"):
        check_algorithm(Forgetful)


def test_the_kit_sees_state_that_a_checkpoint_would_lose():
    @objective()
    class Forgetful(nn.Module):
        """Weighs the risk by how often it was called, which is not in its state."""

        def __init__(self, dims, hp):
            super().__init__()
            self.calls = 0

        def forward(self, step, hp):
            self.calls += 1
            risk = step.risks_E.mean() / self.calls
            return risk, {"risk": risk}

    with pytest.raises(AssertionError, match="resume"):
        check_algorithm(Forgetful)


def test_the_kit_sees_a_prediction_that_depends_on_its_neighbours():
    @objective()
    class Transductive(nn.Module):
        """Centres the outputs of whatever happens to be in the batch."""

        def __init__(self, dims, hp):
            super().__init__()

        def forward(self, step, hp):
            risk = step.risks_E.mean()
            return risk, {"risk": risk}

        def predictor(self, model, hp, source):
            class Centred(nn.Module):
                def features(self, x):
                    return model.features(x)

                def classify(self, z):
                    return model.classify(z) - model.classify(z).mean(0)

            return Centred()

    with pytest.raises(AssertionError, match="prediction"):
        check_algorithm(Transductive)


def test_the_kit_sees_what_keeps_trials_from_training_side_by_side():
    @penalty()
    def branching(step, hp):
        """Looks at a value."""
        return (
            step.risks_E.var(correction=0) if float(step.risks_E.detach().sum()) > 0 else step.risks_E.sum()
        )

    with pytest.raises((AssertionError, RuntimeError)):
        check_algorithm(branching)


def test_the_kit_sees_dependence_on_the_order_of_domains():
    @objective()
    def first_domain(step, hp):
        """Trains on whatever domain stands first."""
        return step.risks_E[0], {"risk": step.risks_E.mean()}

    with pytest.raises(AssertionError, match="order_of_domains"):
        check_algorithm(first_domain)


def test_the_kit_sees_a_penalty_that_claims_to_vanish_and_does_not():
    @penalty(zero_on_identical_domains=True)
    def claims(step, hp):
        """The norm of the features."""
        return step.features_EBD.square().mean()

    with pytest.raises(AssertionError, match="identical_domains"):
        check_algorithm(claims)


def test_every_penalty_that_compares_domains_says_that_it_vanishes_on_identical_ones():
    for name in ("vrex", "coral", "mmd"):
        assert registry.load("algorithms", name).zero_on_identical_domains
