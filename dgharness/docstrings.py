"""What a module's docstring says about a method, read without importing the module.

One field per line, further lines indented:

>>> parse_doc('''The worst domain decides.
...
... Paper: An Author, A Title,
...     A Venue 2020
... Trust: core (published number reproduced)
... ''')
{'summary': 'The worst domain decides.', 'paper': 'An Author, A Title, A Venue 2020', 'equation': '',
 'agrees_with': '', 'trust': 'core'}
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path

TIERS = ("core", "verified", "unverified")
FIELDS = ("Paper", "Equation", "Agrees with", "Trust")


def parse_doc(doc: str) -> dict[str, str]:
    """The summary (first paragraph) and the fields of a docstring, each on one line, empty where missing.

    ``trust`` is the tier alone; anything but a known tier is "unverified".
    """
    found = {"summary": "", **dict.fromkeys(FIELDS, "")}
    current: str | None = "summary"
    for line in inspect.cleandoc(doc).splitlines():
        if start := re.match(f"({'|'.join(FIELDS)}):", line):
            current, line = start[1], line[start.end() :]
        elif not (line.strip() if current == "summary" else line.startswith(" ")):
            current = None
        if current:
            found[current] = f"{found[current]} {line.strip()}".strip()
    if found["Trust"]:
        tier = re.split(r"\W", found["Trust"], maxsplit=1)[0]
        found["Trust"] = tier if tier in TIERS else "unverified"
    return {name.lower().replace(" ", "_"): text for name, text in found.items()}


def module_doc(module: str, attr: str = "") -> str:
    """The docstring of a module of an installed package. A missing file is a FileNotFoundError.

    Where a string stands under the assignment of ``attr``, its first paragraph takes the place of the
    module's.
    """
    package, *inner = module.split(".")
    found = importlib.util.find_spec(package)
    assert found and found.submodule_search_locations, f"{package} is not a package"
    path = Path(found.submodule_search_locations[0], *inner)
    file = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
    tree = ast.parse(file.read_bytes())
    whole = ast.get_docstring(tree) or ""
    for assignment, beneath in zip(tree.body, tree.body[1:], strict=False):
        match assignment, beneath:
            case (
                ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(own))),
            ) if name == attr:
                return "\n\n".join([inspect.cleandoc(own), *whole.split("\n\n")[1:]])
    return whole
