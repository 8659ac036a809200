"""Adaptive sharpness: how much the loss rises when every weight may move in proportion to its size.

Paper: Andriushchenko, Croce, Müller, Hein and Flammarion, A Modern Look at the Relationship between
    Sharpness and Generalization, ICML 2023
Agrees with: their definitions; the ascent is APGD (Croce and Hein, ICML 2020) from no perturbation.

Shapes: N examples of a minibatch, C outputs, B minibatches, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.diagnostics.trained import Trained
from dgharness.errors import NotApplicable
from dgharness.figures import COLOURS, Figure, drawn
from dgharness.seeds import generator

EXAMPLES, BATCH = 1024, 128
DRAWS, STEPS = 20, 20
AVERAGE_RHO, WORST_RHO = 0.1, 0.002
MOMENTUM = 0.75  # of APGD, and the share of its steps that must rise for the step size to stay

NORMALISED = "normalised"

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], tuple[Tensor, Tensor]]  # of a minibatch: mean loss and error rate, 0-d


@dataclass(frozen=True)
class Rise:
    """How much loss and error rate of each minibatch rise; the error is NaN where the task has none."""

    loss_B: np.ndarray
    error_B: np.ndarray


def sharpness(
    trained: Trained,
    *,
    examples: int = EXAMPLES,
    average_rho: float = AVERAGE_RHO,
    worst_rho: float = WORST_RHO,
) -> Diagnosis:
    """Average-case and worst-case sharpness of a checkpoint on training examples, without augmentation."""
    network = Network(trained.predictor)
    rows = np.concatenate(list(trained.splits.rows["train"].values()))
    rows = np.sort(np.random.default_rng(trained.seed).permutation(rows)[:examples])
    batches = [
        (trained.inputs(part), trained.dataset.targets_M[torch.from_numpy(part)].to(network.device))
        for part in np.split(rows, range(BATCH, len(rows), BATCH))
    ]
    task, classes = trained.dataset.task, len(trained.classes)
    table_rows = []
    for normalised in (False, True) if classes > 2 else (False,):
        losses = [
            partial(_measured, network, x, y_N, task.loss, task.predict if classes else None, normalised)
            for x, y_N in batches
        ]
        random = generator(trained.seed, "sharpness")
        average = average_rise(losses, network.weights, average_rho, random)
        worst = worst_rise(losses, network.weights, worst_rho)
        table_rows += [
            _row("average", average_rho, normalised, average),
            _row("worst", worst_rho, normalised, worst),
        ]
    table = pd.DataFrame(table_rows)
    return Diagnosis(
        name="sharpness",
        title=f"Adaptive sharpness, checkpoint {trained.checkpoint}",
        caption=_caption(len(rows), len(batches)),
        table=table,
        figure=partial(_figure, table),
        findings=tuple(_findings(table)),
        metrics={
            f"sharpness/{row['case']}" + "_normalised" * (row["logits"] == NORMALISED): row["loss_rise"]
            for row in table_rows
        },
    )


def average_rise(losses: Sequence[Loss], weights: Weights, rho: float, random: torch.Generator) -> Rise:
    """Mean over draws of L(w + d) - L(w) for each minibatch, d ~ N(0, rho^2 diag w^2)."""
    rises_B = []
    with torch.no_grad():
        for loss in losses:
            before = _pair(loss, weights)
            after_S = [_pair(loss, _perturbed(weights, rho, random)) for _ in range(DRAWS)]
            rises_B.append(np.mean(after_S, axis=0) - before)
    return Rise(*np.array(rises_B).T)


def worst_rise(losses: Sequence[Loss], weights: Weights, rho: float) -> Rise:
    """Largest L(w + d) - L(w) found for each minibatch, |d_i| <= rho |w_i|, by APGD; error at the same d."""
    rises_B = []
    for loss in losses:
        worst = ascended(loss, weights, rho)
        with torch.no_grad():
            rises_B.append(_pair(loss, worst) - _pair(loss, weights))
    return Rise(*np.array(rises_B).T)


def ascended(loss: Loss, weights: Weights, rho: float, steps: int = STEPS) -> dict[str, Tensor]:
    """The weights of the largest loss that APGD meets within |d_i| <= rho |w_i| of the given ones.

    Signed gradient steps of 2 rho |w_i|, momentum 0.75. At checkpoints the step is halved, and the best point
    taken up again, where fewer than three quarters of the steps since the last one rose, or where neither
    the step nor the best loss has changed since.
    """
    start = {name: w.detach() for name, w in weights.items()}
    reach = {name: rho * w.abs() for name, w in start.items()}
    now, before = dict(start), dict(start)
    value, slope = _value_and_slope(loss, now)
    best, best_value = now, value
    size, rises, checked_at = 2.0, 0, 0  # the step in units of ``reach``
    size_then, best_then = size, best_value
    checkpoints = _checkpoints(steps)
    for step in range(1, steps + 1):
        stepped = _within(
            start, reach, {name: now[name] + size * reach[name] * slope[name].sign() for name in now}
        )
        share = MOMENTUM if step > 1 else 1.0
        moved = {
            name: now[name] + share * (stepped[name] - now[name]) + (1 - share) * (now[name] - before[name])
            for name in now
        }
        before, now = now, _within(start, reach, moved)
        last = value
        value, slope = _value_and_slope(loss, now)
        rises += value > last
        if value > best_value:
            best, best_value = now, value
        if step in checkpoints:
            few = rises < MOMENTUM * (step - checked_at)
            if few or (size == size_then and best_value == best_then):
                size_then, size = size, size / 2
                now = before = best
                value, slope = _value_and_slope(loss, now)
            else:
                size_then = size
            rises, checked_at, best_then = 0, step, best_value
    return best


def normalised_logits(logits_NC: Tensor) -> Tensor:
    """Logits less their mean, of length 1; logits that are all alike stay 0.

    >>> normalised_logits(torch.tensor([[5.0, 1.0], [2.0, 2.0]]))
    tensor([[ 0.7071, -0.7071],
            [ 0.0000,  0.0000]])
    """
    centred_NC = logits_NC - logits_NC.mean(-1, keepdim=True)
    return nn.functional.normalize(centred_NC, dim=-1)


class Network:
    """Outputs of a predictor as a function of its weights; the predictor itself is never changed."""

    def __init__(self, predictor: Any) -> None:
        if not isinstance(predictor, nn.Module):
            raise NotApplicable("sharpness needs a predictor that is a module with weights of its own")
        self.module = _Outputs(predictor.eval())
        self.weights: dict[str, Tensor] = {
            name: w.detach() for name, w in self.module.named_parameters() if w.is_floating_point()
        }
        if not self.weights:
            raise NotApplicable("sharpness needs a predictor with weights, and this one has none")
        self.device = next(iter(self.weights.values())).device

    def __call__(self, weights: Weights, x: Any) -> Tensor:
        return torch.func.functional_call(self.module, dict(weights), (x,))


class _Outputs(nn.Module):
    def __init__(self, predictor: Any) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Any) -> Tensor:
        return self.predictor.classify(self.predictor.features(x))


def _measured(
    network: Network,
    x: Any,
    y_N: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    predict: Callable[[Tensor], Tensor] | None,
    normalised: bool,
    weights: Weights,
) -> tuple[Tensor, Tensor]:
    outputs = network(weights, x)
    mean = loss(normalised_logits(outputs) if normalised else outputs, y_N).mean()
    error = mean.new_tensor(math.nan) if predict is None else (predict(outputs) != y_N).to(mean.dtype).mean()
    return mean, error


def _pair(loss: Loss, weights: Weights) -> np.ndarray:
    return np.array([value.item() for value in loss(weights)])


def _perturbed(weights: Weights, rho: float, random: torch.Generator) -> dict[str, Tensor]:
    return {
        name: w + rho * w.abs() * torch.randn(w.shape, generator=random, dtype=w.dtype).to(w.device)
        for name, w in weights.items()
    }


def _value_and_slope(loss: Loss, weights: Weights) -> tuple[float, dict[str, Tensor]]:
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        value = loss(leaves)[0]
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.item(), dict(zip(leaves, slopes, strict=True))


def _within(start: Weights, reach: Weights, moved: Weights) -> dict[str, Tensor]:
    return {name: w.clamp(start[name] - reach[name], start[name] + reach[name]) for name, w in moved.items()}


def _checkpoints(steps: int) -> list[int]:
    """APGD's: shares 0, 0.22, ... of the steps, each interval 0.03 shorter than the last, at least 0.06.

    >>> _checkpoints(20)
    [5, 9, 12, 14, 16, 18, 19, 20]
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share < 1 + 1e-9})


