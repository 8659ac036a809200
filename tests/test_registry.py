"""The registry: names from installed packages and from --plugin, without importing what is not used."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgharness import registry
from dgharness.errors import UsageError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "plugin-package"

SPEC = '''
"""A toy method.

Paper: Nobody, Nothing, Nowhere 2020
Trust: core
"""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Spec:
    doc: str = __doc__
    api: int = 1
    version: int = 3
    group: ClassVar[str] = "algorithms"

class Other(Spec):
    group: ClassVar[str] = "datasets"

toy_method = Spec()
from_the_future = Spec(api=2)
toy_data = Other()
number = 7
'''


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Forget what was discovered and added, before and after."""
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith(("toy", "dgharness_plugin_")):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: install("toy-package", "1.0", {"algorithms": {name: value}})."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package, version, points, **modules):
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        sections = [
            f"[dgharness.{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
            for group, named in points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(sections))
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        registry._installed.cache_clear()

    return put


@pytest.fixture
def built_ins(tmp_path, monkeypatch):
    """Replace all that is installed by built-ins of one group with these module texts."""

    def put(group="algorithms", **texts):
        package = tmp_path / "toyhome"
        package.mkdir()
        (package / "__init__.py").write_text("")
        for name, text in texts.items():
            (package / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        points = [Point(name, f"toyhome.{name}:{name}", f"dgharness.{group}") for name in texts]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda: Points(points))
        registry._installed.cache_clear()

    return put


class Dgharness:
    name, version = "dgharness", "0.1.0"


@dataclass
class Point:
    name: str
    value: str
    group: str
    dist: type[Dgharness] = Dgharness


class Points(list[Point]):
    def select(self, group):
        return [point for point in self if point.group == group]


# --- built-ins ---


def test_the_listing_reads_docstrings_of_built_ins_and_imports_nothing(built_ins):
    built_ins(loud='"""Loud.\n\nEquation: a\n  + b\nTrust: verified\n"""\nraise RuntimeError("imported")')
    found = registry.entry("algorithms", "loud")
    assert (found.summary, found.equation, found.trust) == ("Loud.", "a + b", "verified")
    assert (found.source, found.status) == ("built-in", "ok")


def test_the_listing_costs_no_heavy_import():
    code = (
        "import sys; from dgharness import registry; registry.entries('algorithms', pattern='erm');"
        "print({'torch', 'mlflow', 'numpy', 'pandas', 'pydantic'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "set()"


def test_unverified_methods_are_listed_only_on_request(built_ins):
    built_ins(silent="", stated='"""S.\n\nTrust: core"""', odd='"""O.\n\nTrust: surely"""')
    assert [e.name for e in registry.entries("algorithms")] == ["stated"]
    everything = registry.entries("algorithms", include_unverified=True)
    assert [(e.name, e.trust) for e in everything] == [
        ("odd", "unverified"),
        ("silent", "unverified"),
        ("stated", "core"),
    ]


def test_what_is_no_method_needs_no_trust_tier(built_ins):
    built_ins(group="models", some='"""Some model."""')
    assert registry.entry("models", "some").trust == ""


def test_a_broken_built_in_is_listed_with_its_reason(built_ins):
    built_ins(halved="def (")
    assert registry.entry("algorithms", "halved").status.startswith(
        "broken: importing toyhome.halved failed: SyntaxError"
    )


def test_names_come_in_natural_order(built_ins):
    built_ins(group="models", resnet101="", resnet18="", mlp="")
    assert [e.name for e in registry.entries("models")] == ["mlp", "resnet18", "resnet101"]


def test_patterns_choose_names():
    listed = registry.entries("algorithms", pattern="*coral*", include_unverified=True)
    assert {"coral", "causirl-coral"} <= {e.name for e in listed} and all("coral" in e.name for e in listed)


def test_every_name_in_pyproject_is_discovered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group, named in project["entry-points"].items():
        group = group.removeprefix("dgharness.")
        listed = registry.entries(group, include_unverified=True)
        assert set(named) <= {e.name for e in listed if e.source == "built-in"}


def test_the_api_version_is_that_of_the_contract():
    from dgharness.plugin import API_VERSION

    assert registry.API_VERSION == API_VERSION


# --- names ---


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UsageError, match=re.escape("there is no algorithm 'vrx'; did you mean 'vrex'?")):
        registry.load("algorithms", "vrx")


