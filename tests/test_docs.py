"""What the documents show is true: their Python runs, their commands parse, their links lead somewhere.

A Python block whose first line is a comment with a file name, such as ``# my_method.py``, is that file: it is
written to an empty directory and imported. Every other block runs in that directory after the blocks before
it, with their names.
"""

import importlib
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import typer

from dgharness import registry
from dgharness.cli import app
from dgharness.plugin import AlgorithmSpec
from dgharness.testing import check_algorithm

PROJECT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(PROJECT))
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md")
    for path in PROJECT.glob(pattern)
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:dgharness|make) [^`]+")


class Block(NamedTuple):
    language: str
    line: int  # of its first line in the document
    text: str


def blocks(document: str) -> list[Block]:
    text = (PROJECT / document).read_text()
    return [Block(m[1], text.count("\n", 0, m.start(2)) + 1, m[2]) for m in FENCED.finditer(text)]


def prose(document: str) -> str:
    return FENCED.sub("", (PROJECT / document).read_text())


def commands(document: str) -> list[str]:
    """Every command shown in a block, to be typed as it stands."""
    shell = [block.text for block in blocks(document) if block.language in ("", "sh", "bash", "console")]
    lines = [line.strip().removeprefix("$ ") for text in shell for line in _joined(text).splitlines()]
    return list(filter(COMMAND.fullmatch, lines))


def mentions(document: str) -> list[str]:
    """Every command named within a sentence, where arguments may be left out."""
    return list(filter(COMMAND.fullmatch, re.findall(r"`([^`\n]+)`", prose(document))))


def _joined(text: str) -> str:
    return re.sub(r"\\\n\s*", " ", text)


def having(holds) -> list[str]:
    return [document for document in DOCUMENTS if holds(document)]


def has_python(document: str) -> bool:
    return any(block.language == "python" for block in blocks(document))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """An empty directory to work in; what a document registers or imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_added", {})
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("document", having(has_python))
def test_python_runs_as_it_stands(document, scratch):
    run_blocks(document, scratch)
    for text in commands(document):
        for plugin in re.findall(r"--plugin (\S+\.py:\w+)", text):
            if (scratch / plugin.split(":")[0]).exists():
                assert registry.add_plugin(plugin).status == "ok", text
    for file in scratch.glob("*.py"):
        if hasattr(sys.modules.get(file.stem), file.stem) and file.stem != "document":
            registry.add_plugin(f"{file.name}:{file.stem}")
    for (group, name), (_, spec) in registry._added.items():
        assert registry.entry(group, name).summary, f"{name} has no first sentence for the listing"
        if isinstance(spec, AlgorithmSpec):
            check_algorithm(spec)


def run_blocks(document: str, folder: Path) -> None:
    module = sys.modules["document"] = ModuleType("document")  # where what it defines is looked up again
    module.__file__ = str(folder / "document.py")
    shown = [block.text for block in blocks(document) if block.language == "python"]
    Path(module.__file__).write_text("\n".join(shown))
    for block in blocks(document):
        if block.language != "python":
            continue
        if named := re.match(r"# (\w+)\.py\n", block.text):
            (folder / f"{named[1]}.py").write_text(block.text)
            importlib.invalidate_caches()
            importlib.import_module(named[1])
        else:
            # With the document's own line numbers, so that a traceback points into it.
            exec(compile("\n" * (block.line - 1) + block.text, PROJECT / document, "exec"), vars(module))


@pytest.mark.parametrize("document", having(lambda document: commands(document) or mentions(document)))
def test_commands_parse(document):
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    for text, whole in [(t, True) for t in commands(document)] + [(t, False) for t in mentions(document)]:
        program, *words = shlex.split(text, comments=True)
        arguments = list(takewhile(lambda word: word not in ("&&", "|", ">"), words))
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= set(targets), text
        else:
            parse(text, arguments, whole)


def parse(text: str, arguments: list[str], whole: bool = True) -> None:
    """Walk the command line down to its command, as typer does, and run nothing."""
    command = typer.main.get_command(app)
    context = None
    while True:
        try:
            context = command.make_context(command.name, arguments, parent=context)
        except typer.Exit:  # --help
            return
        except Exception as error:
            if type(error).__name__ == "MissingParameter" and not whole:
                return
            raise AssertionError(f"{text}: {error}") from error
        arguments = [*context._protected_args, *context.args]
        if not (hasattr(command, "resolve_command") and arguments):
            return
        try:
            _, command, arguments = command.resolve_command(context, arguments)
        except Exception as error:
            raise AssertionError(f"{text}: {error}") from error


def test_a_command_that_does_not_exist_is_noticed():
    for wrong in ("dgharness trian", "dgharness train --algoritm erm", "dgharness algorithms show"):
        with pytest.raises(AssertionError, match=wrong):
            parse(wrong, shlex.split(wrong)[1:])


@pytest.mark.parametrize("document", having(lambda document: LINK.search(prose(document))))
def test_links_lead_somewhere(document):
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (PROJECT / document).parent / path if path else PROJECT / document
        assert file.exists(), f"{document} links to {link}"
        if anchor:
            assert anchor in anchors(file), f"{document} links to {link}"


def anchors(file: Path) -> set[str]:
    """Headings as code hosts turn them into anchors."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_file_named_in_the_documents_exists():
    for document in having(lambda document: document.startswith("docs/") or document == "CONTRIBUTING.md"):
        for name in re.findall(r"`((?:dgharness|tests|docs|examples|benchmarks)/[\w/.-]+)`", prose(document)):
            assert (PROJECT / name).exists(), f"{document} names {name}"
