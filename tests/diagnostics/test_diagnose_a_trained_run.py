"""A finished run looked at: rebuilt as it was, refused where it is not, and sensible on coloured digits."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from small_runs import run_small

from dgharness.commands.diagnosing import OF_A_RUN, Asked, run_diagnose
from dgharness.diagnostics.render import as_json, as_text
from dgharness.errors import NotApplicable, UsageError
from dgharness.figures import as_png
from dgharness.training.inspect import inspected


@pytest.fixture(scope="module")
def result(tmp_path_factory, _migrated_database):
    folder = tmp_path_factory.mktemp("inspected")
    shutil.copy(_migrated_database, folder / "mlflow.db")
    train = {"steps": 150, "eval_every": 50, "log_every": 50, "batch_size": 64}
    return run_small(f"sqlite:///{folder / 'mlflow.db'}", folder / "runs", train=train)


@pytest.fixture(scope="module")
def trained(result):
    return inspected(result.path, device="cpu")


def test_features_are_those_of_the_kept_weights(trained, result):
    rows = trained.splits.rows["val"]["+90%"]
    state = torch.load(result.path / "weights-last.pt", weights_only=True)["weights"]["model"]
    for name, weight in trained.predictor.state_dict().items():
        assert torch.equal(weight, state[name])
    x = trained.dataset.prepare(trained.dataset.reader(torch.from_numpy(rows)))
    with torch.no_grad():
        torch.testing.assert_close(trained.encode(rows), trained.predictor.features(x))
        torch.testing.assert_close(trained.inputs(rows), x)


def test_the_sample_holds_nothing_that_was_trained_on_nor_the_part_of_the_oracle(trained):
    sample = trained.sample
    seen = np.concatenate(list(trained.splits.rows["train"].values()))
    held_back = trained.splits.rows["test_holdout"]["-90%"]
    assert not np.isin(sample.row_N, np.concatenate([seen, held_back])).any()
    assert dict(zip(sample.domains, sample.trained_on, strict=True)) == {
        "+90%": True,
        "+80%": True,
        "-90%": False,
    }
    domain_N = trained.dataset.manifest["domain"].astype(str).to_numpy()[sample.row_N]
    assert (np.array(sample.domains)[sample.domain_N] == domain_N).all()
    np.testing.assert_array_equal(sample.features_ND, trained.encode(sample.row_N).double().numpy())


@pytest.mark.parametrize("name", OF_A_RUN)
def test_every_diagnosis_has_a_table_a_figure_findings_and_numbers(name, trained):
    found = OF_A_RUN[name](trained)
    assert found.name == name
    assert len(found.table) and found.findings and found.metrics
    assert all(key.startswith(f"{name}/") and np.isfinite(value) for key, value in found.metrics.items())
    assert as_png(found.figure())[:4] == b"\x89PNG"
    assert found.caption.split()[0] in as_text(found, "a run")
    assert json.loads(as_json(found, "a run"))["diagnosis"] == name


def test_erm_on_coloured_digits_keeps_the_colour_and_the_domain_shows_within_a_class(trained):
    table = OF_A_RUN["domain-predictability"](trained).table.set_index("read")
    assert table.loc["color", "balanced_accuracy"] > 0.95
    domain = table.loc["domain"]
    # Given the label, nine in ten of the target have the other colour: three domains, two of them alike.
    assert domain["within_class"] > domain["within_class_chance"] + 0.15
    between = table.loc["training domain"]
    assert abs(between["balanced_accuracy"] - 0.5) < 0.15
    assert table.loc["label", "balanced_accuracy"] > 0.6


def test_diagnosing_leaves_the_network_as_it_was(trained):
    before = {key: value.clone() for key, value in trained.predictor.state_dict().items()}
    OF_A_RUN["sharpness"](trained)
    after = trained.predictor.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_checkpoint_that_was_not_kept_is_told(result):
    with pytest.raises(UsageError, match=r"keeps no checkpoint 'best'; it has last"):
        inspected(result.path, checkpoint_name="best")


def test_data_that_have_changed_are_refused(result):
    state = json.loads((result.path / "run.json").read_text())
    changed = {**state, "tags": {**state["tags"], "dg.data_digest": "0" * 16}}
    try:
        (result.path / "run.json").write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=r"the data of run \w+ have changed since"):
            inspected(result.path)
    finally:
        (result.path / "run.json").write_text(json.dumps(state))


def test_a_run_of_numbers_has_no_diagnosis_of_classes(mlflow_store, tmp_path):
    table = tmp_path / "numbers.csv"
    random = np.random.default_rng(0)
    lines = [
        f"{a:.3f},{a + noise:.3f},{'abc'[n % 3]}" for n, (a, noise) in enumerate(random.normal(size=(90, 2)))
    ]
    table.write_text("\n".join(["x,y,domain", *lines]))
    data = {"name": f"csv:{table}", "task": "regression"}
    result = run_small(mlflow_store, tmp_path / "runs", data=data)
    numbers = inspected(result.path)
    for name in ("spurious-strength", "style"):
        with pytest.raises(NotApplicable, match="needs classes"):
            OF_A_RUN[name](numbers)
    for name in ("domain-predictability", "domain-distances", "label-shift", "sharpness"):
        found = OF_A_RUN[name](numbers)
        assert len(found.table) and as_png(found.figure())[:4] == b"\x89PNG"


def test_of_many_domains_the_largest_of_both_kinds_are_looked_at(trained, monkeypatch):
    monkeypatch.setattr("dgharness.diagnostics.trained.DOMAINS", 2)
    monkeypatch.setattr("dgharness.diagnostics.trained.EXAMPLES", 100)
    few = dataclasses.replace(trained).sample
    assert few.domains == ("+90%", "-90%") and few.trained_on == (True, False)
    assert np.bincount(few.domain_N).tolist() == [50, 50]


def test_the_command_diagnoses_a_run_by_its_id(result, capsys, monkeypatch):
    store = f"sqlite:///{result.path.parents[1] / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    names = ["label-shift", "domain-distances"]
    asked = Asked(result.run_id, only=names, output=str(result.path.parent), as_json=True)
    run_diagnose(asked)
    found = {one["diagnosis"]: one for one in json.loads(capsys.readouterr().out)}
    assert sorted(found) == sorted(names)
    pairs = {(row["domain"], row["other"]) for row in found["domain-distances"]["table"]}
    assert pairs == {("+90%", "+80%"), ("+90%", "-90%"), ("+80%", "-90%")}
    assert "checkpoint training-domain-validation" in found["domain-distances"]["title"]
