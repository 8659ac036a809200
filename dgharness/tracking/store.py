"""The MLflow store: where it is, whether it can be used, and what its failures mean."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from dgharness.errors import UsageError, did_you_mean
from dgharness.names import slug

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a description, of a run or an experiment
ABOUT = """\
Runs of dgharness. A run trains one algorithm without the held-out domains: `algorithm/domains/hHtT` has the
hyperparameter draw H (0: the defaults) and the trial T. Its own page says what it was trained on and what
came out; the runs named *report …* compare them all, in the artifact `report.html`.

- `val/…` and `train/…` are curves of the training domains; `test/…` is the held-out domains, only at the
  checkpoints that a selection rule could choose.
- `chosen/RULE/…` is the test result at the checkpoint that RULE chose.
- To compare: search `tags.dg.kind = 'train'`, group by the parameter `algorithm`, look at the charts.
"""

PATIENCE = 20.0  # seconds to wait for another process to leave a sqlite store

# Set before MLflow is imported, unless the user has set them. Without the first it sends usage statistics;
# the others keep its messages off the terminal, and an absent server from holding a run up for minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

_FILE_STORE = (
    "is a file store, which MLflow no longer maintains; copy it into a database with `mlflow "
    "migrate-filestore --source {path} --target sqlite:///mlflow.db` and move the folder away, or set "
    "MLFLOW_TRACKING_URI to another store"
)
_REMEDIES = {  # what MLflow, SQLAlchemy or the network say -> what it means and what to do
    "out-of-date database schema|Can't locate revision": (
        "was written by another version of MLflow; make a copy of it, then run `mlflow db upgrade {uri}` "
        "(if a newer MLflow wrote it, upgrade MLflow instead)"
    ),
    "database is locked": "is locked by another process; wait for that process or end it",
    "is not a database": "is not a database; move that file away or set MLFLOW_TRACKING_URI",
    "readonly database|[Rr]ead-only|unable to open database|[Pp]ermission denied|Not a directory": (
        "cannot be written; mend its permissions, or set MLFLOW_TRACKING_URI to a place that can be"
    ),
    "database or disk is full|No space left": "has no room: its disk is full",
    "no such file": "is gone; put it back, or run `dgharness sync` to write it anew",
    "API request to .* failed with exception|Connection|timed out": (
        "cannot be reached; start that server, or set MLFLOW_TRACKING_URI to another store"
    ),
    "No module named": "needs a database driver that is not installed ({error})",
}


@dataclass(frozen=True)
class Store:
    """One experiment of a prepared store; plain data, to be handed to worker processes."""

    uri: str
    experiment: str
    experiment_id: str

    def __str__(self) -> str:
        return public(self.uri)


def tracking_uri(given: str | None = None) -> str:
    """The store: as given, else MLFLOW_TRACKING_URI, else mlflow.db here; sqlite paths made absolute."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if any(Path("mlruns").glob("[0-9]*/meta.yaml")):
            # MLflow's own tools, called in this directory, would open the folder in place of a database.
            raise UsageError(f"{(folder := Path('mlruns').absolute())} {_FILE_STORE.format(path=folder)}")
        uri = "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    return uri if path is None else uri.replace(f"sqlite:///{path}", f"sqlite:///{path.absolute()}", 1)


def prepare_store(uri: str, experiment: str) -> Store:
    """Create the database and the experiment where they do not exist; once, before any worker does.

    What cannot be used is a UsageError with the remedy. Processes that start alone on a fresh sqlite store
    wait for one another.
    """
    path = sqlite_path(uri)
    with explained(uri), _alone(path):
        opened = client(uri, may_create=True)
        found = opened.get_experiment_by_name(experiment) or _create(opened, experiment, path)
    if found.lifecycle_stage == "deleted":
        raise UsageError(
            f"the experiment {experiment!r} of {public(uri)} was deleted; choose another name, or run "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return Store(uri, experiment, found.experiment_id)


def open_store(uri: str, experiment: str) -> Store:
    """An experiment that exists, for reading; an unknown one is a UsageError that names the nearest."""
    with explained(uri):
        opened = client(uri)
        found = opened.get_experiment_by_name(experiment)
        known = [] if found else [each.name for each in opened.search_experiments()]
    if found is None:
        raise UsageError(f"{public(uri)} has no experiment {experiment!r}; {did_you_mean(experiment, known)}")
    return Store(uri, experiment, found.experiment_id)


def client(uri: str, may_create: bool = False) -> MlflowClient:
    """An MLflow client of a store that is there; a sqlite store that cannot be written fails at once."""
    _quieten()
    if urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks"):
        raise UsageError(f"{uri} {_FILE_STORE.format(path=uri.removeprefix('file:'))}")
    path = sqlite_path(uri)
    if path is not None:
        if may_create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.exists():  # MLflow would create and migrate it, in several processes at once
            raise FileNotFoundError(f"no such file: {path}")
        _probe(path)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def store_errors() -> tuple[type[Exception], ...]:
    """Whatever a store raises when it is away, locked or broken; requests' errors are OSErrors."""
    _quieten()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError, UsageError)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what the store raises into a UsageError with the remedy."""
    try:
        yield
    except UsageError:
        raise
    except store_errors() as error:
        raise UsageError(sentence(error, uri)) from error


def sentence(error: Exception, uri: str) -> str:
    """What a failure of the store means and what to do about it."""
    if isinstance(error, UsageError):
        return str(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0].replace(uri, public(uri))
    for pattern, meaning in _REMEDIES.items():
        if re.search(pattern, text):
            return f"the MLflow store {public(uri)} {meaning.format(uri=public(uri), error=text)}"
    return f"the MLflow store {public(uri)} failed: {text}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store.

    >>> sqlite_path("sqlite:////home/me/mlflow.db"), sqlite_path("http://localhost:5000")
    (PosixPath('/home/me/mlflow.db'), None)
    """
    scheme, _, rest = uri.partition(":///")
    name = rest.partition("?")[0]
    return Path(name) if scheme == "sqlite" and name and name != ":memory:" else None


def public(uri: str) -> str:
    """The address without its password.

    >>> public("postgresql://me:secret@db/mlflow")
    'postgresql://me@db/mlflow'
    """
    parts = urlsplit(uri)
    return (
        urlunsplit(parts._replace(netloc=re.sub(r":[^:@]*@", "@", parts.netloc))) if parts.password else uri
    )


@cache
def _quieten() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it announces every retry


def _create(opened: MlflowClient, experiment: str, path: Path | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    # MLflow itself would put the artifacts of a sqlite store where the process happens to run.
    location = None if path is None else str(path.parent.absolute() / "mlruns" / slug(experiment))
    try:
        # The second tag has MLflow's pages show runs and charts first, and not conversations with models.
        tags = {NOTE: ABOUT, "mlflow.experimentKind": "custom_model_development"}
        return opened.get_experiment(opened.create_experiment(experiment, location, tags))
    except MlflowException as error:
        found = opened.get_experiment_by_name(experiment)  # another process was first
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return found


def _alone(path: Path | None) -> AbstractContextManager[object]:
    from filelock import FileLock

    if path is None:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")


def _probe(path: Path) -> None:
    """Raise sqlite3.Error unless the file can be written; through MLflow the same answer takes 100 s."""
    with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version}")  # opens the journal beside the file
        connection.execute("ROLLBACK")
