"""The rooms of the package: who may import whom, what each file is called, and how long it may get."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dgharness

PACKAGE = Path(dgharness.__path__[0])
PROJECT = PACKAGE.parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LONGEST = 350  # lines
MEETS_TRACKED_RUNS = "report/load.py"  # the one place where reports read the store
CONTRACTS = {"selection/rule.py"}  # what the room's entries are made of, not an entry

# A part never imports what runs it, whether at the top of the file or inside a function.
FORBIDDEN = {
    "algorithms": {"training", "tracking", "sweep", "report", "data", "models", "tta", "selection"},
    "tta": {"training", "tracking", "sweep", "report", "data", "models", "algorithms", "selection"},
    "annotators": {"training", "tracking", "sweep", "report", "models", "algorithms", "tta", "selection"},
    "compat": {"training", "tracking", "sweep", "report", "data", "algorithms", "tta", "selection"},
    "adversaries.py": {"training", "tracking", "data", "models", "algorithms", "tta", "registry", "plugin"},
    "distances.py": {"training", "tracking", "data", "models", "algorithms", "tta", "registry", "plugin"},
    "layers.py": {"training", "tracking", "data", "models", "algorithms", "tta", "registry", "plugin"},
    "models": {"training", "tracking", "sweep", "report", "data", "algorithms", "tta", "selection"},
    "data": {"training", "tracking", "sweep", "report", "models", "algorithms", "tta", "selection"},
    "metrics": {"training", "tracking", "sweep", "report", "data", "models", "algorithms", "tta"},
    "selection": {"training", "tracking", "sweep", "report", "data", "models", "algorithms", "tta"},
    "report": {"training", "tracking", "sweep", "data", "models", "algorithms", "tta"},
    "diagnostics": {"training", "tracking", "sweep", "report", "models", "algorithms", "tta"},
    "predictions.py": {"training", "tracking", "sweep", "report", "data", "models", "metrics", "registry"},
    "figures.py": {"training", "tracking", "sweep", "report", "data", "models", "metrics", "registry"},
    "printing.py": {"training", "tracking", "sweep", "report", "data", "models", "metrics", "registry"},
    "tracking": {"training", "sweep", "report", "data", "models", "algorithms", "tta", "selection"},
    "training": {"sweep", "report", "algorithms", "tta"},
    "plugin.py": {"training", "tracking", "sweep", "report", "data", "models", "algorithms", "registry"},
    "step.py": {"training", "tracking", "sweep", "report", "data", "models", "plugin", "hparams", "registry"},
    "hparams.py": {"training", "tracking", "sweep", "report", "data", "models", "plugin", "registry"},
    "files.py": {"training", "tracking", "sweep", "report", "data", "models", "plugin", "registry", "rundir"},
    "rundir.py": {"training", "tracking", "sweep", "report", "data", "models", "plugin", "registry"},
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file that is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the package's name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """The rooms of dgharness that a file imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("dgharness.")}


def test_the_walls_stand_where_there_are_rooms():
    known = {file.split("/")[0].removesuffix(".py") for file in FILES}
    assert {room.removesuffix(".py") for room in FORBIDDEN} <= known
    assert set.union(*FORBIDDEN.values()) <= known


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_nothing_that_runs_it(room):
    for file, path in FILES.items():
        if file.split("/")[0] == room:
            allowed = {"tracking"} if file == MEETS_TRACKED_RUNS else set()
            wrong = rooms(path) & FORBIDDEN[room] - allowed
            assert not wrong, f"{file} imports dgharness.{', dgharness.'.join(sorted(wrong))}"


@pytest.mark.parametrize("room", ["algorithms", "tta", "annotators"])
def test_methods_are_found_by_name_alone(room):
    users = {file.split("/")[0] for file, path in FILES.items() if room in rooms(path)}
    assert users <= {room}


@pytest.mark.parametrize(
    ("room", "users"),
    [
        ("commands", {"cli.py", "cli_results.py"}),
        ("report", {"commands"}),
        ("diagnostics", {"commands", "training"}),
    ],
)
def test_what_answers_a_command_is_used_by_what_asks_alone(room, users):
    found = {file.split("/")[0] for file, path in FILES.items() if room in rooms(path)}
    assert found - {room} == users


@pytest.mark.parametrize("file", ["training/optimizers.py", "training/averaging.py"])
def test_settings_that_the_configuration_holds_stand_on_their_own(file):
    assert rooms(FILES[file]) <= {"hparams", "errors"}


def test_no_module_needs_itself_to_be_imported():
    modules = {"dgharness." + file.removesuffix(".py").replace("/", "."): file for file in FILES}
    graph = {
        module: {name for name in _at_import(FILES[file]) if name in modules}
        for module, file in modules.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)  # a CycleError names the cycle


def _at_import(path: Path) -> Iterator[str]:
    """What a file imports when it is imported itself: not inside functions, not for type checkers alone."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("mlflow", {"tracking"}),
        ("typer", {"cli.py", "cli_results.py", "flags.py"}),
        ("matplotlib", {"figures.py"}),
    ],
)
def test_a_library_that_has_a_room_is_imported_there_alone(library, home):
    users = {file.split("/")[0] for file, path in FILES.items() if _uses(path, library)}
    assert users == home


def test_the_package_wilds_is_imported_beside_its_cures_alone():
    users = {file for file, path in FILES.items() if _uses(path, "wilds")}
    assert all(file.startswith("data/wilds/") for file in users)


def _uses(path: Path, library: str) -> bool:
    return any(name.split(".")[0] == library for name in imported(path))


@pytest.mark.parametrize("module", ["dgharness", "dgharness.cli", "dgharness.registry"])
def test_help_and_listings_do_not_wait_for_heavy_imports(module):
    heavy = {"torch", "mlflow", "pandas", "numpy", "sklearn", "pydantic"}
    asked = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


@pytest.mark.parametrize("group", ["algorithms", "tta", "selection"])
def test_every_file_of_one_entry_is_registered_under_its_own_name(group):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    stems = {
        path.stem
        for file, path in FILES.items()
        if file.split("/")[0] == group and path.stem != "__init__" and file not in CONTRACTS
    }
    expected = {stem.replace("_", "-"): f"dgharness.{group}.{stem}:{stem}" for stem in stems}
    assert project["entry-points"][f"dgharness.{group}"] == expected


@pytest.mark.parametrize("file", FILES)
def test_a_file_can_be_read_in_one_sitting(file):
    lines = len(FILES[file].read_text().splitlines())
    assert lines <= LONGEST, f"{file} has {lines} lines; find the second thing that it does and move it out"


@pytest.mark.parametrize("file", FILES)
def test_every_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(FILES[file].read_text()))
