"""What a benchmark's leaderboard does not accept, said before the run and beside its numbers.

The rules are those of WILDS (Koh et al. 2021): predict every test example by itself, train on nothing of the
validation split, choose nothing by the test split. The last cannot be broken: under an official split the
rules that look at the target are left out.
"""

from __future__ import annotations

from dgharness.config import RunConfig
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import OWN_SPLIT, Splits

# The names that the package wilds has for some of its official splits.
OFFICIAL_SCHEMES = {
    "wilds:amazon": "user",
    "wilds:fmow": "time_after_2016",
    "wilds:ogb-molpcba": "scaffold",
    "wilds:poverty": "countries",
}


def leaderboard_tags(config: RunConfig, dataset: Dataset, splits: Splits) -> dict[str, str]:
    """How many replicates are asked for, by which metric, and what of this run is against the rules."""
    if config.protocol.name not in OWN_SPLIT:
        return {}
    tags = {"dg.official_metric": dataset.official_metric}
    if dataset.replicates and config.protocol.name == "official":
        tags["dg.against_rules"] = "; ".join(against_rules(config, dataset, splits))
        if not other_split(config, dataset):
            tags["dg.replicates"] = str(dataset.replicates)
    return tags


def against_rules(config: RunConfig, dataset: Dataset, splits: Splits) -> list[str]:
    """Each rule of the dataset's leaderboard that this run breaks, in a sentence without its stop."""
    if not dataset.replicates or config.protocol.name != "official":
        return []
    found = other_split(config, dataset)
    if config.tta.name != "none":
        found.append(
            f"the leaderboard of {dataset.name} wants every test example predicted by itself, and "
            f"{config.tta.name} goes by batches of them"
        )
    if "val_train" in splits.rows:
        found.append(
            f"the leaderboard of {dataset.name} allows no training on its validation split, and "
            f"{config.algorithm} trains on half of it"
        )
    return found


def other_split(config: RunConfig, dataset: Dataset) -> list[str]:
    """What makes this split another than the replicates of the dataset's leaderboard are made on."""
    given, found = config.data.options, []
    scheme = given.get("split_scheme", "official")
    if scheme not in ("official", OFFICIAL_SCHEMES.get(dataset.name)):
        found.append(f"the leaderboard of {dataset.name} is of its official split, and this one is {scheme}")
    if given.get("fold"):
        found.append(
            f"the leaderboard of {dataset.name} asks for every fold once, and data.fold={given['fold']} is "
            "one whatever the trial seed; leave it out, and the seeds take the folds in turn"
        )
    return found
