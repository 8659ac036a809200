"""Whether a confidence of 80 % is right in 80 % of cases, in distribution and on the target.

Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017

Shapes: N examples, B bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.diagnostics.diagnosis import SPREAD, Diagnosis
from dgharness.diagnostics.tracked import SEALED, TrackedRuns, in_distribution
from dgharness.errors import NotApplicable
from dgharness.figures import Figure, drawn, look
from dgharness.metrics.classification import ECE_BINS, ece
from dgharness.metrics.temperature import fit_temperature
from dgharness.names import slug
from dgharness.predictions import Predictions

SPLITS = ("in distribution", "test")
SCALINGS = ("as trained", "at the temperature")


@dataclass(frozen=True)
class Confidences:
    """Confidence in the predicted class, and whether that class was right, of some examples."""

    confidence_N: Tensor  # float64
    correct_N: Tensor  # float64

    @property
    def ece(self) -> float:
        """Expected calibration error, NaN of no examples."""
        return ece(self.confidence_N, self.correct_N)


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width over confidence, closed on the right; an empty one is NaN."""

    confidence_B: np.ndarray  # mean in the bin
    accuracy_B: np.ndarray
    count_B: np.ndarray


def confidences(predictions: Predictions, temperature: float = 1.0) -> Confidences:
    """What the softmax of the logits, divided by a temperature, says; 0 is full certainty."""
    logits_NC = predictions.outputs_NC.double()
    correct_N = (logits_NC.argmax(-1) == predictions.targets).double()
    if temperature == 0:
        return Confidences(torch.ones_like(correct_N), correct_N)
    return Confidences((logits_NC / temperature).softmax(-1).amax(-1), correct_N)


def reliability(found: Confidences, bins: int = ECE_BINS) -> Reliability:
    """Mean confidence and accuracy by confidence.

    >>> confidence, correct = torch.tensor([[0.7, 0.9], [1.0, 0.0]]).double()
    >>> found = reliability(Confidences(confidence, correct), bins=2)
    >>> found.confidence_B.round(3), found.accuracy_B, found.count_B
    (array([nan, 0.8]), array([nan, 0.5]), array([0, 2]))
    """
    bin_N = (found.confidence_N * bins).ceil().long().clamp(1, bins) - 1
    count_B = torch.bincount(bin_N, minlength=bins)
    confidence_B, accuracy_B = (
        torch.bincount(bin_N, part_N, bins) / count_B for part_N in (found.confidence_N, found.correct_N)
    )
    return Reliability(confidence_B.numpy(), accuracy_B.numpy(), count_B.numpy())


def calibration(tracked: TrackedRuns) -> Diagnosis:
    """ECE of the chosen checkpoints before and after a temperature fitted on source validation.

    Without stored predictions, or for a task without classes, NotApplicable.
    """
    pooled: dict[tuple[str, str, str], list[Confidences]] = {}
    trials = []
    for label, choices in tracked.selected().items():
        for trial, choice in choices.items():
            found = tracked.predictions(choice.run, choice.evaluation.step)
            if found.task != "classification":
                raise NotApplicable(f"it needs probabilities of classes, and the task is {found.task}")
            validation = found.of(*(("id_val",) if "id_val" in found.split_N else ("val",)))
            temperature = fit_temperature(validation.outputs_NC, validation.targets)
            for split, part in zip(SPLITS, (in_distribution(found), found.of("test")), strict=True):
                both = [confidences(part, t) for t in (1.0, temperature)]
                for scaling, each in zip(SCALINGS, both, strict=True):
                    pooled.setdefault((label, split, scaling), []).append(each)
                trials.append((label, split, trial, temperature, *_numbers(both)))
    if not trials:
        raise NotApplicable(
            f"{tracked.rule.name} chose no checkpoint whose target was scored; name another --rule"
        )
    numbers = ["temperature", "accuracy", "confidence", "ECE", "ECE at the temperature"]
    by_trial = pd.DataFrame(trials, columns=["algorithm", "split", "trial", *numbers])
    groups = by_trial.groupby(["algorithm", "split"], sort=False)
    table = groups[numbers].mean()
    spread = groups[numbers[-2:]].sem(ddof=1).add_prefix(SPREAD)
    table = pd.concat([groups.size().rename("trials"), table, spread], axis=1).reset_index()
    joined = {key: _joined(parts) for key, parts in pooled.items()}
    return Diagnosis(
        name="calibration",
        title="confidence and accuracy",
        caption=f"Of the checkpoints and draws that {tracked.rule.name} chooses, mean over trials with its "
        f"standard error (ddof=1). ECE is the mean gap between confidence and accuracy over {ECE_BINS} bins "
        "of equal width, weighted by their examples; the temperature T divides the logits and has the least "
        f"cross-entropy on source validation. The figure pools the trials. Guo et al., 2017. {SEALED}",
        table=table,
        figure=lambda: _figure(joined),
        findings=tuple(_finding(label, table) for label in dict.fromkeys(table["algorithm"])),
        metrics={
            f"calibration/{slug(row['algorithm'])}/{key}_{slug(row['split']).replace(' ', '_')}": row[name]
            for row in table.to_dict("records")
            for key, name in (("ece", "ECE"), ("ece_temperature", "ECE at the temperature"))
        },
    )


def _numbers(both: list[Confidences]) -> tuple[float, ...]:
    plain, tempered = both
    return plain.correct_N.mean().item(), plain.confidence_N.mean().item(), plain.ece, tempered.ece


def _joined(parts: list[Confidences]) -> Confidences:
    return Confidences(
        torch.cat([part.confidence_N for part in parts]), torch.cat([part.correct_N for part in parts])
    )


def _finding(label: str, table: pd.DataFrame) -> str:
    own = table[table["algorithm"] == label].set_index("split").loc["test"]
    gap = own["confidence"] - own["accuracy"]
    sure = "surer than it is right" if gap > 0 else "less sure than it is right"
    temper = own["ECE at the temperature"] - own["ECE"]
    helps = "lowers" if temper < 0 else "raises" if temper > 0 else "leaves"
    return (
        f"{label} is {100 * abs(gap):.1f} points {sure} on the test split; a temperature fitted in "
        f"distribution {helps} its ECE there from {own['ECE']:.3f} to {own['ECE at the temperature']:.3f}."
    )


def _figure(joined: dict[tuple[str, str, str], Confidences]) -> Figure:
    figure, axes = drawn(2, 2, width=4.2, height=3.6)
    looks = look(sorted({label for label, _, _ in joined}))
    panels = [(split, scaling) for scaling in SCALINGS for split in SPLITS]
    for axis, (split, scaling) in zip(axes, panels, strict=True):
        axis.plot([0, 1], [0, 1], ":", color="#7F7F7F")
        for label, (colour, marker) in looks.items():
            found = joined[label, split, scaling]
            bins = reliability(found)
            size = 60 * np.sqrt(bins.count_B / max(1, bins.count_B.max()))
            axis.plot(bins.confidence_B, bins.accuracy_B, color=colour, linewidth=0.9)
            axis.scatter(bins.confidence_B, bins.accuracy_B, s=size, color=colour, marker=marker)
            axis.plot([], [], color=colour, marker=marker, label=f"{label}, ECE {_shown(found.ece)}")
        axis.set(
            title=f"{split}, {scaling}", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02)
        )
        axis.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def _shown(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"
