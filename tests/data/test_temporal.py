"""The protocol temporal: what is past and what is future, fixed and streaming, from the plan to the table."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

from dgharness import cli
from dgharness.config import compose
from dgharness.data.protocols import PROTOCOLS, default_targets, leave_one_domain_out, temporal
from dgharness.data.temporal import future, in_time_order, past, streaming
from dgharness.errors import NotApplicable, UsageError
from dgharness.sweep import run as sweeping
from dgharness.sweep.plan import plan
from dgharness.sweep.pool import _answer
from dgharness.training.prepare import prepare

FIVE = ("c", "a", "e", "b", "d")  # in the dataset's order; in time the alphabet's
SMALL = (
    "data.name=synthetic:drifting", "data.buckets=5", "data.n=40", "train.steps=4", "train.eval_every=2",
    "model.width=8", "train.batch_size=8", "execution.device=cpu",
)  # fmt: skip


@pytest.fixture
def timed(table):
    """Makes a dataset of five domains of twenty examples: a from 0 to 0.95, b from 1 to 1.95, and so on."""
    dataset = table(**dict.fromkeys(FIVE, 20))
    begins = np.array(["abcde".index(name) for name in FIVE]).repeat(20)
    dataset.manifest["time"] = begins + np.tile(np.arange(20) / 20, 5)
    return dataset


# --- the order of time -----------------------------------------------------------------------------


def test_domains_are_ordered_by_their_time_and_not_by_their_place(timed):
    assert list(in_time_order(timed)) == list("abcde")
    assert in_time_order(timed)["b"] == pytest.approx((1.0, 1.95))
    assert past(timed, ["d", "e"]) == ("a", "b", "c") == past(timed, ["d"])


def test_without_a_cut_the_earlier_half_is_past(timed):
    assert future(timed) == ("d", "e")
    assert default_targets("temporal", timed) == ("d", "e")


@pytest.mark.parametrize(
    ("cut", "horizon", "targets"),
    [
        (2.0, None, "cde"),
        (1.97, None, "cde"),
        (2.0, 1, "c"),
        (1.0, 3, "bcd"),
        (None, 1, "d"),
        (4.0, None, "e"),
    ],
)
def test_the_future_begins_at_the_cut_and_reaches_as_far_as_the_horizon(timed, cut, horizon, targets):
    assert future(timed, cut, horizon) == tuple(targets)


def test_streaming_moves_the_cut_on_while_the_horizon_is_full(timed):
    assert streaming(timed, horizon=2, cut=1.0) == [("b", "c"), ("c", "d"), ("d", "e")]
    assert streaming(timed, horizon=1) == [("d",), ("e",)]
    assert streaming(timed, horizon=4, cut=1.0) == [("b", "c", "d", "e")]


# --- the split -------------------------------------------------------------------------------------


def test_only_what_lies_before_the_earliest_target_is_trained_on(timed):
    splits = temporal(timed, ["c", "d"], 0)
    assert (splits.train_domains, splits.targets) == (("a", "b"), ("c", "d"))
    assert list(splits.rows) == ["train", "val", "test"]
    time = timed.manifest["time"].to_numpy()
    seen = np.concatenate([*splits.rows["train"].values(), *splits.rows["val"].values()])
    tested = np.concatenate([*splits.rows["test"].values()])
    assert time[seen].max() < 2.0 <= time[tested].min()
    assert sorted(seen) == sorted([*timed.rows_of("a"), *timed.rows_of("b")])
    assert sorted(tested) == sorted([*timed.rows_of("c"), *timed.rows_of("d")])


def test_a_past_domain_is_validated_on_the_rows_that_leave_one_domain_out_would_take(timed):
    ours, theirs = temporal(timed, ["d", "e"], 3), leave_one_domain_out(timed, ["d", "e"], 3)
    for split in ("train", "val"):
        for name in "abc":
            assert ours.rows[split][name].tolist() == theirs.rows[split][name].tolist()
    assert [len(rows) for rows in ours.rows["val"].values()] == [4, 4, 4]


def test_the_protocol_is_found_by_name():
    assert PROTOCOLS["temporal"] is temporal


def test_unlabeled_rows_of_the_past_take_no_part(timed):
    split = np.where((timed.manifest["domain"] == "a").to_numpy(), "unlabeled", "train")
    timed.manifest["split"] = pd.Categorical(split)
    assert temporal(timed, ["c"], 0).train_domains == ("b",)


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda d: temporal(d, ["a", "c"], 0),
            "'a' is the earliest domain of table, so that no past is left",
        ),
        (lambda d: temporal(d, [], 0), "no target named"),
        (lambda d: temporal(d, ["c", "c"], 0), "a target is named twice"),
        (lambda d: temporal(d, ["z"], 0), "table has no domain 'z'"),
        (lambda d: future(d, 1.5), r"protocol\.cut=1\.5 lies within the domain 'b' of table, 1 to 1\.95"),
        (lambda d: future(d, -1.0), r"protocol\.cut=-1 leaves table no past; its domains begin at 0, 1, 2"),
        (lambda d: future(d, 9.0), r"protocol\.cut=9 leaves table no future"),
        (lambda d: future(d, 3.0, 3), r"protocol\.horizon=3 asks for 3 domains .* has 2 there"),
        (lambda d: streaming(d, 3), r"protocol\.horizon=3 asks for 3 domains .* has 2 there"),
    ],
)
def test_mistakes_are_named(timed, ask, message):
    with pytest.raises(UsageError, match=message):
        ask(timed)


def test_what_is_wrong_with_the_time_is_named(timed, table):
    timed.manifest.loc[7, "time"] = np.nan
    with pytest.raises(UsageError, match="row 7 has no finite time, by which table is split"):
        temporal(timed, ["e"], 0)
    timed.manifest["time"] = np.arange(100) % 20 / 1.0
    with pytest.raises(UsageError, match="overlap in time: one ends at 19 and the other begins at 0"):
        temporal(timed, ["e"], 0)
    timed.manifest["time"] = pd.Categorical(np.arange(100))
    with pytest.raises(UsageError, match=r"needs a manifest column named time that holds numbers \(float\)"):
        temporal(timed, ["e"], 0)
    with pytest.raises(UsageError, match=r"table has the single domain 'a'; .* a past and a future"):
        future(table(a=9))


# --- runs ------------------------------------------------------------------------------------------


def resolved(*sets: str):
    return prepare(compose(sets=[*SMALL, *sets]))


def test_cut_and_horizon_become_targets_and_the_run_is_that_of_the_targets_named():
    asked = resolved("protocol.cut=0.4", "protocol.horizon=2")
    assert asked.splits.train_domains == ("0 to 0.2", "0.2 to 0.4")
    assert asked.config.protocol.targets == ("0.4 to 0.6", "0.6 to 0.8")
    named = resolved("protocol.targets=[0.4 to 0.6, 0.6 to 0.8]")
    assert named.config_hash == asked.config_hash != resolved("protocol.cut=0.4").config_hash
    assert "test-domain-validation" not in [rule.name for rule in asked.rules]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["protocol.name=leave-one-domain-out", "protocol.cut=0.4"], r"protocol\.cut=0\.4 means nothing to"),
        (
            ["protocol.targets=0.8 to 1", "protocol.horizon=1"],
            "both say what the future is; leave one of them",
        ),
        (["protocol.horizon=0"], r"protocol\.horizon=0 is not valid"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sets, message):
    with pytest.raises(UsageError, match=message):
        resolved(*sets)


def test_a_method_that_needs_two_past_domains_says_so():
    with pytest.raises(NotApplicable, match="at least 2 training domains, and this split leaves 1"):
        prepare(compose(sets=[*SMALL, "protocol.cut=0.2"], flags={"algorithm": "vrex"}))


def windows(*sets: str, targets=()) -> list[tuple[str, ...]]:
    jobs = plan(["erm"], targets=targets, trials=1, sets=[*SMALL, *sets])
    return [job.config.protocol.targets for job in jobs]


def test_a_sweep_is_fixed_or_with_a_horizon_streaming():
    assert windows() == [("0.6 to 0.8", "0.8 to 1")]
    assert windows("protocol.cut=0.8") == [("0.8 to 1",)]
    assert windows("protocol.horizon=1") == [("0.6 to 0.8",), ("0.8 to 1",)]
    assert windows(targets=["0.2 to 0.4", "0.8 to 1"]) == [("0.2 to 0.4", "0.8 to 1")]
    with pytest.raises(UsageError, match="both say what the future is"):
        windows("protocol.horizon=1", targets=["0.8 to 1"])


def test_streaming_end_to_end_averages_the_windows_over_time(tmp_path, monkeypatch, mlflow_store, capsys):
    def here(worker, jobs, *, on_start, on_done, initializer, **given):
        for job in jobs:
            on_start(job)
            yield (outcome := _answer(worker, job))
            on_done(job, outcome)

    def dgharness(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dgharness", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert not left.value.code, said.err
        return said.out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.setattr(sweeping, "run_jobs", here)
    sets = [word for text in (*SMALL, "protocol.cut=0.4", "protocol.horizon=2") for word in ("--set", text)]
    dgharness("sweep", "-a", "erm,vrex", "--trials", "1", *sets)
    runs = {}
    for path in (tmp_path / "runs").iterdir():
        if (path / "splits.json").exists():
            splits = json.loads((path / "splits.json").read_text())["splits"]
            *_, final = json.loads((path / "evaluations.json").read_text())
            tested = [final["metrics"][f"test/acc/{bucket}"] for bucket in splits["test"]]
            runs.setdefault(tuple(splits["test"]), []).append(
                (list(splits["train"]), sum(tested) / len(tested))
            )
    first, second = ("0.4 to 0.6", "0.6 to 0.8"), ("0.6 to 0.8", "0.8 to 1")
    assert set(runs) == {first, second}
    assert [trained for trained, _ in runs[first]] == 2 * [["0 to 0.2", "0.2 to 0.4"]]
    assert [trained for trained, _ in runs[second]] == 2 * [["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6"]]

    report = dgharness("report", "synthetic:drifting/temporal", "--rule", "last", "--format", "json")
    (table,) = json.loads(report)
    assert [column["name"] for column in table["columns"]][:3] == [
        "+".join(first),
        "+".join(second),
        "average",
    ]
    for number, window in enumerate((first, second)):
        means = [row["cells"][number]["mean"] for row in table["rows"]]
        assert sorted(means) == pytest.approx(sorted(accuracy for _, accuracy in runs[window]))
    for row in table["rows"]:
        one, other, average = (cell["mean"] for cell in row["cells"][:3])
        assert average == pytest.approx((one + other) / 2)