def test_an_alias_leads_to_its_name():
    assert registry.canonical("algorithms", "irm") == "irmv1"
    assert registry.entry("algorithms", "irm") == registry.entry("algorithms", "irmv1")
    assert registry.entry("algorithms", "irm").aliases == ("irm",)
    assert "irmv1" in [e.name for e in registry.entries("algorithms", pattern="irm", include_unverified=True)]


# --- installed packages ---


def test_an_installed_package_is_discovered(install):
    install("toy-package", "1.0", {"algorithms": {"toy": "toymod:toy_method"}}, toymod=SPEC)
    assert registry.load("algorithms", "toy").version == 3
    found = registry.entry("algorithms", "toy")
    assert (found.source, found.status) == ("plugin toy-package 1.0", "ok")
    assert (found.summary, found.paper) == ("A toy method.", "Nobody, Nothing, Nowhere 2020")
    assert found.trust == "plugin", "a package cannot award itself a tier"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("toymissing:x", "importing toymissing failed: ModuleNotFoundError: No module named 'toymissing'"),
        ("toymod:toy_metod", "toymod has no 'toy_metod'; did you mean 'toy_method'?"),
        ("toymod:number", "it has type int; a decorator of"),
        ("toymod:Spec", "it has type type; a decorator of"),
        ("toymod:from_the_future", "it is written for plugin API 2, and dgharness 0.1.0 has API 1"),
        ("toymod:toy_data", "toymod:toy_data is a spec for dgharness.datasets but is registered under"),
        ("toyexit:x", "importing toyexit failed: SystemExit: 3"),
        ("what is this", "importing what is this failed"),
    ],
)
def test_a_broken_plugin_is_named_with_its_reason_and_breaks_nothing_else(install, value, reason):
    install(
        "toy-package",
        "1.0",
        {"algorithms": {"bad": value, "good": "toymod:toy_method"}},
        toymod=SPEC,
        toyexit="raise SystemExit(3)",
    )
    assert registry.entry("algorithms", "bad").status.startswith(f"broken: {reason}")
    assert registry.entry("algorithms", "good").status == "ok"
    with pytest.raises(
        UsageError, match=re.escape(f"'bad' (plugin toy-package 1.0) cannot be used: {reason}")
    ):
        registry.load("algorithms", "bad")


def test_a_name_given_twice_is_refused_only_where_it_is_used(install):
    twice = {"algorithms": {"toy": "toymod:toy_method", "mine": "toymod:toy_method"}}
    install("first-package", "1.0", twice, toymod=SPEC)
    install("second-package", "2.0", {"algorithms": {"toy": "toymod:toy_method"}})
    both = r"first-package 1\.0.*second-package 2\.0|second-package 2\.0.*first-package 1\.0"
    with pytest.raises(UsageError, match=both):
        registry.load("algorithms", "toy")
    with pytest.raises(UsageError, match=both):
        registry.entry("algorithms", "toy")
    listed = {e.name: e.status for e in registry.entries("algorithms")}
    assert re.search(both, listed["toy"]) and listed["toy"].startswith("broken: ")
    assert registry.load("algorithms", "mine") and listed["mine"] == "ok"


@pytest.mark.parametrize("name", ["erm", "irm"])
def test_a_package_cannot_take_the_name_or_alias_of_a_built_in(install, name):
    install("toy-package", "1.0", {"algorithms": {name: "toymod:toy_method"}}, toymod=SPEC)
    with pytest.raises(UsageError, match=r"toy-package 1\.0") as caught:
        registry.load("algorithms", name)
    assert "dgharness 0.1.0" in str(caught.value)


# --- code that is not installed ---


