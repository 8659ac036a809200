"""``dgharness evaluate``: what was measured in training is measured again, and what was not, untrained."""

import io
import json
import math
import shutil
import sqlite3
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from small_runs import mlflow_id, stored
from test_transfer import SIZE, photographs

from dgharness import cli
from dgharness.config import compose, merge
from dgharness.metrics.temperature import fit_temperature
from dgharness.names import slugs
from dgharness.predictions import read_predictions
from dgharness.training import run as training
from dgharness.training.progress import Progress
from dgharness.training.transfer import score_on

KEYS = {"acc": "acc_avg", "loss": "nll", "mse": "mse_avg", "mae": "mae_avg"}  # as a run logs them
SHORT = {"train": {"steps": 10, "eval_every": 4, "batch_size": 8}, "optimizer": {"lr": 1e-2}}
NUMBERS = {"data": {"name": "synthetic:unit-test-1", "n": 40}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, _migrated_database):
    """A directory with runs in it, and the store that they are tracked in."""
    root = tmp_path_factory.mktemp("evaluate")
    shutil.copy(_migrated_database, root / "mlflow.db")
    return SimpleNamespace(root=root, store=f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture(scope="module")
def train(place):
    """``train(**sections)``: a run of few steps, the same one for the same sections."""
    known = {}

    def run(algorithm="erm", **sections):
        key = json.dumps([algorithm, sections], sort_keys=True)
        if key not in known:
            base = {"execution": {"tracking_uri": place.store, "output": str(place.root / "runs")}, **SHORT}
            flags = merge(merge(base, {"algorithm": algorithm}), sections)
            known[key] = training.train(compose(flags=flags), progress=Progress(say=lambda text: None))
        return known[key]

    return run


@pytest.fixture
def evaluate(place, monkeypatch, capsys):
    """Run the command where the runs are; gives exit code, stdout and stderr."""
    monkeypatch.chdir(place.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.store)
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dgharness", "evaluate", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return SimpleNamespace(code=left.value.code or 0, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def table(evaluate):
    """What the command prints as CSV."""

    def run(*words):
        said = evaluate(*words, "--format", "csv", "--no-track")
        assert said.code == 0, said.err
        return pd.read_csv(
            io.StringIO(said.out),
            keep_default_na=False,
            na_values={"value": [""]},
            float_precision="round_trip",
        )

    return run


def by_key(table, split="test", kind="own"):
    """The rows of one split and kind under the keys that a run logs."""
    rows = table[(table["split"] == split) & (table["predictions"] == kind)]
    names = {kind: slugs(rows.loc[rows["slice"] == kind, "name"]) for kind in ("domain", "group")}
    found = {}
    for row in rows.itertuples():
        if row.slice in names:
            prefix = "group_" if row.slice == "group" else ""
            found[f"{split}/{prefix}{row.metric}/{names[row.slice][row.name]}"] = row.value
            found[f"{split}/{prefix}count/{names[row.slice][row.name]}"] = row.count
        elif row.slice != "class":
            found[f"{split}/{KEYS.get(row.metric, row.metric)}"] = row.value
            if row.slice == "all":
                found[f"{split}/count"] = row.count
            if row.slice == "worst":
                found[f"{split}/{row.metric.removesuffix('_acc')}_count"] = row.count
    return found


def logged(result, rule, split):
    """What the run logged of a split at the checkpoint that a rule chose."""
    metrics = result.chosen[rule].metrics
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def assert_equal(found, expected):
    """The same numbers to the last bit, and none of them left out."""
    assert expected
    for key, value in expected.items():
        assert found[key] == value or (math.isnan(found[key]) and math.isnan(value)), key


# --- from stored predictions -----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test", "test_holdout"])
@pytest.mark.parametrize("rule", ["training-domain-validation", "last"])
def test_what_was_logged_in_training_is_found_again_bit_for_bit(train, table, rule, split):
    result = train("vrex")
    found = table(result.run_id, "--checkpoint", rule, "--split", split)
    assert_equal(by_key(found, split), logged(result, rule, split))


@pytest.mark.parametrize("algorithm", ["drm"])  # validation is adapted as well
def test_what_adapts_is_found_again_bit_for_bit(train, table, algorithm):
    result = train(algorithm)
    found = table(result.run_id, "--split", "val,test", "--checkpoint", "last")
    for split in ("val", "test"):
        expected = logged(result, "last", split)
        of_heads = ("test/head_acc/", "test/adaptivity_gap/")
        kept = {key: value for key, value in expected.items() if not key.startswith(of_heads)}
        assert_equal(by_key(found, split), kept)


def test_numbers_are_found_again_bit_for_bit(train, table):
    result = train(**NUMBERS)
    assert_equal(
        by_key(table(result.run_id, "--checkpoint", "last")),
        {k: v for k, v in logged(result, "last", "test").items() if "official" not in k},
    )


def test_text_csv_and_json_say_the_same(train, evaluate, table):
    result = train("vrex")
    as_table = table(result.run_id)
    said = evaluate(result.run_id, "--json", "--no-track")
    content = json.loads(said.out)
    assert (content["run_id"], content["dataset"]) == (result.run_id, "colored-digits")
    assert content["checkpoint"] == result.chosen["training-domain-validation"].step
    assert [row["value"] for row in content["metrics"]] == [
        None if math.isnan(value) else value for value in as_table["value"]
    ]
    text = evaluate(result.run_id, "--no-track").out
    (wga,) = as_table.loc[as_table["metric"] == "wga", ["name", "value"]].to_numpy().tolist()
    assert any(line.split()[:3] == ["wga", wga[0], f"{wga[1]:.3f}"] for line in text.splitlines())
    first = [words[0] for words in map(str.split, text.splitlines()) if words]
    assert first.count("worst_class_f1") == first.count("wga") == 1


def test_a_checkpoint_has_the_names_of_its_rules_and_its_step(train, table):
    result = train("vrex")
    by_rule = table(result.run_id, "--checkpoint", "worst-group")
    for name in ("ValWorstAccAttributeYes", result.chosen["worst-group"].step):
        pd.testing.assert_frame_equal(table(result.run_id, "--checkpoint", name), by_rule)


def test_metrics_and_slices_are_chosen_by_name(train, table):
    found = table(train("vrex").run_id, "--metric", "nll,wga", "--metric", "auroc", "--by", "all,group")
    assert set(found["metric"]) == {"loss", "wga", "auroc"}  # nll, as the loss is logged
    assert set(found["slice"]) == {"all", "worst", "group"}


def test_intervals_and_the_least_size_of_a_group_are_those_asked_for(train, table):
    run_id = train("vrex").run_id
    plain = table(run_id)
    drawn = table(run_id, "--bootstrap", "50").set_index(["slice", "name", "metric"])
    acc = drawn.loc[("all", "", "acc")]
    assert float(acc["low"]) <= acc["value"] <= float(acc["high"])
    counts = plain.loc[(plain["slice"] == "group") & (plain["metric"] == "acc"), "count"]
    least = int(counts.max())
    worst = table(run_id, "--min-group-size", least).set_index("metric").loc["wga"]
    assert worst["count"] == least
    assert table(run_id, "--min-group-size", 10**6).set_index("metric").loc["wga", "count"] == 0


# --- from kept weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("tta", ["none", "t3a"])
def test_outputs_that_were_left_out_are_computed_again_from_the_weights(train, evaluate, table, tta):
    with_room = train(tta={"name": tta})
    without = train(tta={"name": tta}, selection={"predictions_mb": 0})
    assert not list(without.path.glob("predictions-*"))
    pd.testing.assert_frame_equal(
        table(without.run_id, "--split", "test,val"), table(with_room.run_id, "--split", "test,val")
    )
    said = evaluate(without.run_id, "--no-track").err
    assert "outputs of test are not stored; computed again from the kept weights" in said
    assert "this scores the target (test) again" in said


def test_another_test_time_method_gives_what_a_run_with_it_gives(train, table):
    plain, adapts = train(), train(tta={"name": "t3a", "keep": 3, "batch_size": 16})
    words = ["--checkpoint", "last", "--tta", "t3a", "--set", "tta.keep=3", "--set", "tta.batch_size=16"]
    found = table(plain.run_id, *words)
    expected = logged(adapts, "last", "test")
    assert_equal(by_key(found, kind="adapted"), expected)
    unadapted = {k.replace("_unadapted", ""): v for k, v in logged(adapts, "last", "test_unadapted").items()}
    assert_equal(by_key(found, kind="unadapted"), unadapted)
    assert_equal(unadapted, logged(plain, "last", "test"))


def test_a_method_that_the_run_had_can_be_left_out(train, table):
    adapts = train(tta={"name": "t3a", "keep": 3, "batch_size": 16})
    found = table(adapts.run_id, "--checkpoint", "last", "--tta", "none")
    assert set(found["predictions"]) == {"unadapted"}
    assert_equal(by_key(found, kind="unadapted"), logged(train(), "last", "test"))


def test_another_dataset_is_scored_as_by_score_on_and_with_a_method_beside_it(
    train, table, place, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.root / "cache"))
    folder = photographs(place.root / "photos")
    data = {"name": f"folder:{folder}", **SIZE}
    result = train(data=data, protocol={"targets": ["sketch"]}, model={"name": "mlp", "width": 16})
    other, options = f"corrupted:folder:{folder}", {"corruptions": ["fog"], "severities": [1, 5]}
    sets = ["--set", "data.corruptions=fog", "--set", "data.severities=[1, 5]", "--set", "tta.keep=3"]
    found = table(result.run_id, "--dataset", other, *sets, "--checkpoint", "last", "--tta", "t3a")
    expected = score_on(result.path, other, options=options)
    expected.pop("test/official_score")
    expected["test/official/mean_corruption_error"] = pytest.approx(
        expected["test/official/mean_corruption_error"]
    )
    assert {"test/acc/fog-1", "test/acc/fog-5"} <= set(expected)
    assert_equal(by_key(found, kind="unadapted"), expected)
    assert "adapted" in set(found["predictions"])


