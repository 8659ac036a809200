"""What a benchmark's leaderboard does not accept, said before the run and beside its numbers.

The rules are those of WILDS (Koh et al. 2021): predict every test example by itself, train on nothing of the
validation split, choose nothing by the test split. The last cannot be broken: under an official split the
rules that look at the target are left out.
"""

from __future__ import annotations

from dgharness.config import RunConfig
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import Splits


def leaderboard_tags(config: RunConfig, dataset: Dataset, splits: Splits) -> dict[str, str]:
    """How many replicates are asked for, by which metric, and what of this run is against the rules."""
    if not dataset.replicates or config.protocol.name != "official":
        return {}
    return {
        "dg.replicates": str(dataset.replicates),
        "dg.official_metric": dataset.official_metric,
        "dg.against_rules": "; ".join(against_rules(config, dataset, splits)),
    }


def against_rules(config: RunConfig, dataset: Dataset, splits: Splits) -> list[str]:
    """Each rule of the dataset's leaderboard that this run breaks, in a sentence without its stop."""
    if not dataset.replicates or config.protocol.name != "official":
        return []
    found = []
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
