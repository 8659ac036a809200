"""What can be named on the command line: algorithms, datasets, models and the other open parts.

Every part comes from an entry point of the group ``dgharness.<group>``, the built-in ones like those of
other packages, or from ``add_plugin`` for code that is not installed; an algorithm may also be an unmodified
class of DomainBed, ``domainbed:MODULE:CLASS``. Nothing is imported before it is used: the listing reads the
docstrings of built-in modules from their files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from dgharness.docstrings import module_doc, parse_doc
from dgharness.errors import UsageError, did_you_mean
from dgharness.importing import Broken, failed, import_module, import_named

API_VERSION = 1  # of the plugin contract; repeated here because dgharness.plugin imports torch
NOUNS = {
    "algorithms": "algorithm",
    "tta": "TTA method",
    "datasets": "dataset",
    "models": "model",
    "selection": "selection rule",
    "annotators": "annotator",
}
GROUPS = tuple(NOUNS)
METHODS = ("algorithms", "tta", "annotators")  # named after papers: trust is stated, or missing
ALIASES = {
    "algorithms": {"irm": "irmv1"},
    "selection": {  # what DomainBed and SubpopBench call them
        "IIDAccuracySelectionMethod": "training-domain-validation",
        "LeaveOneOutSelectionMethod": "leave-one-domain-out-cv",
        "OracleSelectionMethod": "test-domain-validation",
        "ValMeanAcc": "mean-accuracy",
        "ValWorstAccAttributeYes": "worst-group",
        "ValWorstAccAttributeNo": "worst-class",
        "ValBalancedAcc": "balanced-accuracy",
        "ValAUROC": "auroc",
        "ValClassDiff": "class-difference",
        "OracleMeanAcc": "test-mean-accuracy",
        "OracleWorstAcc": "test-worst-group",
    },
}


@dataclass(frozen=True)
class Entry:
    """One name of a group: where it comes from, and what its docstring says."""

    name: str
    group: str
    module: str
    attr: str
    distribution: str  # empty for --plugin
    version: str  # of the distribution
    # "built-in", "plugin PACKAGE VERSION", "--plugin FILE (sha256 DIGITS)" or "domainbed FILE (...)"
    source: str
    aliases: tuple[str, ...] = ()
    status: str = "ok"  # or "broken: reason"
    summary: str = ""
    paper: str = ""
    equation: str = ""
    trust: str = ""  # core, verified, unverified, or plugin; empty where tiers do not apply
    sha256: str = ""  # of the file that --plugin or domainbed: gave; installed code has a version


_added: dict[tuple[str, str], tuple[Entry, Any]] = {}  # (group, name) -> what add_plugin was given


# --- the questions ---------------------------------------------------------------------------------


def canonical(group: str, name: str) -> str:
    """The name behind an alias; every other name as it is.

    >>> canonical("algorithms", "irm"), canonical("algorithms", "vrex")
    ('irmv1', 'vrex')
    """
    return ALIASES.get(group, {}).get(name, name)


def split_argument(group: str, name: str) -> tuple[str, str]:
    """A registered name and what stands after its colon; a name may hold a colon of its own.

    >>> split_argument("datasets", "folder:/data/PACS"), split_argument("datasets", "synthetic:slabs")
    (('folder', '/data/PACS'), ('synthetic:slabs', ''))
    """
    if ":" not in name or _given(group, name):
        return name, ""
    family, _, argument = name.partition(":")
    if not _given(group, family) and any(known.startswith(f"{family}:") for known in _names(group)):
        return name, ""  # a member of a family that does not exist; the lookup says what does
    return family, argument


def load(group: str, name: str) -> Any:
    """The spec of a name or alias. A UsageError says why there is none, or why it cannot be used."""
    entry = _find(group, name)
    try:
        return _spec(entry)
    except Broken as broken:
        noun = NOUNS[group]
        raise UsageError(f"{noun} {name!r} ({entry.source}) cannot be used: {broken}") from broken.__cause__


def entries(group: str, *, pattern: str = "*", include_unverified: bool = False) -> list[Entry]:
    """The names of a group in natural order (resnet18 before resnet101), broken ones with the reason.

    ``pattern`` is a glob over names and aliases. Unverified built-ins are left out unless asked for.
    """
    chosen = [
        name for name in _names(group) if any(fnmatchcase(n, pattern) for n in (name, *_aliases(group, name)))
    ]
    listed = [_listed(group, name) for name in sorted(chosen, key=_natural)]
    return [e for e in listed if include_unverified or e.trust != "unverified" or e.status != "ok"]


def entry(group: str, name: str) -> Entry:
    """What the listing says of one name or alias; a built-in is not imported for it."""
    _find(group, name)
    return _listed(group, name)


def show(group: str, name: str) -> dict[str, Any]:
    """Everything about one name, ready for JSON; ``version`` is the package's, ``spec_version`` its own."""
    from dgharness.hparams import fields  # pydantic takes as long to import as everything else here

    spec, text = load(group, name), _doc_of(_find(group, name))
    settings = getattr(spec, "hparams", None) or getattr(spec, "options", None)
    needs = getattr(spec, "needs", None)
    record = {
        **dataclasses.asdict(entry(group, name)),
        "agrees_with": parse_doc(text)["agrees_with"],
        "rung": getattr(spec, "rung", None),
        "needs": None if needs is None else str(needs),
        "hyperparameters": fields(settings) if settings else [],
        "tta": getattr(spec, "tta", None),
        "spec_version": getattr(spec, "version", None),
        "docs": text,
    }
    return json.loads(json.dumps(record, default=str))


