"""A local pool of processes that runs any jobs, survives what they do, and stops when it is told.

The processes are spawned and live for many jobs, so imports are paid once. One that dies takes only its
own job with it and is replaced.

What a job has to know: SIGINT does not reach it, because a terminal sends it to every process at once and
stopping is the parent's decision. SIGTERM means *save and return*; it ends the process unless the job
installs a handler (which it may leave installed), and it may come twice.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, TypeVar

from dgharness.errors import Interrupted

J = TypeVar("J")
TICK = 0.1  # seconds between two looks at signals and ``stop``
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    ``ok`` with its value; ``error`` with what it raised; ``died`` with its process, by signal or exit;
    ``cancelled``: never started, or stopped before its end because it was told to stop.
    """

    status: Literal["ok", "error", "died", "cancelled"]
    value: Any = None
    error: str = ""  # the exception's type
    message: str = ""  # the exception's message, or why the process died or the job was cancelled
    traceback: str = ""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: int | None = None  # position of the job it has


# --- the parent ------------------------------------------------------------------------------------


def run_jobs(
    worker: Callable[[J], Any],
    jobs: Sequence[J],
    *,
    processes: int,
    threads_per_process: int,
    initializer: Callable[[int], None] | None = None,
    on_start: Callable[[J], None] = lambda job: None,
    on_done: Callable[[J, Outcome], None] = lambda job, outcome: None,
    stop: threading.Event | Callable[[], bool] = lambda: False,
    grace: float = 60.0,
) -> list[Outcome]:
    """Run ``worker(job)`` for every job in spawned processes; the outcomes come in the order of the jobs.

    Jobs start in their order. ``worker`` and ``initializer(threads_per_process)``, called once in each new
    process, are functions of a module. Every ``on_start`` is followed by one ``on_done``. After ``stop``,
    SIGINT or SIGTERM no job starts, and the running ones get SIGTERM and ``grace`` seconds to return (the
    same signal again, a second later, ends the patience). After a signal this raises ``Interrupted``.
    """
    stopped = stop.is_set if isinstance(stop, threading.Event) else stop
    outcomes = [Outcome("cancelled", message="not started") for _ in jobs]
    queue = deque(range(len(jobs)))
    workers: list[_Worker] = []
    deadline: float | None = None  # set once the pool is stopping
    with _signals() as caught:
        try:
            while (queue and deadline is None) or any(w.job is not None for w in workers):
                if deadline is None and (caught or stopped()):
                    deadline = time.monotonic() + grace
                    for busy in workers:
                        busy.process.terminate()
                if deadline is not None and (time.monotonic() > deadline or _impatient(caught)):
                    for busy in workers:
                        busy.process.kill()
                while queue and deadline is None:
                    free = next((w for w in workers if w.job is None), None)
                    if free is None and len(workers) < processes:
                        free = _spawn(worker, initializer, threads_per_process, grace)
                        workers.append(free)
                    if free is None:
                        break
                    free.job = queue.popleft()
                    on_start(jobs[free.job])
                    _send(free, jobs[free.job])
                wait([end for w in workers for end in (w.pipe, w.process.sentinel)], timeout=TICK)
                for busy in workers:
                    if busy.job is not None and (outcome := _outcome(busy, stopping=deadline is not None)):
                        number, busy.job = busy.job, None
                        outcomes[number] = outcome
                        on_done(jobs[number], outcome)
                workers = [w for w in workers if w.job is not None or w.process.exitcode is None]
        finally:
            _close(workers, grace)
    if caught:
        raise Interrupted(caught[0][0])
    return outcomes


def _spawn(
    worker: Callable[[Any], Any], initializer: Callable[[int], None] | None, threads: int, grace: float
) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, worker, initializer, threads, grace))
    resource_tracker.ensure_running()  # starting, it unblocks SIGINT: it has to be there before
    with _environment(dict.fromkeys(THREAD_COUNTS, str(threads))), _blocked(signal.SIGINT):
        process.start()
    theirs.close()  # or its end would not be noticed
    return _Worker(process, ours)


def _send(to: _Worker, job: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it is dead then; _outcome says of what
        to.pipe.send(job)


def _outcome(of: _Worker, stopping: bool) -> Outcome | None:
    """What became of the job, or None while it runs."""
    gone = of.process.exitcode is not None  # asked first: what it sent before its end is then in the pipe
    if of.pipe.poll():
        try:
            return of.pipe.recv()
        except (EOFError, ConnectionResetError):
            of.process.join(TICK)
            gone = of.process.exitcode is not None
        except Exception as error:
            return _error(error)
    if not gone:
        return None
    code = of.process.exitcode or 0
    reason = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
    return Outcome("cancelled" if stopping else "died", message=reason)


def _close(workers: Sequence[_Worker], grace: float) -> None:
    for worker in workers:
        worker.pipe.close()  # an idle process ends at that
        if worker.job is not None:
            worker.process.terminate()
    until = time.monotonic() + grace
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        worker.process.kill()
        worker.process.join()


@contextmanager
def _signals() -> Iterator[list[tuple[int, float]]]:
    """The SIGINT and SIGTERM that came, with their times, instead of what they did before."""
    caught: list[tuple[int, float]] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread can have handlers
        return

    def note(number: int, frame: Any) -> None:
        caught.append((number, time.monotonic()))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _impatient(caught: Sequence[tuple[int, float]]) -> bool:
    return len(caught) > 1 and caught[-1][1] - caught[0][1] > 1  # closer ones are one wish, sent twice


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """A signal waits meanwhile; a process started meanwhile does not get it until it says so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the spawned process ---------------------------------------------------------------------------


def _serve(
    pipe: Connection,
    worker: Callable[[Any], Any],
    initializer: Callable[[int], None] | None,
    threads: int,
    grace: float,
) -> None:
    """Answer jobs until the pipe ends."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, args=(grace,), daemon=True).start()
    failed = None
    try:
        if initializer:
            initializer(threads)
    except Exception as error:
        failed = _error(error)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        except Exception as error:
            answer = _error(error)
        else:
            answer = failed or _answer(worker, job)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a finished job is not lost on its way
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:
            pipe.send(_error(error))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _answer(worker: Callable[[Any], Any], job: Any) -> Outcome:
    try:
        return Outcome("ok", worker(job))
    except Interrupted as error:
        return Outcome("cancelled", message=str(error))
    except BaseException as error:
        return _error(error)


def _error(error: BaseException) -> Outcome:
    text = "".join(traceback.format_exception(error))
    return Outcome("error", error=type(error).__name__, message=str(error), traceback=text)


def _follow_parent(grace: float) -> None:
    """When the parent is gone, tell the job to stop, and stop for it when it does not."""
    parent, main = parent_process(), threading.main_thread().ident
    assert parent and main
    parent.join()
    signal.pthread_kill(main, signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)
