"""Names of domains and groups as they stand in metric keys.

MLflow allows letters, digits and ``_ - . space``; a slash would read as another level of the key.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

_LONGEST = 120  # a key is "split/metric/name" and MLflow allows 250 characters for all of it
_NAMED = 50  # domains; of more, the metrics are summaries as well


def slug(name: str) -> str:
    """A name that may stand in a metric key; signs and percents are spelled out, so that they still differ.

    >>> slug("+90%"), slug("-90%"), slug("art_painting"), slug("y=0,color=red")
    ('plus90pct', 'minus90pct', 'art_painting', 'y-0_color-red')
    """
    spelled = name
    for character, word in (("+", "plus"), ("%", "pct"), ("=", "-")):
        spelled = spelled.replace(character, word)
    spelled = re.sub(r"^[-\u2212](?=\d)", "minus", spelled)
    spelled = re.sub(r"[^A-Za-z0-9_\-. ]", "_", spelled)
    if not spelled.strip(". "):
        return f"name-{_digest(name)}"
    return spelled if len(spelled) <= _LONGEST else f"{spelled[: _LONGEST - 9]}-{_digest(name)}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """One slug per name, all different, whatever the order of the names.

    Names that would collide (also by case alone, which some databases ignore) all carry a piece of their
    own hash.

    >>> slugs(["a/b", "a:b", "c"])
    {'a/b': 'a_b-c14cddc0', 'a:b': 'a_b-6783a31e', 'c': 'c'}
    """
    names = list(dict.fromkeys(names))
    taken = Counter(slug(name).casefold() for name in names)
    return {name: slug(name) if taken[slug(name).casefold()] == 1 else _marked(name) for name in names}


def listed(names: Collection[str], separator: str = ", ") -> str:
    """Names of domains one after the other, or how many there are where those are too many to name.

    >>> listed(["art", "photo"]), listed([str(n) for n in range(1000)])
    ('art, photo', '1000 domains')
    """
    return separator.join(few(names))


def few(names: Collection[str]) -> tuple[str, ...]:
    """Names of domains, or one that says how many there are where they are too many to stand one by one."""
    return tuple(names) if len(names) <= _NAMED else (f"{len(names)} domains",)


def find(metrics: Mapping[str, float], prefix: str, name: str) -> float | None:
    """The metric of one domain or group, logged under its plain slug or, after a collision, its marked one.

    >>> find({"test/acc/minus90pct": 0.1}, "test/acc/", "-90%")
    0.1
    """
    plain = metrics.get(prefix + slug(name))
    return metrics.get(prefix + _marked(name)) if plain is None else plain


def _marked(name: str) -> str:
    return f"{slug(name)}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
