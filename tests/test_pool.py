"""The process pool: what jobs return, raise or die of, and how it all stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dgharness.errors import Interrupted
from dgharness.sweep.pool import run_jobs


def pool(worker, jobs, processes=2, threads=1, **more):
    return run_jobs(worker, jobs, processes=processes, threads_per_process=threads, **more)


# --- jobs ---


def square(x):
    return x * x


def fail_on_two(x):
    if x == 2:
        raise ValueError("two is not allowed")
    return os.getpid()


def die_on_two(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def leave(status):
    os._exit(status)


def bad_answer(x):
    return lambda: x


def identity(x):
    return x


class Unreadable:
    def __reduce__(self):
        return int, ("not a number",)


def whose(x):
    return os.getpid()


def threads_seen(x):
    return os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]


def torch_threads_seen(x):
    import torch

    return torch.get_num_threads()


def use_torch(threads):
    import torch

    torch.set_num_threads(threads)


def broken_start(threads):
    raise RuntimeError(f"no start with {threads}")


def patient(x):
    """Ends at SIGTERM, or after a long time."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    Path(x, f"started-{os.getpid()}").touch()
    if told.wait(30):
        Path(x, f"saved-{os.getpid()}").touch()
        raise Interrupted(signal.SIGTERM)


def deaf(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(x, f"started-{os.getpid()}").touch()
    time.sleep(30)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


# --- results ---


def test_outcomes_come_in_the_order_of_the_jobs_and_each_start_has_its_end():
    events: list[tuple] = []
    outcomes = pool(
        square,
        range(5),
        on_start=lambda job: events.append(("start", job)),
        on_done=lambda job, outcome: events.append(("done", job, outcome.value)),
    )
    assert [(o.status, o.value) for o in outcomes] == [("ok", x * x) for x in range(5)]
    assert [e[1] for e in events if e[0] == "start"] == list(range(5))
    assert sorted(e[1:] for e in events if e[0] == "done") == [(x, x * x) for x in range(5)]


def test_one_process_serves_many_jobs_and_is_not_the_parent():
    pids = {o.value for o in pool(whose, range(4), processes=1)}
    assert len(pids) == 1 and os.getpid() not in pids


def test_no_jobs_need_no_process():
    assert pool(whose, []) == []


def test_an_exception_is_an_outcome_and_the_process_lives_on():
    first, second, third = pool(fail_on_two, [1, 2, 3], processes=1)
    assert (second.status, second.error, second.message) == ("error", "ValueError", "two is not allowed")
    assert "fail_on_two" in second.traceback
    assert first.value == third.value


@pytest.mark.parametrize(("worker", "job"), [(bad_answer, 1), (identity, Unreadable()), (square, None)])
def test_what_cannot_be_handed_over_is_an_error_of_its_job(worker, job):
    outcomes = pool(worker, [job, job], processes=1)
    assert [o.status for o in outcomes] == ["error", "error"] and outcomes[0].message


def test_a_killed_process_takes_only_its_job_and_is_replaced():
    first, second, third = pool(die_on_two, [1, 2, 3], processes=1)
    assert (second.status, second.message) == ("died", "killed by signal 9")
    assert first.status == third.status == "ok" and first.value != third.value


def test_a_process_that_leaves_says_its_status():
    (outcome,) = pool(leave, [7])
    assert (outcome.status, outcome.message) == ("died", "exited with status 7")


def test_a_large_job_and_answer_pass():
    data = bytes(3_000_000)
    assert [o.value == data for o in pool(identity, [data] * 3)] == [True] * 3


# --- threads ---


def test_threads_are_set_before_the_process_starts_and_the_parent_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (outcome,) = pool(threads_seen, [0], threads=3)
    assert outcome.value == ("3", "3")
    assert os.environ["OMP_NUM_THREADS"] == "5" and "MKL_NUM_THREADS" not in os.environ


def test_the_initializer_gets_the_thread_count():
    (outcome,) = pool(torch_threads_seen, [0], threads=2, initializer=use_torch)
    assert outcome.value == 2


def test_a_failing_initializer_is_the_error_of_every_job():
    outcomes = pool(square, [1, 2, 3], processes=1, threads=4, initializer=broken_start)
    assert [(o.status, o.message) for o in outcomes] == [("error", "no start with 4")] * 3


# --- stopping ---


def test_stop_lets_running_jobs_save_and_starts_no_more(tmp_path):
    stop = threading.Event()
    done = []

    def stop_when_started():
        until(lambda: list(tmp_path.glob("started-*")))
        stop.set()

    threading.Thread(target=stop_when_started, daemon=True).start()
    outcomes = pool(
        patient, [tmp_path] * 3, processes=1, stop=stop, on_done=lambda job, outcome: done.append(outcome)
    )
    assert [o.status for o in outcomes] == ["cancelled"] * 3
    assert outcomes[1].message == "not started" and done == outcomes[:1]
    assert len(list(tmp_path.glob("saved-*"))) == 1


def test_a_job_that_does_not_stop_is_killed_after_the_grace(tmp_path):
    begun = time.monotonic()
    (outcome,) = pool(deaf, [tmp_path], stop=lambda: bool(list(tmp_path.glob("started-*"))), grace=0.3)
    assert (outcome.status, outcome.message) == ("cancelled", "killed by signal 9")
    assert time.monotonic() - begun < 10


def test_an_error_in_a_callback_leaves_no_process_behind(tmp_path):
    def broken(job, outcome):
        raise RuntimeError("callback")

    with pytest.raises(RuntimeError, match="callback"):
        run_jobs(die_or_wait, [tmp_path, None], processes=2, threads_per_process=1, on_done=broken, grace=10)
    (pid,) = started(tmp_path)
    assert not alive(pid) and len(list(tmp_path.glob("saved-*"))) == 1


def die_or_wait(x):
    if x is not None:
        return patient(x)
    time.sleep(0.5)


def started(folder):
    return [int(path.name.split("-")[1]) for path in folder.glob("started-*")]


SCRIPT = """
import signal, sys
from dgharness.errors import Interrupted
from dgharness.sweep.pool import run_jobs
from test_pool import deaf, patient

def handler(*_): pass

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, handler)
    job = {"patient": patient, "deaf": deaf}[sys.argv[1]]
    try:
        run_jobs(job, [sys.argv[2]] * 4, processes=2, threads_per_process=1, grace=float(sys.argv[3]))
    except Interrupted as interrupted:
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        sys.exit(128 + interrupted.signal)
"""


@pytest.fixture
def parent(tmp_path):
    """A process of its own, in a group of its own, that runs four jobs on two processes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    running = []

    def start(job, grace=20.0):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), job, str(tmp_path), str(grace)],
            env=environment,
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        until(lambda: len(started(tmp_path)) == 2)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_group", [False, True], ids=["parent", "group"])
def test_a_signal_lets_running_jobs_save_and_ends_the_pool(parent, tmp_path, number, to_group):
    process = parent("patient")
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, messages = process.communicate(timeout=15)
    assert process.returncode == 128 + number and messages == ""
    assert len(list(tmp_path.glob("saved-*"))) == 2, "both running jobs saved"
    assert len(started(tmp_path)) == 2, "no job was started afterwards"
    assert not any(alive(pid) for pid in started(tmp_path))


def test_the_same_signal_again_ends_the_patience(parent, tmp_path):
    process = parent("deaf", grace=25)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert not any(alive(pid) for pid in started(tmp_path))


def test_jobs_save_and_end_when_the_parent_is_killed(parent, tmp_path):
    process = parent("patient")
    process.kill()
    until(lambda: len(list(tmp_path.glob("saved-*"))) == 2)
    until(lambda: not any(alive(pid) for pid in started(tmp_path)))


def test_jobs_that_do_not_listen_end_after_the_grace_when_the_parent_is_killed(parent, tmp_path):
    process = parent("deaf", grace=0.3)
    process.kill()
    until(lambda: not any(alive(pid) for pid in started(tmp_path)))