# --- calibration -----------------------------------------------------------------------------------


def test_calibration_stands_beside_what_it_changes_and_no_prediction_changes(train, evaluate):
    result = train("vrex")
    said = evaluate(result.run_id, "--calibrate", "--checkpoint", "last", "--json", "--no-track")
    content = json.loads(said.out)
    stored_ones = read_predictions(result.path / f"predictions-{result.chosen['last'].step}.parquet")
    val, test = stored_ones.of("val"), stored_ones.of("test")
    temperature = fit_temperature(val.outputs_NC, val.targets)
    assert content["temperature"] == temperature
    rows = {
        (row["predictions"], row["metric"]): row["value"]
        for row in content["metrics"]
        if row["slice"] == "all"
    }
    assert {metric for _, metric in rows} == {"acc", "loss", "brier", "ece", "ece_binary"}
    assert rows["own", "acc"] == rows["calibrated", "acc"]
    scaled_NC = test.outputs_NC.double() / temperature
    nll = torch.nn.functional.cross_entropy(scaled_NC, test.targets).item()
    assert rows["calibrated", "loss"] == pytest.approx(nll)
    assert rows["own", "loss"] == result.chosen["last"].metrics["test/nll"]


def test_where_no_temperature_fits_it_is_said_and_nothing_stands_for_it(train, evaluate, monkeypatch):
    monkeypatch.setattr("dgharness.metrics.temperature.fit_temperature", lambda *given: 0.0)
    said = evaluate(train("vrex").run_id, "--calibrate", "--json", "--no-track")
    assert "no temperature: every validation example is predicted right" in said.err
    content = json.loads(said.out)
    assert content["temperature"] == 0.0
    assert {row["predictions"] for row in content["metrics"]} == {"own"}