def add_plugin(text: str) -> Entry:
    """Take in a spec that is not installed: "module:attr" or "path/to/file.py:attr".

    The module is looked for in the current directory first, and a file's own directory serves its imports.
    The name is the attribute with ``-`` for ``_``, in the group that the spec states. The same text may be
    given again, also in another process. Nothing that is installed can be replaced.
    """
    where, _, attr = text.rpartition(":")
    if not where or not attr:
        raise UsageError(f"--plugin {text} must be MODULE:ATTRIBUTE or FILE.py:ATTRIBUTE")
    try:
        module = import_named(where)
        spec = _attribute(module, attr)
        group = _group_of(spec)
    except Broken as broken:
        raise UsageError(f"--plugin {text} cannot be used: {broken}") from broken.__cause__
    name = attr.replace("_", "-")
    if (group, name) in _added:
        earlier, _ = _added[group, name]
        if (earlier.module, earlier.attr) == (module.__name__, attr):
            return _listed(group, name)
        raise UsageError(f"--plugin gives {NOUNS[group]} {name!r} twice ({earlier.source}); rename one")
    if taken := _given(group, name):
        owners = _sources(taken)
        raise UsageError(f"--plugin {text} cannot replace {NOUNS[group]} {name!r} of {owners}; rename it")
    file = Path(module.__file__ or "")
    sha = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    entry = Entry(name, group, module.__name__, attr, "", "", f"--plugin {file} (sha256 {sha})", sha256=sha)
    _added[group, name] = entry, spec
    return _listed(group, name)


def _bring(name: str) -> None:
    """Take in an unmodified DomainBed class: "domainbed:MODULE:CLASS" or "domainbed:FILE.py:CLASS"."""
    if ("algorithms", name) in _added:
        return
    where, _, attr = name.partition(":")[2].rpartition(":")
    if not where or not attr:
        raise UsageError(f"algorithm {name!r} must be domainbed:MODULE:CLASS or domainbed:FILE.py:CLASS")
    from dgharness.compat.domainbed import lift  # torch

    try:
        module = import_named(where)
        spec, file, sha = lift(module, attr)
    except Broken as broken:
        raise UsageError(f"algorithm {name!r} cannot be used: {broken}") from broken.__cause__
    source = f"domainbed {file} (sha256 {sha})"
    _added["algorithms", name] = (
        Entry(name, "algorithms", module.__name__, attr, "", "", source, sha256=sha),
        spec,
    )


# --- from a name to a spec -------------------------------------------------------------------------


@cache
def _installed() -> dict[tuple[str, str], list[Entry]]:
    """Every entry point, by (group, name): one unless two distributions give the same name."""
    from importlib.metadata import entry_points

    points = entry_points()
    found: dict[tuple[str, str], list[Entry]] = {}
    owners: dict[int, tuple[str, str]] = {}
    for group in GROUPS:
        for point in points.select(group=f"dgharness.{group}"):
            module, _, attr = point.value.partition(":")
            dist = point.dist
            if id(dist) not in owners:  # its name and version are parsed from a file at every look
                owners[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "")
            owner, version = owners[id(dist)]
            source = "built-in" if owner == "dgharness" else f"plugin {owner} {version}"
            aliases = _aliases(group, point.name)
            entry = Entry(point.name, group, module.strip(), attr.strip(), owner, version, source, aliases)
            found.setdefault((group, point.name), []).append(entry)
    return found


