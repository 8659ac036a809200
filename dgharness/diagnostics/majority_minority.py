"""Accuracy on the groups that training data are rich in against that on those they are poor in.

Under a spurious correlation the points lie on a moon: a better fit to the majority first costs the minority,
and helps it only later.

Paper: Liang et al., Accuracy on the Curve, ICML 2023
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dgharness.diagnostics.curves import FILLED, FITS, bend, curves_of, metrics_of, scatter, table_of
from dgharness.diagnostics.diagnosis import Diagnosis
from dgharness.diagnostics.points import accuracy, collected, logged_keys
from dgharness.diagnostics.tracked import SEALED, TrackedRuns, group_counts
from dgharness.errors import NotApplicable
from dgharness.metrics.measure import measure_of
from dgharness.names import slugs
from dgharness.selection.rule import mean


def majority_minority(tracked: TrackedRuns) -> Diagnosis:
    """Line and parabola of minority on majority accuracy; NotApplicable where no group is the smaller one."""
    if measure_of(logged_keys(tracked.records)).sign < 0:
        raise NotApplicable("it compares accuracies, and these runs predict numbers")
    majority, minority = split_by_size(group_counts(tracked))
    slug_of = slugs([*majority, *minority])

    def pair(metrics: Mapping[str, float]) -> tuple[float, float]:
        of_majority, of_minority = ([slug_of[name] for name in names] for names in (majority, minority))
        return mean_over(metrics, of_majority), mean_over(metrics, of_minority)

    found = collected(tracked, pair, "accuracy by group")
    curves = curves_of(found)
    probit = curves["probit"]
    return Diagnosis(
        name="majority-minority",
        title="accuracy on minority groups against accuracy on majority groups",
        caption="Unweighted means of test/group_acc over the groups with at least an even share of the "
        f"training data ({', '.join(majority)}) and over the others ({', '.join(minority)}), of every "
        f"{tracked.checkpoints} checkpoint. {FITS} {FILLED} Liang et al., 2023. {SEALED}",
        table=table_of(curves),
        figure=lambda: scatter(found, curves, "majority groups", "minority groups"),
        findings=(
            f"Over {probit.points} checkpoints of {probit.runs} runs the accuracy on minority groups "
            f"{'rises' if probit.spearman > 0 else 'does not rise'} with that on majority groups (Spearman "
            f"{probit.spearman:z.2f}).",
            *(bend(curve) for curve in curves.values()),
        ),
        metrics=metrics_of("majority-minority", curves),
    )


def split_by_size(counts: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Groups with at least an even share of the examples, and the others; NotApplicable without any of those.

    >>> split_by_size({"cow, grass": 45, "cow, sand": 5, "camel, sand": 45, "camel, grass": 5})
    (['cow, grass', 'camel, sand'], ['cow, sand', 'camel, grass'])
    """
    even = sum(counts.values()) / max(1, len(counts))
    majority = [name for name, count in counts.items() if count >= even]
    minority = [name for name in counts if name not in majority]
    if not minority:
        raise NotApplicable("no group is smaller than another: there is no minority")
    return majority, minority


def mean_over(metrics: Mapping[str, float], groups: Sequence[str]) -> float:
    """Unweighted mean of the test accuracies of groups; those that are empty there are left out."""
    found = [accuracy(metrics, f"test/group_acc/{name}") for name in groups]
    return mean(value for value in found if not math.isnan(value))
