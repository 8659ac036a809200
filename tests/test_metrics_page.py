"""docs/metrics.md describes whatever a run logs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from metrics_cases import DOMAINS, predictions
from small_runs import run_small, stored

from dgharness.metrics.every import every_metric
from dgharness.metrics.scores import score_examples

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
SPLIT = re.compile(r"^(val|test|test_holdout|id_val|id_test)(_unadapted|_adapted|_query)?/")
NAME = re.compile(r"\b[A-Z]+\b")  # what stands for the name of a domain, a rule, ...


def described() -> list[re.Pattern[str]]:
    spans = {span for span in re.findall(r"`([^`\s]+)`", PAGE) if span not in ("SPLIT/KEY", "SPLIT/KEY/NAME")}
    return [re.compile(NAME.sub("[^/]+", re.escape(span))) for span in spans]


def undescribed(keys: set[str]) -> set[str]:
    patterns = described()
    return {key for key in keys if not any(pattern.fullmatch(SPLIT.sub("", key)) for pattern in patterns)}


def test_a_metric_that_the_page_lacks_is_noticed():
    assert undescribed({"test/acc_avg", "test/accuracy", "val/acc/a", "val/acc/a/b", "cost/x", "cots/x"}) == {
        "test/accuracy",
        "val/acc/a/b",
        "cots/x",
    }


@pytest.mark.parametrize(
    "sections",
    [
        {"algorithm": "irmv1"},
        {"data": {"name": "synthetic:unit-test-1", "n": 60}, "model": {"name": "mlp"}},
        {"tta": {"name": "t3a"}},
    ],
    ids=["classes", "numbers", "adapted"],
)
def test_every_key_of_a_run_is_described(mlflow_store, tmp_path, sections):
    result = run_small(mlflow_store, tmp_path, **sections)
    keys = {key for key, _, _ in stored(mlflow_store, result.path)["metrics"]}
    assert len(keys) > 50 and not undescribed(keys)


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_every_metric_of_the_table_is_described(task):
    assert not undescribed(set(every_metric(predictions(task, outputs=2))["metric"]))


def test_the_keys_of_many_domains_are_described():
    found = predictions("multilabel")
    names = [*DOMAINS, *map(str, range(60))]
    scores = score_examples(found.right_N, found.loss_N, found.domain_N, names, found.group, names)
    assert not undescribed(set(scores.flat("test")))