# --- where runs are, and what stays as it is -------------------------------------------------------


def test_an_evaluation_is_a_tracked_run_of_its_own_and_changes_nothing_of_the_run(train, evaluate, place):
    result = train("vrex")
    before = {path: path.stat().st_mtime_ns for path in result.path.rglob("*")}
    in_store = stored(place.store, result.path)
    for _ in range(2):  # the same one again is the same run
        assert evaluate(result.run_id, "--tta", "t3a", "--checkpoint", "last").code == 0
    assert {path: path.stat().st_mtime_ns for path in result.path.rglob("*")} == before
    assert stored(place.store, result.path) == in_store
    with sqlite3.connect(place.root / "mlflow.db") as db:
        found = db.execute("SELECT run_uuid FROM tags WHERE key = 'dg.run' AND value = ?", [result.run_id])
        ((uid,),) = found.fetchall()
        tags = dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [uid]))
        metrics = dict(db.execute("SELECT key, value FROM metrics WHERE run_uuid = ?", [uid]))
    assert (tags["dg.kind"], tags["dg.tta"], tags["dg.algorithm"]) == ("evaluation", "t3a", "vrex")
    assert metrics["test_unadapted/wga"] == result.chosen["last"].metrics["test/wga"]
    assert "test/acc_avg" in metrics


def test_a_run_that_only_the_store_has_is_taken_from_there(train, evaluate, table, place):
    result = train("vrex")
    here = table(result.run_id)
    adapted = table(result.run_id, "--tta", "t3a")
    elsewhere = ["--output", "nowhere"]
    pd.testing.assert_frame_equal(table(result.run_id, *elsewhere), here)
    pd.testing.assert_frame_equal(table(mlflow_id(result.path), *elsewhere, "--tta", "t3a"), adapted)
    assert (
        f"run {result.run_id} is not in nowhere; taken from sqlite" in evaluate(result.run_id, *elsewhere).err
    )
    assert not (place.root / "nowhere").exists()


