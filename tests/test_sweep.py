"""Sweeps: what is planned, what is skipped, continued or marked as failed. The pool is tested by itself."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from dgharness import rundir, tracking
from dgharness.errors import Interrupted, UsageError
from dgharness.sweep import run as sweeping
from dgharness.sweep.plan import expand, plan
from dgharness.sweep.pool import Outcome, _answer
from dgharness.training.learner import Learner
from dgharness.training.signals import StopFlag

FAST = ["train.steps=4", "train.eval_every=2", "model.width=8"]
THREE_ANGLES = {"name": "rotated-digits", "angles": [0, 30, 60]}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, mlflow_store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)


@pytest.fixture
def pool(monkeypatch):
    """Jobs in this process, one after the other; what the pool was asked for is kept."""
    asked: dict = {}

    def run_jobs(worker, jobs, *, on_start, on_done, initializer, **given):
        asked.update(given, jobs=list(jobs))
        outcomes = []
        for job in jobs:
            on_start(job)
            outcomes.append(asked.get("answer", _answer)(worker, job))
            on_done(job, outcomes[-1])
        return outcomes

    monkeypatch.setattr(sweeping, "run_jobs", run_jobs)
    return asked


@pytest.fixture
def updates(monkeypatch):
    """How many updates were made."""
    made = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, *a, **kw: made.append(self.t) or step(self, *a, **kw))
    return made


def planned(*algorithms: str, targets=("-90%",), trials: int = 1, hparams: int = 1, sets=(), **flags):
    return plan(
        algorithms,
        targets=targets,
        trials=trials,
        hparams_seeds=hparams,
        sets=[*FAST, *sets],
        flags=flags,
    )


def in_the_store(experiment: str = "colored-digits/leave-one-domain-out") -> list[dict]:
    return tracking.load_records(tracking.open_store(tracking.tracking_uri(), experiment))


# --- the plan --------------------------------------------------------------------------------------


def test_a_plan_is_algorithms_by_targets_by_draws_by_trials():
    jobs = planned("erm", "irm", targets=(), hparams=2, trials=2)
    assert len(jobs) == 2 * 3 * 2 * 2
    assert len({job.config_hash for job in jobs}) == len(jobs)
    assert {job.config.algorithm for job in jobs} == {"erm", "irmv1"}
    assert {job.config.protocol.targets for job in jobs} == {("+90%",), ("+80%",), ("-90%",)}


def test_names_patterns_and_all_are_taken_once_each():
    assert expand(["irm", "irmv1"]) == ["irmv1"]
    assert expand(["causirl-*", "causirl-mmd"]) == ["causirl-coral", "causirl-mmd"]
    assert {"erm", "drm", "vrex"} < set(expand(["all"]))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["vrx"], "there is no algorithm 'vrx'; did you mean 'vrex'?"),
        (["zz*"], "no algorithm matches 'zz*'; see dgharness algorithms"),
        ([], "no algorithm named; name some with -a, as in -a erm,irmv1, or all"),
    ],
)
def test_algorithms_that_are_not_there(names, said):
    with pytest.raises(UsageError) as caught:
        planned(*names)
    assert str(caught.value) == said


def test_a_target_named_twice_is_held_out_once():
    assert len(planned("erm", targets=("-90%", "-90%"))) == 1


def test_pairs_are_planned_once_each_and_only_for_a_rule_that_reads_them():
    cv = {"rules": ["leave-one-domain-out-cv"]}
    jobs = planned("erm", targets=(), data=THREE_ANGLES, selection=cv)
    held_out = [job.config.protocol.targets for job in jobs]
    assert held_out == [("0",), ("30",), ("60",), ("0", "30"), ("0", "60"), ("30", "60")]
    one = planned("erm", targets=("30",), data=THREE_ANGLES, selection=cv)
    assert [job.config.protocol.targets for job in one] == [("30",), ("0", "30"), ("30", "60")]
    assert len(planned("erm", targets=(), data=THREE_ANGLES)) == 3


def test_a_pair_that_leaves_too_few_domains_is_not_applicable_and_says_why():
    jobs = planned("erm", "vrex", targets=(), selection={"rules": ["leave-one-domain-out-cv"]})
    missing = [job for job in jobs if job.not_applicable]
    assert [job.config.algorithm for job in missing] == ["vrex"] * 3
    assert "needs at least 2 training domains, and this split leaves 1 (-90%)" in missing[0].not_applicable
    assert sum(not job.not_applicable for job in jobs) == 3 + 3 + 3
    text = sweeping.describe([*jobs, *jobs])
    assert text[0].startswith("18 runs of 72 steps")
    assert sum("n/a" in line for line in text) == 3  # not once per trial


def test_a_method_that_cannot_run_stops_no_other_but_a_sweep_of_nothing_is_a_mistake():
    two = {"name": "rotated-digits", "angles": [0, 30]}
    jobs = planned("erm", "vrex", targets=("30",), data=two)
    assert [bool(job.not_applicable) for job in jobs] == [False, True]
    with pytest.raises(UsageError, match="nothing of this sweep can run: vrex cannot run here"):
        planned("vrex", targets=("30",), data=two)


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("algorithm=vrex", "-a"),
        ("protocol.targets=-90%", "--target"),
        ("hparams_seed=2", "--hparams N"),
        ("trial_seed=2", "--trials N"),
    ],
)
def test_what_a_sweep_sets_itself_is_not_ignored_in_silence(setting, flag):
    key = setting.partition("=")[0]
    with pytest.raises(UsageError) as caught:
        planned("erm", "irm", sets=[setting])
    assert str(caught.value) == f"a sweep sets {key} itself; leave {key} out and use {flag}"


def test_a_setting_that_one_algorithm_lacks_names_that_algorithm():
    with pytest.raises(UsageError, match=r"^erm: hp.weight is not a setting here"):
        planned("irm", "erm", sets=["hp.weight=3"])


# --- running ---------------------------------------------------------------------------------------


def test_the_same_plan_again_runs_nothing(pool, updates, capsys):
    jobs = planned("erm", "vrex")
    first = sweeping.sweep(jobs)
    assert (first.finished, first.skipped, first.failed) == (2, 0, {})
    updates.clear()
    again = sweeping.sweep(planned("erm", "vrex", trials=2))
    assert (again.finished, again.skipped) == (2, 2)
    assert len(updates) == 2 * 4  # the further trial alone
    assert "2 of 4 runs are finished already" in capsys.readouterr().err


def test_finished_runs_are_known_by_the_store_when_their_directories_are_gone(pool, updates):
    jobs = planned("erm")
    sweeping.sweep(jobs)
    Path("runs").rename("moved-away")
    updates.clear()
    assert sweeping.sweep(jobs).skipped == 1 and not updates


def test_finished_runs_are_known_by_their_directories_when_the_store_is_new(
    pool, updates, monkeypatch, mlflow_store, _migrated_database, capsys
):
    jobs = planned("erm")
    sweeping.sweep(jobs)
    Path(mlflow_store.removeprefix("sqlite:///")).write_bytes(_migrated_database.read_bytes())
    updates.clear()
    outcome = sweeping.sweep(jobs)
    assert (outcome.skipped, outcome.undelivered) == (1, 0) and not updates
    store = tracking.open_store(mlflow_store, jobs[0].experiment)
    assert list(tracking.finished_hashes(store)) == [jobs[0].config_hash]


def test_finished_runs_join_another_experiment_without_being_trained_again(pool, updates):
    sweeping.sweep(planned("erm"))
    updates.clear()
    moved = planned("erm", sets=["execution.experiment=another"])
    assert sweeping.sweep(moved).skipped == 1 and not updates
    store = tracking.open_store(tracking.tracking_uri(), "another")
    assert list(tracking.finished_hashes(store)) == [moved[0].config_hash]


def test_a_sweep_for_pairs_alone_finishes(pool):
    jobs = planned("erm", targets=(), data=THREE_ANGLES, selection={"rules": ["leave-one-domain-out-cv"]})
    assert sweeping.sweep(jobs).finished == 6


def test_an_interrupted_run_is_continued_not_started_again(pool, updates, monkeypatch):
    jobs = planned("erm")
    uninterrupted = planned("erm", sets=["execution.output=elsewhere"])
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__enter__", lambda self: setattr(self, "signal", signal.SIGTERM) or self)
        outcome = sweeping.sweep(jobs)
    assert outcome.finished == 0 and len(updates) == 1
    (stopped,) = rundir.runs(Path("runs"))
    assert stopped.state.status == "KILLED"
    assert sweeping.sweep(jobs).finished == 1
    assert len(updates) == 4  # one before, three after
    (continued,) = rundir.runs(Path("runs"))
    assert continued.state.status == "FINISHED"
    (record,) = in_the_store()
    assert record["status"] == "FINISHED"
    sweeping.run_job({**pool["jobs"][0], "config": uninterrupted[0].config.model_dump(), "root": "elsewhere"})
    (whole,) = rundir.runs(Path("elsewhere"))
    assert whole.evaluations() == continued.evaluations()


@pytest.fixture
def plugin(tmp_path):
    """An algorithm that breaks in its first update."""
    file = tmp_path / "breaks.py"
    file.write_text(
        "from dgharness.plugin import objective\n\n"
        "@objective()\ndef breaks(step, hp):\n    raise ValueError('out of ideas')\n"
    )
    yield f"{file}:breaks"
    from dgharness import registry

    for key in [key for key in registry._added if key[1] == "breaks"]:
        module = registry._added.pop(key)[0].module
        sys.modules.pop(module, None)


def test_a_run_that_fails_is_named_and_stops_no_other(pool, plugin, capsys):
    outcome = sweeping.sweep(planned("breaks", "erm", plugins=[plugin]))
    assert outcome.finished == 1
    assert outcome.failed == {"breaks/-90%/h0t0": "ValueError: out of ideas"}
    shown = capsys.readouterr().err
    assert "FAILED    breaks/-90%/h0t0: ValueError: out of ideas" in shown
    assert "1 finished, 0 skipped, 1 failed" in shown
    states = {record["tags"]["dg.algorithm"]: record["status"] for record in in_the_store()}
    assert states == {"breaks": "FAILED", "erm": "FINISHED"}


def test_a_diverging_run_says_its_step_and_term(pool):
    outcome = sweeping.sweep(planned("irm", sets=["optimizer.lr=1e30", "train.log_every=1"]))
    (reason,) = outcome.failed.values()
    assert reason.startswith("training diverged: '") and "was not finite at step" in reason


def test_a_run_whose_process_died_is_failed_in_its_directory_and_in_the_store(pool, monkeypatch):
    def dies(worker, job):
        with monkeypatch.context() as patch:
            patch.setattr(tracking.Tracker, "finish", lambda *args, **kw: True)
            patch.setattr("dgharness.training.run.fit", lambda run: 1 / 0)
            _answer(worker, job)
        return Outcome("died", message="killed by signal 9")

    pool["answer"] = dies
    outcome = sweeping.sweep(planned("erm"))
    assert list(outcome.failed.values()) == ["its process ended early: killed by signal 9"]
    (dead,) = rundir.runs(Path("runs"))
    assert (dead.state.status, dead.state.stored_status) == ("FAILED", "FAILED")
    (record,) = in_the_store()
    assert record["status"] == "FAILED" and record["tags"]["dg.error"] == dead.state.error
    pool["answer"] = _answer
    assert sweeping.sweep(planned("erm")).finished == 1
    (record,) = in_the_store()
    assert record["status"] == "FINISHED"


def test_a_run_that_another_process_works_on_is_left_alone(pool):
    jobs = planned("erm")
    sweeping.sweep(jobs)
    (busy,) = rundir.runs(Path("runs"))
    busy.update(status="RUNNING")
    store = tracking.open_store(tracking.tracking_uri(), "colored-digits/leave-one-domain-out")
    payload = sweeping._payload(jobs[0], store, "", 1, Path("runs"), "sweep")
    with busy.lock():
        outcome = _answer(sweeping.run_job, payload)
        sweeping.bury(payload, "FAILED", "it seemed dead")
    assert outcome.error == "Busy"
    assert "is being worked on by another process" in sweeping.why(outcome)
    (still,) = rundir.runs(Path("runs"))
    assert still.state.status == "RUNNING"


def test_a_run_that_another_sweep_has_finished_meanwhile_is_not_repeated(pool, updates):
    jobs = planned("erm")
    sweeping.sweep(jobs)
    updates.clear()
    value = sweeping.run_job(pool["jobs"][0])
    assert value["val"] is None and not updates
    assert len(list(rundir.runs(Path("runs")))) == 1


def test_the_threads_are_divided_between_the_processes(pool, monkeypatch):
    monkeypatch.setattr(sweeping, "cores", lambda: 8)
    pool["answer"] = lambda worker, job: Outcome("error", error="UsageError", message="not run")
    sweeping.sweep(planned("erm", trials=4), workers=2)
    assert (pool["processes"], pool["threads_per_process"]) == (2, 4)
    assert pool["jobs"][0]["config"]["execution"]["threads"] == 4
    sweeping.sweep(planned("erm", trials=4, sets=["execution.threads=3"]), workers=2)
    assert pool["threads_per_process"] == 3
    sweeping.sweep(planned("erm", trials=1))
    assert (pool["processes"], pool["threads_per_process"]) == (1, 8)


def test_a_stopped_sweep_is_killed_and_one_that_breaks_is_failed(pool, monkeypatch):
    def group() -> str:
        from mlflow import MlflowClient

        store = tracking.open_store(tracking.tracking_uri(), "colored-digits/leave-one-domain-out")
        found = MlflowClient(store.uri).search_runs([store.experiment_id], "tags.dg.kind = 'sweep'")
        return found[0].info.status

    def raises(error):
        def answer(worker, job):
            raise error

        return answer

    for error, status in ((Interrupted(2), "KILLED"), (RuntimeError("a bug"), "FAILED")):
        pool["answer"] = raises(error)
        with pytest.raises(type(error)):
            sweeping.sweep(planned("erm"))
        assert group() == status
    pool["answer"] = _answer
    sweeping.sweep(planned("erm"))
    assert group() == "FINISHED"


def test_cross_validation_over_pairs_end_to_end(pool, capsys):
    from dgharness.commands.reporting import Asked, run_report

    cv = {"rules": ["last", "leave-one-domain-out-cv"]}
    jobs = planned("erm", targets=(), data=THREE_ANGLES, selection=cv)
    assert sweeping.sweep(jobs).finished == 6
    capsys.readouterr()
    run_report(
        Asked(["rotated-digits/leave-one-domain-out"], ["leave-one-domain-out-cv"], format_="json"),
    )
    (table,) = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in table["columns"]] == ["0", "30", "60", "average", "wga", "ece"]
    (row,) = table["rows"]
    assert all(0 < cell["mean"] < 1 for cell in row["cells"][:4])