def _row(case: str, rho: float, normalised: bool, rise: Rise) -> dict[str, Any]:
    batches = len(rise.loss_B)
    spread = rise.loss_B.std(ddof=1) / np.sqrt(batches) if batches > 1 else math.nan
    return {
        "case": case,
        "rho": rho,
        "logits": NORMALISED if normalised else "as they are",
        "loss_rise": float(rise.loss_B.mean()),
        f"{SPREAD}loss_rise": float(spread),
        "error_rise": float(rise.error_B.mean()),
        "batches": batches,
    }


def _caption(examples: int, batches: int) -> str:
    return (
        f"Adaptive sharpness (Andriushchenko et al., ICML 2023), on {examples} training examples without "
        f"augmentation in {batches} minibatch{'es' if batches > 1 else ''} of at most {BATCH}, in evaluation "
        f"mode. average: the mean over {DRAWS} draws of L(w + d) - L(w), d ~ N(0, rho^2 diag w^2); worst: "
        f"its maximum over |d_i| <= rho |w_i| as {STEPS} steps of APGD find it, a lower bound; both averaged "
        "over the minibatches, with the standard error over them. normalised: of logits less their mean and "
        "divided by their length, since a larger scale of the logits alone makes a network sharper; of two "
        "classes nothing would be left but the prediction, and it is left out. error_rise: the same of the "
        "error rate, at the same d. Sharpness goes with the learning rate and says little by itself of how a "
        "network does on other domains; at times the sharper one does better."
    )


def _findings(table: pd.DataFrame) -> Iterator[str]:
    for row in table.to_dict("records"):
        moved = "is moved at random by" if row["case"] == "average" else "may move by"
        rises = "rises" if row["case"] == "average" else "can be made to rise"
        error = row["error_rise"]
        yield (
            f"Logits {row['logits']}: where every weight {moved} {row['rho']:g} of its size, the loss "
            f"{rises} by {row['loss_rise']:.3g}"
            + ("." if math.isnan(error) else f", the error rate by {100 * error:.2g} points.")
        )


def _figure(table: pd.DataFrame) -> Figure:
    figure, axes = drawn(1, 2, width=3.5)
    for axis, case in zip(axes, ("average", "worst"), strict=True):
        rows = table[table["case"] == case]
        axis.bar(rows["logits"], rows["loss_rise"], 0.5, yerr=rows[f"{SPREAD}loss_rise"], color=COLOURS[0])
        axis.set_title(f"{case}, rho {rows['rho'].iloc[0]:g}")
        axis.set_ylabel("rise of the loss")
    return figure
