"""What a diagnosis is: a table, a figure, and what they say in a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from dgharness.figures import Figure

SPREAD = "s.e. of "  # begins the name of the column with the standard errors of another


@dataclass(frozen=True)
class Diagnosis:
    """The result of one diagnosis, ready to be printed, drawn and logged.

    ``metrics`` are the few numbers that a tracking store should be able to sort by, ``name/number`` each.
    """

    name: str  # as on the command line: "id-ood-line"
    title: str
    caption: str  # one paragraph: what was measured, the formula, the source
    table: pd.DataFrame
    figure: Callable[[], Figure] | None = None  # draws it when it is wanted
    findings: tuple[str, ...] = ()  # sentences that a reader may take away
    metrics: Mapping[str, float] = field(default_factory=dict)
