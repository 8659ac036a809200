"""What many tests share: a tracking store that is ready at once, and no store of the person's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

collect_ignore_glob = ["**/conftest.py", "conftest.py"]  # as modules with doctests their names collide


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DGHARNESS_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))


@pytest.fixture(scope="session")
def _migrated_database(tmp_path_factory) -> Path:
    """Migrating a fresh database takes seconds: once for all tests."""
    from dgharness.tracking.store import client

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client(f"sqlite:///{path}", may_create=True)
    return path


@pytest.fixture
def mlflow_store(tmp_path, _migrated_database) -> str:
    """The URI of an empty sqlite store of this test's own."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(_migrated_database, path)
    return f"sqlite:///{path}"
