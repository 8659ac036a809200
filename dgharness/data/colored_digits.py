"""``colored-digits``: the bundled digits, colored. A toy: real images, but few and tiny."""

from __future__ import annotations

from pathlib import Path

from dgharness.data.coloring import ColoringOptions, colored
from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.digits import bundled_digits
from dgharness.seeds import generator


def load(argument: str | None, root: Path | None, trial_seed: int, options: ColoringOptions) -> Dataset:
    """Generate the dataset from the trial's own stream."""
    return colored(
        "colored-digits",
        *bundled_digits(),
        generator(trial_seed, "generation"),
        options,
        Defaults(model="mlp"),
        toy=True,
    )


colored_digits = DatasetSpec(load, ColoringOptions, doc=__doc__)
