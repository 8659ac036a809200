"""The one error a user can mend: it is shown as a sentence, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake in what the user asked for: one sentence with what is wrong, where, and what to do.

    The command line prints it and exits with 2.
    """


class NotApplicable(UsageError):
    """A method lacks something here that it needs: one run's mistake, and a named gap in a sweep."""


class DivergenceError(RuntimeError):
    """A loss or penalty became NaN or infinite; says which one, and at which step first."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(
            f"training diverged: {term!r} was not finite at step {step}; "
            "try a smaller learning rate or penalty weight, or --set optimizer.clip_norm=1"
        )
        self.term, self.step = term, step


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved.

    ``signal`` is the number of the signal, so that the process can exit with 128 + signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"interrupted by signal {signal}")
        self.signal = signal


MANY = 30  # names that a sentence lists


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or the first of them.

    >>> did_you_mean("vrx", ["erm", "vrex"])
    "did you mean 'vrex'?"
    >>> did_you_mean("zzz", ["erm", "vrex"])
    'known: erm, vrex'
    >>> did_you_mean("zzz", [])
    'there are none'
    """
    known = sorted(known)
    if not known:
        return "there are none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    more = f" and {len(known) - MANY} more" if len(known) > MANY else ""
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:MANY])}{more}"
