"""Calibration by one temperature: confidences change, and no prediction does.

Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2

Shapes: N examples, C classes.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from torch import Tensor

from dgharness.errors import UsageError


def fit_temperature(logits_NC: Tensor, targets_N: Tensor) -> float:
    """The temperature T by which ``logits / T`` has the least mean cross-entropy.

    The cross-entropy is convex in 1/T, so that the root of its derivative is the minimum. There is none where
    every example is predicted right: confidence may grow without end, and T is 0.0. Nor where the logits tell
    nothing of the targets: the best is no confidence at all, and T is infinite. No examples, or logits that
    are not finite, are a UsageError.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)
    >>> T = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))  # right in three of four cases
    >>> round(T, 4), (logits[0] / T).softmax(-1)
    (3.641, tensor([0.7500, 0.2500]))
    """
    if not len(targets_N):
        raise UsageError("there are no validation examples to fit a temperature on")
    logits_NC = logits_NC.double()
    if not logits_NC.isfinite().all():
        raise UsageError("no temperature can be fitted: some of the validation outputs are not finite")
    target_N = logits_NC.gather(-1, targets_N[:, None]).squeeze(-1)

    def slope(inverse: float) -> float:
        """The derivative of the mean cross-entropy by 1/T."""
        p_NC = (inverse * logits_NC).softmax(-1)
        return ((p_NC * logits_NC).sum(-1) - target_N).mean().item()

    if slope(0.0) >= 0.0:
        return math.inf
    if (target_N == logits_NC.amax(-1)).all():
        return 0.0
    low = high = 1.0 / (logits_NC - logits_NC.mean(-1, keepdim=True)).square().mean().sqrt().item()
    while slope(low) >= 0.0:
        low /= 2
    while slope(high) <= 0.0:
        high *= 2
    return 1.0 / brentq(slope, low, high, xtol=1e-12 * low, rtol=1e-12)
