"""``rotated-digits``: the bundled digits, rotated. A toy: real images, but few and tiny."""

from __future__ import annotations

from pathlib import Path

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import bundled_digits
from dgharness.data.rotating import RotatingOptions, rotated
from dgharness.seeds import generator


def load(argument: str | None, root: Path | None, trial_seed: int, options: RotatingOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return rotated(
        "rotated-digits",
        *bundled_digits(),
        generator(trial_seed, "generation"),
        options,
        Defaults(model="mlp"),
        toy=True,
    )


rotated_digits = DatasetSpec(load, RotatingOptions, doc=__doc__)
