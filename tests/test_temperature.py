"""One temperature: where the cross-entropy is least, and nothing is predicted otherwise."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from dgharness.errors import UsageError
from dgharness.metrics.temperature import fit_temperature


def overconfident(N=400, C=5, by=2.5, seed=0):
    """Logits that are ``by`` times what the labels were drawn from."""
    draw = torch.Generator().manual_seed(seed)
    logits_NC = torch.randn(N, C, generator=draw)
    return logits_NC * by, torch.multinomial(logits_NC.softmax(-1), 1, generator=draw).squeeze(-1)


@pytest.mark.parametrize("by", [0.1, 1.0, 2.5, 1e4])
def test_no_other_temperature_has_a_smaller_cross_entropy(by):
    logits_NC, targets_N = overconfident(by=by)

    def nll(log_temperature):
        scaled_NC = logits_NC.double().numpy() / math.exp(log_temperature)
        return -log_softmax(scaled_NC, axis=1)[np.arange(len(targets_N)), targets_N.numpy()].mean()

    near = math.log(by)
    best = minimize_scalar(nll, bounds=(near - 3, near + 3), method="bounded", options={"xatol": 1e-10})
    assert math.log(fit_temperature(logits_NC, targets_N)) == pytest.approx(best.x, abs=1e-6)
    assert math.log(fit_temperature(logits_NC, targets_N)) == pytest.approx(near, abs=0.3)


def test_of_two_classes_it_is_a_logistic_regression_on_the_margin_without_an_intercept():
    logits_NC, targets_N = overconfident(C=2)
    margin_N1 = logits_NC.double().diff(dim=-1).numpy()
    # The penalty is as good as none.
    fitted = LogisticRegression(C=1e12, fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    slope = fitted.fit(margin_N1, targets_N.numpy()).coef_.item()
    assert fit_temperature(logits_NC, targets_N) == pytest.approx(1 / slope, rel=1e-8)


def test_it_scales_with_the_logits_and_a_shift_of_an_examples_logits_is_nothing():
    logits_NC, targets_N = overconfident()
    temperature = fit_temperature(logits_NC, targets_N)
    shift_N1 = torch.linspace(-30, 30, len(targets_N), dtype=torch.float64)[:, None]
    assert fit_temperature(3e-5 * logits_NC.double(), targets_N) == pytest.approx(3e-5 * temperature)
    assert fit_temperature(logits_NC.double() + shift_N1, targets_N) == pytest.approx(temperature)
    assert fit_temperature(logits_NC.double() / temperature, targets_N) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_no_prediction_changes(seed):
    logits_NC, targets_N = overconfident(C=3, by=10.0**seed, seed=seed)
    nearly_tied_NC = torch.nextafter(logits_NC, logits_NC.roll(1, dims=-1))
    logits_NC = torch.cat([logits_NC, nearly_tied_NC])
    temperature = fit_temperature(logits_NC, targets_N.repeat(2))
    assert torch.equal((logits_NC.double() / temperature).argmax(-1), logits_NC.argmax(-1))


def test_where_there_is_no_best_temperature_it_is_zero_or_infinite():
    logits_NC, _ = overconfident()
    assert fit_temperature(logits_NC, logits_NC.argmax(-1)) == 0.0
    assert math.isinf(fit_temperature(logits_NC, logits_NC.argmin(-1)))
    assert math.isinf(fit_temperature(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])))


def test_one_mistake_in_many_is_enough_for_a_temperature():
    logits_NC, _ = overconfident(N=5000)
    targets_N = logits_NC.argmax(-1)
    targets_N[0] = logits_NC[0].argmin()
    assert 0 < fit_temperature(logits_NC, targets_N) < math.inf


@pytest.mark.parametrize(
    ("logits_NC", "said"),
    [
        (torch.empty(0, 3), "no validation examples to fit a temperature on"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "some of the validation outputs are not finite"),
        (torch.tensor([[1.0, torch.inf], [0.0, 1.0]]), "some of the validation outputs are not finite"),
    ],
)
def test_what_nothing_can_be_fitted_to_is_said(logits_NC, said):
    with pytest.raises(UsageError, match=said):
        fit_temperature(logits_NC, torch.zeros(len(logits_NC), dtype=torch.long))
