"""Hyperparameters: typed, frozen, with the search space as part of the type.

>>> class Hp(Hparams):
...     weight: Annotated[float, LogUniform(1e-1, 1e5)] = 10.0
...     '''Weight of the penalty.'''
>>> draw(Hp, hparams_seed=0, trial_seed=0).weight      # seed 0 is the defaults
10.0
>>> spaces(Hp)
{'weight': LogUniform(low=0.1, high=100000.0)}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from dgharness.errors import UsageError, did_you_mean
from dgharness.seeds import unit_hash

__all__ = [
    "Annotated",
    "Choice",
    "Hparams",
    "IntLogUniform",
    "IntUniform",
    "LogUniform",
    "NameList",
    "Neutral",
    "PowerOfTwo",
    "Space",
    "Structural",
    "Uniform",
    "checked",
    "draw",
    "fields",
    "settled",
    "spaces",
]


@runtime_checkable
class Space(Protocol):
    """A search space: a map from the unit interval to values."""

    def sample(self, u: float) -> Any: ...


@dataclass(frozen=True)
class Uniform:
    """Uniform on [low, high]."""

    low: float
    high: float

    def sample(self, u: float) -> float:
        return self.low + (self.high - self.low) * u

    def __str__(self) -> str:
        return f"uniform [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm on [low, high]."""

    low: float
    high: float

    def sample(self, u: float) -> float:
        return self.low * (self.high / self.low) ** u

    def __str__(self) -> str:
        return f"log-uniform [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class IntLogUniform:
    """The integer part of a log-uniform draw on [low, high)."""

    low: float
    high: float

    def sample(self, u: float) -> int:
        return int(self.low * (self.high / self.low) ** u)

    def __str__(self) -> str:
        return f"integer part of log-uniform [{self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class IntUniform:
    """The integer part of a uniform draw on [low, high)."""

    low: float
    high: float

    def sample(self, u: float) -> int:
        return int(self.low + (self.high - self.low) * u)

    def __str__(self) -> str:
        return f"integer part of uniform [{self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class PowerOfTwo:
    """2^k for an integer k, uniform on low..high inclusive; draws that agree can train together."""

    low: int
    high: int

    def sample(self, u: float) -> int:
        return int(2 ** (self.low + int(u * (self.high - self.low + 1))))

    def __str__(self) -> str:
        return f"power of two [{2**self.low}, {2**self.high}]"


@dataclass(frozen=True)
class Choice:
    """One of the options, each as likely as the others."""

    options: tuple[Any, ...]

    def sample(self, u: float) -> Any:
        return self.options[int(u * len(self.options))]

    def __str__(self) -> str:
        return "one of " + ", ".join(str(option) for option in self.options)


class Structural:
    """Marks a field that changes the program and not only its numbers.

    Fields without it may become one number per trial when trials train together, so no code may branch
    on them.
    """


@dataclass(frozen=True)
class Neutral:
    """Marks a field that was added later: at this value it leaves a run's hash as it was before."""

    value: Any


def settled(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The values without the fields of the model that are at their neutral value.

    >>> class Hp(Hparams):
    ...     rate: float = 1.0
    ...     affine: Annotated[bool, Neutral(False)] = False
    >>> settled(Hp().model_dump(), Hp), settled(Hp(affine=True).model_dump(), Hp)
    ({'rate': 1.0}, {'rate': 1.0, 'affine': True})
    """
    neutral = {
        name: mark.value
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Neutral)
    }
    return {key: value for key, value in values.items() if key not in neutral or neutral[key] != value}


class Hparams(BaseModel):
    """Base of all hyperparameters: frozen, without unknown keys; the line under a field is its help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        validate_default=True,  # 64 for a float becomes the 64.0 that a saved configuration is read as
    )


H = TypeVar("H", bound=BaseModel)


def spaces(hparams: type[BaseModel]) -> dict[str, Space]:
    """The search space of every field that has one."""
    return {
        name: space
        for name, field in hparams.model_fields.items()
        for space in field.metadata
        if isinstance(space, Space)
    }


def draw(hparams: type[H], hparams_seed: int, trial_seed: int, given: Mapping[str, Any] | None = None) -> H:
    """Hyperparameters of one draw: the defaults for seed 0, a random draw for every other.

    Each field is hashed from (hyperparameter seed, trial seed, field name): adding a field never shifts
    another. What is ``given`` is not drawn, whatever the seed.
    """
    values = dict(given or {})
    if hparams_seed:
        for name, space in spaces(hparams).items():
            values.setdefault(name, space.sample(unit_hash(hparams_seed, trial_seed, name)))
    return checked(hparams, values)


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value if isinstance(value, (list, tuple)) else [value]


# Names as a list, or as one text with commas between them: y,sex
NameList = Annotated[tuple[str, ...], BeforeValidator(_names)]


def checked(hparams: type[H], values: Mapping[str, Any], where: str = "hp") -> H:
    """Validate values and turn pydantic's report into one sentence.

    >>> class Hp(Hparams):
    ...     weight: float = 1.0
    >>> checked(Hp, {"weigth": 2})
    Traceback (most recent call last):
      ...
    dgharness.errors.UsageError: hp.weigth is not a setting here; did you mean 'weight'?
    """
    try:
        return hparams.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_sentence(hparams, error, where)) from None


def fields(hparams: type[BaseModel]) -> list[dict[str, Any]]:
    """One record per field: name, type, default, space, structural, help."""
    known = spaces(hparams)
    return [
        {
            "name": name,
            "type": field.annotation.__name__
            if isinstance(field.annotation, type)
            else str(field.annotation),
            "default": field.default,
            "space": str(known[name]) if name in known else None,
            "structural": Structural in field.metadata,
            "help": " ".join((field.description or "").split()),
        }
        for name, field in hparams.model_fields.items()
    ]


def _sentence(hparams: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path, model = _place(hparams, [str(part) for part in first["loc"]])
    key = ".".join([where, *path] if where else path)
    if first["type"] == "extra_forbidden":
        return f"{key} is not a setting here; {did_you_mean(path[-1], model.model_fields)}"
    if first["type"] in ("model_type", "dict_type", "mapping_type"):
        return f"{key}={first['input']!r} is not valid: it is a table of settings, as in {key}.NAME=VALUE"
    # Every type that a field may have complains of its own.
    complaints = {
        each["msg"][0].lower() + each["msg"][1:]
        for each in error.errors()
        if _place(hparams, [str(part) for part in each["loc"]])[0] == path
    }
    return f"{key}={first['input']!r} is not valid: {', or '.join(sorted(complaints, reverse=True))}"


def _place(hparams: type[BaseModel], loc: list[str]) -> tuple[list[str], type[BaseModel]]:
    """Where a complaint is about: the keys down to a field, and the model that has (or lacks) it.

    What pydantic adds below a field, such as the member of a union, is not a key.
    """
    model = hparams
    for depth, part in enumerate(loc):
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return loc[: depth + 1], model
        model = inner
    return loc, model
