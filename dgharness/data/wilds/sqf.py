"""Whether a stop by New York's police found a weapon, from what the officer noted down.

The split schemes are by race (all_race, black) or by borough (all_borough, bronx): train on some of the stops
of 2009 and 2010, test on all of 2011 and 2012; ``official`` is all_race, as in the benchmark. Domains are the
races or boroughs that its evaluation tells apart, and the groups that algorithms see its labels.

Paper: Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021, arXiv:2012.07421
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults, InMemory
from dgharness.data.tasks import classification
from dgharness.data.wilds.load import WildsOptions, manifest_of, official_eval, open_wilds

# The class of wilds names the codes of its metadata after other columns than it shows.
CALLED = {"suspect race": "suspect.race", "borough": "borough", "2010 or earlier?": "train.period"}


class SQFOptions(WildsOptions):
    split_scheme: Literal["official", "all_race", "black", "all_borough", "bronx"] = "official"
    """The split, by WILDS' name for it; official is all_race."""
    unlabeled: Literal[""] = ""
    """There are no unlabeled examples."""


def load(argument: str | None, root: Path | None, seed: int, options: SQFOptions) -> Dataset:
    """Stops as vectors of what was noted down; the evaluation thresholds the outputs itself."""
    scheme = "all_race" if options.split_scheme == "official" else options.split_scheme
    source = open_wilds("sqf", root, scheme)
    domain = "suspect race" if scheme in ("all_race", "black") else "borough"
    names = {field: source.metadata_map[column] for field, column in CALLED.items()}
    x_MF = torch.from_numpy(source._input_array.to_numpy(np.float32))
    return Dataset(
        name="wilds:sqf",
        manifest=manifest_of(source, [domain], names=names),
        reader=InMemory(x_MF),
        task=classification(2),
        input_shape=(x_MF.shape[1],),
        defaults=Defaults(model="linear", protocol="official"),
        groups=(domain,),
        train_groups=("y",),
        official=official_eval(source, lambda logits_NC: logits_NC),
        official_metric="precision_at_global_recall_all",
    )


sqf = DatasetSpec(
    load,
    SQFOptions,
    layout="""sqf_v1.0/
  RELEASE_v1.0.txt
  sqf.csv: an index, year, suspected.crime, suspect.race, borough, train.period, found.weapon, precinct,
    suspect.height, suspect.weight, suspect.age, observation.period, inside.outside, location.housing,
    radio.run, officer.uniform, stopped.bc.*, additional.*""",
    doc=__doc__,
)