def sentence(said):
    """What a mistake says, after whatever was said before it."""
    assert said.code == 2 and said.out == "", said
    return said.err.splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--checkpoint", "lst"], "has kept no checkpoint 'lst'; did you mean 'last'?"),
        (["--checkpoint", "9"], "has kept no checkpoint '9'; "),
        (["--metric", "auroq"], "there is no metric 'auroq' here; did you mean 'auroc'?"),
        (["--by", "domian"], "--by domian is no way to part examples; did you mean 'domain'?"),
        (
            ["--split", "tset"],
            "colored-digits has no rows of the split 'tset' to score; did you mean 'test'?",
        ),
        (["--format", "jsn"], "there is no format 'jsn'; did you mean 'json'?"),
        (["--tta", "t3b"], "there is no TTA method 't3b'; did you mean 't3a'?"),
        (["--tta", "t3a", "--set", "tta.kep=3"], "kep is not a setting here; did you mean 'keep'?"),
        (["--tta", "t3a", "--calibrate"], "leave out --tta t3a"),
        (["--set", "tta.keep=3"], "--set tta.keep is a setting of --tta; add --tta NAME"),
        (
            ["--set", "train.steps=3"],
            "--set train changes how a run was trained, and evaluate trains nothing",
        ),
        (["--dataset", "rotated-digits"], "rotated-digits "),
        (["--dataset", "colored-digits"], "colored-digits has no test rows of its own"),
        (["--metric", "wga", "--by", "class"], "wga is not measured by class; leave --by out"),
    ],
)
def test_a_mistake_is_one_sentence(train, evaluate, words, expected):
    assert expected in sentence(evaluate(train("vrex").run_id, *words, "--no-track"))


def test_a_run_that_is_unknown_or_not_finished_has_nothing_to_measure(train, evaluate, place):
    train("vrex")
    said = sentence(evaluate("nope"))
    assert said.startswith("there is no run 'nope' in runs; ") and "nor is it in the MLflow store" in said
    assert "nor is it in the MLflow store" in sentence(evaluate("it's"))
    shutil.copytree(train("vrex").path, place.root / "others" / "cut")
    state = json.loads((place.root / "others" / "cut" / "run.json").read_text())
    (place.root / "others" / "cut" / "run.json").write_text(json.dumps({**state, "status": "KILLED"}))
    assert "is KILLED and has no result to measure" in sentence(evaluate("cut", "--output", "others"))


def test_weights_that_are_gone_and_tasks_without_classes_are_said(train, evaluate, place):
    result = train("vrex")
    shutil.copytree(result.path, place.root / "bare" / result.run_id)
    for file in (place.root / "bare" / result.run_id).glob("weights-*"):
        file.unlink()
    words = ["--output", "bare", "--no-track"]
    assert evaluate(result.run_id, *words).code == 0  # stored predictions are enough
    for further in (["--tta", "t3a"], ["--dataset", "rotated-digits"], ["--split", "train"]):
        said = sentence(evaluate(result.run_id, *words, *further))
        assert "keeps no weights; train it again with --set execution.keep=weights" in said
    shutil.copy(result.path / "weights-last.pt", place.root / "bare" / result.run_id)
    said = sentence(evaluate(result.run_id, *words, "--checkpoint", "4", "--tta", "t3a"))
    assert said.endswith("are gone; choose another with --checkpoint: last")
    said = sentence(evaluate(train(**NUMBERS).run_id, "--calibrate", "--no-track"))
    assert said == "--calibrate is for classes, and this run's task is regression; leave it out"


def test_a_run_whose_data_have_changed_is_not_predicted_with(train, evaluate, place):
    file = place.root / "table.csv"
    rows = pd.DataFrame({"y": list("ab") * 30, "domain": list("pqr") * 20, "x": range(60)})
    rows.to_csv(file, index=False)
    result = train(data={"name": f"csv:{file}", "split": ""})
    assert evaluate(result.run_id, "--tta", "t3a", "--no-track").code == 0
    rows.assign(x=range(60, 0, -1)).to_csv(file, index=False)
    assert "have changed since" in sentence(evaluate(result.run_id, "--tta", "t3a", "--no-track"))
    assert evaluate(result.run_id, "--no-track").code == 0  # what is stored is what it was
