"""What the metric keys of a split call how well it went: accuracy, or in regression the squared error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Measure:
    """The metric that a task is judged by: ``split/KEY/domain`` and ``split/KEY_domain_mean``."""

    key: str
    name: str
    sign: int  # times this, larger is better
    worst_group: str  # the key of its value on the worst group

    def shown(self, value: float) -> str:
        """As a person reads it.

        >>> ACCURACY.shown(0.875), SQUARED_ERROR.shown(10.4321), SQUARED_ERROR.shown(25.999)
        ('87.5', '10.4', '26.0')
        """
        return f"{100 * value:.1f}" if self.sign > 0 else f"{value:#.3g}".removesuffix(".")

    def plotted(self, value: float) -> float:
        """As it stands in a figure whose axis is called ``axis``."""
        return 100 * value if self.sign > 0 else value

    @property
    def axis(self) -> str:
        return f"{self.name} (%)" if self.sign > 0 else self.name


ACCURACY = Measure("acc", "accuracy", 1, "wga")
SQUARED_ERROR = Measure("mse", "mean squared error", -1, "mse_worst_group")


def measure_of(keys: Iterable[str]) -> Measure:
    """The measure that these metric keys speak of.

    >>> measure_of(["val/mse/E0", "val/count/E0"]).name, measure_of(["val/acc/mse"]).name
    ('mean squared error', 'accuracy')
    """
    return _measure_of(tuple(keys))


def shared_measure(checkpoints: Iterable[Iterable[str]]) -> Measure:
    """The measure that checkpoints of runs on one dataset speak of, by their metric keys."""
    errors = any(measure_of(keys) is SQUARED_ERROR for keys in checkpoints)
    return SQUARED_ERROR if errors else ACCURACY


@lru_cache(1024)  # thousands of checkpoints have the same keys
def _measure_of(keys: tuple[str, ...]) -> Measure:
    named = (key.partition("/")[2] for key in keys)
    return SQUARED_ERROR if any(name.startswith(SQUARED_ERROR.key) for name in named) else ACCURACY
