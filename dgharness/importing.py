"""Code that a user names: a module, or a file. Whatever goes wrong in it becomes one sentence."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class Broken(Exception):
    """Why a part cannot be used."""


def import_named(where: str) -> ModuleType:
    """A FILE.py, or a module, which is looked for in the current directory first."""
    return import_file(Path(where)) if where.endswith(".py") else import_module(where, Path.cwd())


def import_module(name: str, folder: Path | None = None) -> ModuleType:
    """A module by name, looked for in ``folder`` first."""
    if folder:
        _put_on_path(folder)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a plugin does, the harness goes on without it
        raise failed(name, error, folder) from error


def import_file(file: Path) -> ModuleType:
    """Run a file as a module whose name depends on its place, so that no other module is in its way."""
    path = file.expanduser().resolve()
    if not path.is_file():
        raise Broken(
            f"there is no file {path}{_nearest(path.name, (f.name for f in path.parent.glob('*.py')))}"
        )
    name = f"dgharness_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _put_on_path(path.parent)
    found = importlib.util.spec_from_file_location(name, path)
    assert found and found.loader, f"no loader for {path}"
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise failed(str(file), error) from error
    return module


def failed(what: str, error: BaseException, folder: Path | None = None) -> Broken:
    """An import that failed, with the nearest module of the folder if there is none of that name."""
    hint = ""
    if folder and isinstance(error, ModuleNotFoundError) and error.name == what:
        hint = _nearest(what, (file.stem for file in folder.glob("*.py")))
    return Broken(" ".join(f"importing {what} failed: {type(error).__name__}: {error}{hint}".split()))


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