def _given(group: str, name: str) -> list[Entry]:
    """All that claim a name; an alias is a name like any other."""
    if group == "algorithms" and name.partition(":")[0] == "domainbed":
        _bring(name)
    real = canonical(group, name)
    claims = [*_installed().get((group, name), ())]
    if real != name:
        claims += _installed().get((group, real), ())
    if (group, name) in _added:
        claims.append(_added[group, name][0])
    return claims


def _names(group: str) -> set[str]:
    return {name for kind, name in (*_installed(), *_added) if kind == group}


def _find(group: str, name: str) -> Entry:
    given = _given(group, name)
    if len(given) > 1:
        raise UsageError(f"{NOUNS[group]} {name!r} is given by {_sources(given)}; uninstall one of them")
    if not given:
        known = _names(group) | {*ALIASES.get(group, {})}
        raise UsageError(f"there is no {NOUNS[group]} {name!r}; {did_you_mean(name, known)}")
    return given[0]


def _spec(entry: Entry) -> Any:
    if (entry.group, entry.name) in _added:
        return _added[entry.group, entry.name][1]
    spec = _attribute(import_module(entry.module), entry.attr)
    group = _group_of(spec)
    if group != entry.group:
        raise Broken(
            f"{entry.module}:{entry.attr} is a spec for dgharness.{group} "
            f"but is registered under dgharness.{entry.group}"
        )
    return spec


def _group_of(spec: Any) -> str:
    """The group a spec states, once it is known to be a spec that this version can use."""
    group = _stated(spec)
    if group is None:
        raise Broken(f"it has type {type(spec).__name__}; a decorator of dgharness.plugin makes a spec")
    if (api := getattr(spec, "api", None)) != API_VERSION:
        from dgharness import __version__

        raise Broken(
            f"it is written for plugin API {api}, and dgharness {__version__} has API {API_VERSION}; "
            "install versions that match"
        )
    return group


def _stated(value: Any) -> str | None:
    group = None if isinstance(value, type) else getattr(value, "group", None)
    return group if isinstance(group, str) and group in GROUPS else None


def _attribute(module: ModuleType, attr: str) -> Any:
    if not hasattr(module, attr):
        specs = [name for name, value in vars(module).items() if _stated(value)]
        hint = did_you_mean(attr, specs) if specs else "it defines no spec at all"
        raise Broken(f"{module.__name__} has no {attr!r}; {hint}")
    return getattr(module, attr)


# --- from a name to a line of the listing ----------------------------------------------------------


def _listed(group: str, name: str) -> Entry:
    given = _given(group, name)
    try:
        if len(given) > 1:
            raise Broken(f"the name is given by {_sources(given)}; uninstall one of them")
        return _described(given[0], _doc_of(given[0]))
    except Broken as broken:
        return dataclasses.replace(_described(given[0], ""), status=f"broken: {broken}")


def _described(entry: Entry, doc: str) -> Entry:
    found = parse_doc(doc)
    trust = found["trust"] or ("unverified" if entry.group in METHODS else "")
    return dataclasses.replace(
        entry,
        summary=found["summary"],
        paper=found["paper"],
        equation=found["equation"],
        trust=trust if entry.source == "built-in" else "plugin",
    )


def _doc_of(entry: Entry) -> str:
    if entry.source != "built-in":
        return str(getattr(_spec(entry), "doc", None) or "")
    try:
        return module_doc(entry.module, entry.attr)
    except FileNotFoundError as error:
        raise Broken(f"there is no file {error.filename}") from error
    except SyntaxError as error:
        raise failed(entry.module, error) from error


def _sources(given: list[Entry]) -> str:
    return " and ".join(f"{entry.distribution} {entry.version}".strip() or entry.source for entry in given)


def _aliases(group: str, name: str) -> tuple[str, ...]:
    return tuple(alias for alias, real in ALIASES.get(group, {}).items() if real == name)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
