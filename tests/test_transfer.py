"""A trained run scored on other data: the same network, the suite's test rows, nothing of it trained on."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import run_small

from dgharness.config import DataConfig
from dgharness.data.corruptions import corrupt
from dgharness.errors import UsageError
from dgharness.rundir import RunDir
from dgharness.training.build import build
from dgharness.training.prepare import load_dataset, prepare
from dgharness.training.progress import Progress
from dgharness.training.run import read_config
from dgharness.training.transfer import score_on

SIZE = {"size": 12, "augment": False}


@pytest.fixture(autouse=True)
def cache_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photographs(folder, classes=("cat", "dog"), each=10):
    random = np.random.RandomState(len(classes))
    for domain in ("art", "photo", "sketch"):
        for name in classes:
            (folder / domain / name).mkdir(parents=True)
            for number in range(each):
                pixels = random.randint(0, 256, (12, 12, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / domain / name / f"{number}.png")
    return folder


@pytest.fixture
def run(mlflow_store, tmp_path):
    """A run on art and photo, and where its photographs lie."""
    folder = photographs(tmp_path / "photos")
    data = {"name": f"folder:{folder}", **SIZE}
    return run_small(mlflow_store, tmp_path / "runs", data=data, protocol={"targets": ["sketch"]}), folder


def rebuilt(result):
    """The run's parts again, and its last network."""
    prepared = prepare(read_config(RunDir.open(result.path.parent, result.run_id)))
    parts = build(prepared, Progress(say=lambda text: None))
    weights = torch.load(result.path / "weights-last.pt", weights_only=True)["weights"]
    return prepared, parts.learner.predictor(parts.source, weights)


def test_the_runs_own_targets_are_scored_corrupted_and_nothing_that_it_was_trained_on(run):
    result, folder = run
    options = {"corruptions": ["fog", "shot-noise"], "severities": [1, 5]}
    found = score_on(result.path, f"corrupted:folder:{folder}", options=options)
    prepared, predictor = rebuilt(result)
    rows = prepared.splits.rows["test"]["sketch"]
    x, y = prepared.dataset.reader(torch.from_numpy(rows)), prepared.dataset.targets_M[rows]
    errors = []
    for corruption in options["corruptions"]:
        for severity in options["severities"]:
            with torch.no_grad():
                logits_NC = predictor.classify(
                    predictor.features(
                        prepared.dataset.prepare(corrupt(x, rows.tolist(), corruption, severity))
                    )
                )
            accuracy = (logits_NC.argmax(-1) == y).double().mean().item()
            assert found[f"test/acc/{corruption}-{severity}"] == pytest.approx(accuracy)
            errors.append(1 - accuracy)
    assert found["test/count"] == 4 * len(rows)
    assert found["test/official/mean_corruption_error"] == pytest.approx(np.mean(errors))


def test_every_domain_has_its_accuracy_however_many_there_are(run):
    result, folder = run
    before = {path: path.stat().st_mtime_ns for path in result.path.rglob("*")}
    found = score_on(result.path, f"corrupted:folder:{folder}", checkpoint_name="training-domain-validation")
    assert len([key for key in found if key.startswith("test/acc/")]) == 75
    assert {path: path.stat().st_mtime_ns for path in result.path.rglob("*")} == before


def test_another_dataset_of_the_same_classes_is_scored_on_its_test_rows(run, tmp_path):
    result, _ = run
    other = f"corrupted:folder:{photographs(tmp_path / 'others')}"
    options = {**SIZE, "corruptions": "contrast", "severities": 1, "holdout": 0.3}
    found = score_on(result.path, other, options=options)
    suite = load_dataset(DataConfig(name=other, **options), "", 0)
    test = np.flatnonzero(suite.manifest["split"] == "test")
    _, predictor = rebuilt(result)
    with torch.no_grad():
        x = suite.prepare(suite.reader(torch.from_numpy(test)))
        right = predictor.classify(predictor.features(x)).argmax(-1) == suite.targets_M[test]
    assert found["test/count"] == len(test) == 18
    assert found["test/acc/contrast-1"] == pytest.approx(right.double().mean().item())


def test_what_cannot_be_scored_is_said(run, tmp_path):
    result, folder = run
    with pytest.raises(UsageError, match=r"has no test rows of its own"):
        score_on(result.path, f"folder:{folder}", options=SIZE)
    with pytest.raises(UsageError, match=r"keeps no checkpoint 'best'; it has last"):
        score_on(result.path, f"corrupted:folder:{folder}", checkpoint_name="best")
    with pytest.raises(UsageError, match=r"has examples of shape \[3, 16, 16\], and the run was trained on"):
        score_on(result.path, f"folder:{folder}", options={"size": 16})
    more = photographs(tmp_path / "more", ("cat", "dog", "fox"), each=1)
    with pytest.raises(UsageError, match=r"is classification of 3 outputs, and the run was trained for"):
        score_on(result.path, f"folder:{more}", options=SIZE)
    swapped = photographs(tmp_path / "swapped", ("ape", "dog"), each=1)
    with pytest.raises(UsageError, match=r"output 0 is the class 'cat' for the run and 'ape' for swapped"):
        score_on(result.path, f"folder:{swapped}", options=SIZE)
