"""Which runs share a table, and what each says of itself there."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dgharness.config import compose
from dgharness.data.groups import metric_groups
from dgharness.report.captions import leaderboard, warnings
from dgharness.report.table import Cell, Column, Row
from dgharness.selection.rule import RunRecord
from dgharness.training.evaluation import Evaluator
from dgharness.training.identity import run_tags
from dgharness.training.prepare import Prepared, prepare
from dgharness.training.progress import Progress, result_lines
from dgharness.training.run import train

sys.path.insert(0, str(Path(__file__).parent / "data"))  # the layouts are those of the datasets' tests

from layouts import layouts

CAMELYON, WATERBIRDS = "wilds:camelyon17", "subpop:waterbirds"
SMALL = ("model.name=mlp", "model.width=4", "data.size=8", "train.batch_size=4", "train.rows=2")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("data") for name in (CAMELYON, WATERBIRDS)}
    for name, folder in folders.items():
        layouts()[name].write(folder)
    return folders


@pytest.fixture
def prepared(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(roots[CAMELYON] / "cache"))

    def make(name: str, *sets: str, preset: str = "") -> Prepared:
        own = [f"data.name={name}", f"execution.data_root={roots[name]}"]
        short = [] if preset else ["train.steps=2", "train.eval_every=2"]
        return prepare(compose(preset=preset, sets=[*own, *SMALL, *short, *sets]))

    return make


# --- one table -------------------------------------------------------------------------------------


def test_the_algorithms_of_a_preset_of_wilds_share_a_table_and_say_where_they_differ(prepared: Any) -> None:
    tags = {
        name: run_tags(prepared(CAMELYON, preset=f"wilds/camelyon17/{name}"))
        for name in ("erm", "coral", "irmv1", "group-dro", "dann-grl")
    }
    assert len({own["dg.settings"] for own in tags.values()}) == 1
    assert {name: own.get("dg.uses") for name, own in tags.items()} == {
        "erm": None,
        "coral": "a sampler of its own (wilds-group)",
        "irmv1": "a sampler of its own (wilds-group)",
        "group-dro": "a sampler of its own (wilds-uniform)",
        "dann-grl": "a sampler of its own (wilds-group), a learning rate of the classifier times 10",
    }


def test_a_sampler_that_no_benchmark_pairs_with_pooled_stays_apart(prepared: Any) -> None:
    pooled, by_domain = (prepared(CAMELYON, f"train.sampler={name}") for name in ("pooled", "by-domain"))
    assert run_tags(pooled)["dg.settings"] != run_tags(by_domain)["dg.settings"]


@pytest.mark.parametrize("setting", ["data.attributes=known", "data.augment=false"])
def test_an_option_of_the_data_at_its_default_is_the_same_run(prepared: Any, setting: str) -> None:
    plain, spelled = prepared(WATERBIRDS), prepared(WATERBIRDS, setting)
    assert spelled.config_hash == plain.config_hash
    assert run_tags(spelled)["dg.settings"] == run_tags(plain)["dg.settings"]


@pytest.mark.parametrize("setting", ["data.attributes=unknown", "data.augment=true"])
def test_an_option_of_the_data_that_is_not_is_another(prepared: Any, setting: str) -> None:
    plain, other = prepared(WATERBIRDS), prepared(WATERBIRDS, setting)
    assert other.config_hash != plain.config_hash
    assert setting.replace("=", " ").lower() in run_tags(other)["dg.settings"].lower()


# --- what stands beside the numbers ----------------------------------------------------------------


def test_hidden_attributes_that_choose_the_checkpoint_are_named(prepared: Any) -> None:
    hidden = "attributes hidden from training (place) for worst-group in validation"
    assert run_tags(prepared(WATERBIRDS, "data.attributes=unknown"))["dg.uses"] == hidden
    assert "dg.uses" not in run_tags(prepared(WATERBIRDS))
    by_class = ("selection.rules=[worst-class]", "selection.shown=worst-class")
    assert "dg.uses" not in run_tags(prepared(WATERBIRDS, "data.attributes=unknown", *by_class))


@pytest.mark.parametrize("scheme", ["mixed-to-test", "official"])
def test_another_split_than_the_official_is_no_replicate(prepared: Any, scheme: str) -> None:
    tags = run_tags(prepared(CAMELYON, f"data.split_scheme={scheme}"))
    assert ("dg.replicates" in tags) == (scheme == "official")
    against = tags.get("dg.against_rules", "")
    assert (f"is of its official split, and this one is {scheme}" in against) == (scheme != "official")


def test_the_official_metric_of_a_dataset_without_a_leaderboard_is_pointed_at(prepared: Any) -> None:
    tags = run_tags(prepared(WATERBIRDS))
    assert "dg.replicates" not in tags
    run = RunRecord("r", "erm", WATERBIRDS, "subpopulation", ("land",), 0, 0, "FINISHED", (), tags=tags)
    row = Row("erm", (Cell({0: 0.5}),))
    metric = tags["dg.official_metric"]
    assert leaderboard([run], [Column("land+water")], [row]) == [
        f"The dataset's own evaluation goes by {metric}: dgharness report --extra official/{metric}."
    ]
    assert leaderboard([run], [Column(f"official/{metric}")], [row]) == []
    assert warnings([run]) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_of_the_official_score_larger_is_better(prepared: Any, sign: int) -> None:
    rows = np.arange(4)
    dataset = dataclasses.replace(
        prepared(WATERBIRDS).dataset,
        official=lambda outputs, rows: {"error": 0.2, "other": 0.9},
        official_metric="error",
        official_sign=sign,
    )
    groups = metric_groups(dataset.manifest, dataset.groups)
    scores = Evaluator(dataset, dataset.reader, groups, torch.device("cpu")).scores(torch.zeros(4, 2), rows)
    flat = scores.flat("val")
    assert (flat["val/official/error"], flat["val/official_score"]) == (0.2, sign * 0.2)


# --- what a run prints and keeps -------------------------------------------------------------------


def test_the_result_names_the_official_metric_beside_the_classes(
    prepared: Any, tmp_path: Path, mlflow_store: str
) -> None:
    rules = ("selection.rules=[official-validation]", "selection.shown=official-validation")
    places = (
        f"execution.output={tmp_path}",
        f"execution.tracking_uri={mlflow_store}",
        "execution.device=cpu",
    )
    run = prepared(CAMELYON, *rules, *places)
    assert run_tags(run)["dg.shown"] == "official-validation"
    result = train(run.config, progress=Progress(say=lambda text: None))
    (evaluation,) = result.chosen.values()
    said = result_lines(result.run_id, result.chosen, run)[-1]
    official = evaluation.metrics["test/official/acc_avg"]
    assert "worst class" in said and said.endswith(f"   official acc_avg {official:.3f}")
    for split in ("val", "test", "id_val"):
        score = evaluation.metrics[f"{split}/official_score"]
        assert score == evaluation.metrics[f"{split}/official/acc_avg"]
    kept = pd.read_parquet(result.path / f"predictions-{evaluation.step}.parquet")
    test = kept[kept["split"] == "test"]
    assert {str(kept[name].dtype) for name in kept if name.startswith("logit_")} == {"float32"}
    logits = torch.from_numpy(test[["logit_0", "logit_1"]].to_numpy(copy=True))
    right = logits.argmax(1) == torch.from_numpy(test["y"].to_numpy(copy=True))
    assert right.float().mean().item() == pytest.approx(official)
