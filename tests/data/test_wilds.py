"""Image, regression and tabular datasets of WILDS: splits, groups and evaluation are the package's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import wilds_images
from wilds_twice import GROUP_BY, NAMES, as_is, cache_here, grouper, ours, root, row_of, theirs

from dgharness.data.dataset import Dataset
from dgharness.data.groups import grouping
from dgharness.data.protocols import OFFICIAL
from dgharness.training.evaluation import Evaluator

__all__ = ["cache_here", "root"]  # fixtures

SCHEMES = {  # those beside the official one
    "camelyon17": ["mixed-to-test"],
    "fmow": ["mixed-to-test", "time_after_2015"],
    "rxrx1": ["mixed-to-test"],
    "bdd100k": ["location"],
    "poverty": ["mixed-to-test"],
    "sqf": ["black", "all_borough", "bronx"],
}

# --- splits, domains and groups ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme"), [(name, scheme) for name in NAMES for scheme in ("", *SCHEMES.get(name, ()))]
)
def test_every_split_of_every_scheme_holds_the_rows_of_the_package_and_their_labels(
    name: str, scheme: str, root: Path
):
    dataset = ours(name, root, *([f"split_scheme={scheme}"] if scheme else []))
    source = theirs(name, root, scheme)
    row_M = row_of(dataset)
    assert set(dataset.manifest["split"]) == set(source.split_dict) <= set(OFFICIAL)
    for split in source.split_dict:
        rows = np.flatnonzero(dataset.manifest["split"] == split)
        subset = source.get_subset(split)
        assert len(rows) and row_M[rows].tolist() == subset.indices.tolist()
        assert torch.equal(dataset.targets_M[rows].float(), subset.y_array.squeeze().float())
    unused = ~np.isin(np.asarray(source.split_array), list(source.split_dict.values()))
    assert not np.isin(np.flatnonzero(unused), row_M).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_groups_that_algorithms_see_are_those_of_the_benchmark(name: str, root: Path):
    dataset, source = ours(name, root), theirs(name, root)
    found = grouping(dataset.manifest, dataset.train_groups)
    wilds_grouper = grouper(source, GROUP_BY[name])
    expected = wilds_grouper.metadata_to_group(source.metadata_array)[row_of(dataset)]
    pairs = set(zip(found.group_M.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) > 1


@pytest.mark.parametrize(
    ("name", "domains", "groups"),
    [
        ("camelyon17", ("0", "1", "2", "3", "4"), ("slide=0", "slide=3", "slide=10")),
        ("iwildcam", ("0", "1", "2", "3", "4"), ("y=0", "y=1", "y=2", "y=3")),
        ("fmow", ("2003", "2012", "2014", "2016", "2017"), ("region=Asia", "region=Europe")),
        ("rxrx1", ("HEPG2-01", "HEPG2-02", "HUVEC-01"), ("cell_type=HEPG2", "cell_type=HUVEC")),
        ("domainnet", ("real", "sketch"), ("category=aircraft_carrier", "category=airplane")),
        ("celebA", ("female", "male"), ("male=female,y=not blond", "male=female,y=blond")),
        ("waterbirds", ("land", "water"), ("background=land,y=landbird", "background=land,y=waterbird")),
        ("bdd100k", ("daytime", "night", "dawn/dusk", "undefined"), ("timeofday=daytime", "timeofday=night")),
        ("poverty", ("angola", "benin", "burkina_faso"), ("urban=rural", "urban=urban")),
        ("sqf", ("Black", "Hispanic", "White"), ("suspect race=Black", "suspect race=Hispanic")),
    ],
)
def test_domains_and_groups_bear_the_names_of_the_dataset(
    name: str, domains: tuple[str, ...], groups: tuple[str, ...], root: Path
):
    dataset = ours(name, root)
    assert dataset.domains[: len(domains)] == domains
    assert grouping(dataset.manifest, dataset.groups).names[: len(groups)] == groups


def test_a_group_keeps_its_name_whatever_the_order_of_the_columns(root: Path):
    dataset, source = ours("waterbirds", root), theirs("waterbirds", root)
    y_first = grouping(dataset.manifest, ["y", "background"])
    on_water = (dataset.manifest["background"] == "water") & (dataset.manifest["y"] == "landbird")
    row = int(on_water.to_numpy().argmax())
    assert y_first.names[y_first.group_M[row]] == "y=landbird,background=water"
    # The package's own grouper says the opposite of such a group.
    wilds_grouper = grouper(source, ["y", "background"])
    group = int(wilds_grouper.metadata_to_group(source.metadata_array[[row]]))
    assert "waterbird" in wilds_grouper.group_str(group)


# --- official evaluation ----------------------------------------------------------------------------


def outputs_for(dataset: Dataset, rows: np.ndarray) -> torch.Tensor:
    return torch.randn(len(rows), dataset.task.outputs, generator=torch.Generator().manual_seed(5))


def grouped(right_N: np.ndarray, group_N: np.ndarray, names: dict[int, str], prefix: str) -> dict[str, float]:
    """Means by group, NaN for one that is not there; a plain loop in float64."""
    return {
        f"{prefix}_{name}": float(right_N[group_N == g].mean()) if (group_N == g).any() else float("nan")
        for g, name in names.items()
    }


def accuracies(field: str, codes: Callable[[Any], dict[int, str]]) -> Callable[..., dict[str, float]]:
    def recomputed(logits: np.ndarray, y: np.ndarray, column: Callable[[str], np.ndarray], source: Any):
        right = (logits.argmax(1) == y).astype(np.float64)
        by_group = grouped(right, column(field), {g: f"{field}:{n}" for g, n in codes(source).items()}, "acc")
        return {**by_group, "acc_avg": right.mean(), "acc_wg": np.nanmin(list(by_group.values()))}

    return recomputed


def iwildcam(logits, y, column, source):
    predicted, recalls, f1s = logits.argmax(1), [], []
    for species in np.unique(y):  # those that are there: a species that is only predicted has no share
        hits = float(((predicted == species) & (y == species)).sum())
        recalls.append(hits / (y == species).sum())
        f1s.append(2 * hits / ((predicted == species).sum() + (y == species).sum()))
    return {
        "acc_avg": (predicted == y).mean(),
        "recall-macro_all": np.mean(recalls),
        "F1-macro_all": np.mean(f1s),
    }


def fmow(logits, y, column, source):
    right = (logits.argmax(1) == y).astype(np.float64)
    years = {g: f"year:{2002 + g}" for g in range(int(source.metadata_array[:, 1].max()) + 1)}
    regions = {g: f"region:{name}" for g, name in enumerate(source.metadata_map["region"])}
    by_year = grouped(right, column("year"), years, "acc")
    by_region = grouped(right, column("region"), regions, "acc")
    kept = [value for name, value in by_region.items() if name != "acc_region:Other"]
    worst = {"acc_worst_year": np.nanmin(list(by_year.values())), "acc_worst_region": np.nanmin(kept)}
    return {**by_year, **by_region, **worst, "acc_avg": right.mean()}


def domainnet(logits, y, column, source):
    right = (logits.argmax(1) == y).astype(np.float64)
    worst = min(right[column("category") == category].mean() for category in np.unique(column("category")))
    return {"acc_avg": right.mean(), "acc_wg": worst}


def cells(first: str, first_names: list[str], second_names: list[str]) -> Callable[..., dict[str, float]]:
    def recomputed(logits, y, column, source):
        right = (logits.argmax(1) == y).astype(np.float64)
        names = {
            a + 2 * b: f"y:{second_names[b]}_{first}:{first_names[a]}" for a in range(2) for b in range(2)
        }
        by_group = grouped(right, column(first) + 2 * y, names, "acc")
        found = {**by_group, "acc_wg": np.nanmin(list(by_group.values()))}
        if first == "male":
            return {**found, "acc_avg": right.mean()}
        size = [3498, 56, 184, 1057]  # landbird on land, waterbird on land, landbird on water, ...
        order = ["landbird", "waterbird"]
        weighed = [
            by_group[f"acc_y:{bird}_background:{place}"] for place in ("land", "water") for bird in order
        ]
        return {**found, "adj_acc_avg": np.dot(size, weighed) / sum(size)}

    return recomputed


def bdd100k(logits, y, column, source):
    return {"acc_all": ((logits > 0) == (y > 0.5)).mean()}


def poverty(outputs, y, column, source):
    def numbers(chosen: np.ndarray) -> tuple[float, float]:
        prediction, truth = outputs[chosen, 0], y[chosen].flatten()
        return ((prediction - truth) ** 2).mean(), np.corrcoef(prediction, truth)[0, 1]

    everyone, urban = np.ones(len(y), dtype=bool), column("urban") == 1
    mse = {name: numbers(chosen)[0] for name, chosen in (("urban:0", ~urban), ("urban:1", urban))}
    r = {name: numbers(chosen)[1] for name, chosen in (("urban:0", ~urban), ("urban:1", urban))}
    found = {f"mse_{name}": value for name, value in mse.items()}
    found |= {f"r_{name}": value for name, value in r.items()}
    found |= {"mse_avg": numbers(everyone)[0], "r_all": numbers(everyone)[1]}
    return {**found, "mse_wg": max(mse.values()), "r_wg": min(r.values())}


def sqf(logits, y, column, source):
    score = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    held = score > np.percentile(score[y == 1], 40)
    race, right = column("suspect race"), (logits.argmax(1) == y).astype(np.float64)
    names = {g: f"group:{g}" for g in range(3)}
    precision = [y[held & (race == g)].mean() for g in range(3)]
    found = grouped(right, race, names, "acc")
    found |= {f"precision_at_global_recall_group:{g}": value for g, value in enumerate(precision)}
    found |= {"acc_wg": min(found[f"acc_group:{g}"] for g in range(3)), "acc_avg": right.mean()}
    found["precision_at_global_recall_wg"] = min(precision)
    return {**found, "precision_at_global_recall_all": y[held].mean()}


RECOMPUTED: dict[str, Callable[..., dict[str, float]]] = {
    "camelyon17": accuracies("slide", lambda source: {g: str(g) for g in range(44)}),
    "iwildcam": iwildcam,
    "fmow": fmow,
    "rxrx1": accuracies("cell_type", lambda source: dict(enumerate(source.metadata_map["cell_type"]))),
    "domainnet": domainnet,
    "celebA": cells("male", ["0", "1"], ["notblond", "blond"]),
    "waterbirds": cells("background", ["land", "water"], ["landbird", "waterbird"]),
    "bdd100k": bdd100k,
    "poverty": poverty,
    "sqf": sqf,
}
AS_THEIRS = {"bdd100k": lambda z: (z > 0).float(), "poverty": as_is, "sqf": as_is}


@pytest.mark.parametrize("name", NAMES)
def test_official_numbers_are_those_of_the_package_and_of_a_plain_recomputation(name: str, root: Path):
    dataset, source = ours(name, root), theirs(name, root)
    for split in ("val", "test"):
        rows = np.flatnonzero(dataset.manifest["split"] == split)
        outputs, subset = outputs_for(dataset, rows), source.get_subset(split)
        official = dataset.official(outputs, rows)
        predictions = AS_THEIRS.get(name, lambda logits: logits.argmax(-1))(outputs)
        original, _ = source.eval(predictions, subset.y_array, subset.metadata_array)
        assert dataset.official_metric in official
        for key, value in official.items():
            empty = not key.startswith("count") and original.get(f"count_{key.partition('_')[2]}") == 0
            assert np.isnan(value) if empty else value == pytest.approx(original[key], abs=1e-6)
        metadata = subset.metadata_array.double().numpy()
        recomputed = RECOMPUTED[name](
            outputs.double().numpy(),
            subset.y_array.double().numpy(),
            lambda field, metadata=metadata: metadata[:, source.metadata_fields.index(field)],
            source,
        )
        scores = {key: value for key, value in official.items() if not key.startswith("count_")}
        assert scores == pytest.approx(recomputed, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["camelyon17", "rxrx1", "celebA", "waterbirds"])
def test_our_worst_group_is_theirs(name: str, root: Path):
    dataset = ours(name, root)
    rows = np.flatnonzero(dataset.manifest["split"] == "test")
    outputs = outputs_for(dataset, rows)
    groups = grouping(dataset.manifest, dataset.groups)
    evaluator = Evaluator(dataset, dataset.reader, groups, torch.device("cpu"))
    scores = evaluator.scores(outputs, rows)
    assert scores.wga.acc == pytest.approx(scores.official["acc_wg"], abs=1e-6)


def test_a_group_without_examples_is_nan_and_not_zero(root: Path):
    dataset = ours("waterbirds", root)
    rows = np.flatnonzero((dataset.manifest["split"] == "test") & (dataset.manifest["background"] == "land"))
    found = dataset.official(outputs_for(dataset, rows), rows)
    assert (
        np.isnan(found["acc_y:landbird_background:water"]) and found["count_y:landbird_background:water"] == 0
    )
    assert 0 <= found["acc_wg"] <= 1


def test_outputs_that_are_nan_make_no_score(root: Path):
    dataset = ours("camelyon17", root)
    rows = np.flatnonzero(dataset.manifest["split"] == "test")
    outputs = outputs_for(dataset, rows)
    outputs[0] = torch.nan
    found = dataset.official(outputs, rows)
    assert np.isnan(found["acc_avg"]) and found["count_slide:20"] == 6


def test_images_that_are_left_out_shift_no_label_of_the_evaluation(root: Path, tmp_path: Path):
    wilds_images.bdd100k(tmp_path)
    (tmp_path / "bdd100k_v1.0" / "images" / "val_2.png").write_bytes(b"no image")
    dataset, source = ours("bdd100k", tmp_path, "skip_unreadable=true"), theirs("bdd100k", tmp_path)
    assert len(dataset.manifest) == len(source) - 1
    assert torch.equal(dataset.targets_M, source.y_array[row_of(dataset)])
    rows = np.flatnonzero(dataset.manifest["split"] == "test")
    assert dataset.official(2 * dataset.targets_M[rows] - 1, rows) == {"acc_all": 1.0}


@pytest.mark.parametrize(
    ("name", "replicates"),
    [("camelyon17", 10), ("poverty", 5), ("fmow", 3), ("iwildcam", 3), ("rxrx1", 3), ("waterbirds", 0)],
)
def test_replicates_are_those_that_the_leaderboard_asks_for(name: str, replicates: int, root: Path):
    assert ours(name, root).replicates == replicates