def test_a_plugin_module_of_the_current_directory_is_added(tmp_path, monkeypatch):
    (tmp_path / "toyhere.py").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    added = registry.add_plugin("toyhere:toy_method")
    sha = hashlib.sha256((tmp_path / "toyhere.py").read_bytes()).hexdigest()[:16]
    assert (added.group, added.name) == ("algorithms", "toy-method")
    assert added.source == f"--plugin {tmp_path / 'toyhere.py'} (sha256 {sha})"
    assert registry.load("algorithms", "toy-method").version == 3
    assert registry.entry("algorithms", "toy-method") == added
    assert registry.add_plugin("toyhere:toy_method") == added, "the same plugin may be named again"


def test_a_plugin_file_takes_the_group_of_its_spec_and_may_import_its_neighbours(tmp_path, monkeypatch):
    (tmp_path / "toyneighbour.py").write_text(SPEC)
    (tmp_path / "toyfile.py").write_text("from toyneighbour import toy_data")
    added = registry.add_plugin(f"{tmp_path}/toyfile.py:toy_data")
    assert (added.group, added.name) == ("datasets", "toy-data")
    assert registry.load("datasets", "toy-data").group == "datasets"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("toyhere", "must be MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE"),
        ("toyhere:", "must be MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE"),
        ("toynowhere:toy", "importing toynowhere failed: ModuleNotFoundError"),
        ("toynowhere.py:toy", "there is no file"),
        ("toyhere:toy_metod", "did you mean 'toy_method'?"),
        ("toybad.py:toy", "importing toybad.py failed: ZeroDivisionError: division by zero"),
        ("toyhere:erm", "cannot replace algorithm 'erm' of dgharness 0.1.0; rename it"),
        ("toyhere:irm", "cannot replace algorithm 'irm' of dgharness 0.1.0; rename it"),
    ],
)
def test_a_wrong_plugin_argument_is_one_sentence(tmp_path, monkeypatch, text, reason):
    (tmp_path / "toyhere.py").write_text(SPEC + "erm = irm = toy_method\n")
    (tmp_path / "toybad.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        registry.add_plugin(text)
    assert str(caught.value).startswith(f"--plugin {text} ") and "\n" not in str(caught.value)


def test_two_plugins_of_one_name_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "toysame.py").write_text(SPEC)
    registry.add_plugin(f"{tmp_path}/one/toysame.py:toy_method")
    with pytest.raises(UsageError, match="gives algorithm 'toy-method' twice"):
        registry.add_plugin(f"{tmp_path}/two/toysame.py:toy_method")


# --- the example package ---


def test_the_example_package_works_installed(install, monkeypatch):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = {group.removeprefix("dgharness."): p for group, p in project["entry-points"].items()}
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    install(project["name"], project["version"], points)
    shown = registry.show("algorithms", "logit-decay")
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["status"], shown["rung"], shown["spec_version"]) == ("ok", 1, 1)
    assert shown["source"] == "plugin dgharness-example 0.1.0"
    assert "Pezeshki" in shown["paper"] and "logits" in shown["docs"]
    weight = next(field for field in shown["hyperparameters"] if field["name"] == "weight")
    assert weight["space"].startswith("log-uniform") and weight["help"]


def test_the_example_penalty_is_half_the_mean_squared_logit():
    import torch

    from dgharness.step import Dims

    registry.add_plugin(f"{EXAMPLE}/src/dgharness_example/logit_decay.py:logit_decay")
    spec = registry.load("algorithms", "logit-decay")
    hp = spec.hparams(weight=0.5)

    class Step:
        t, logits_EBC, risks_E = 0, torch.tensor([[[1.0, -1.0], [2.0, 0.0]]]), torch.tensor([3.0])

    loss, metrics = spec.objective(Dims(outputs=2, features=2, domains=1, groups=2), hp)(Step(), hp)
    assert metrics["penalty"].item() == pytest.approx((1 + 1 + 4 + 0) / 4 / 2)
    assert loss.item() == pytest.approx(3 + 0.5 * 0.75)
