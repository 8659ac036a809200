"""The algorithm contract: what a contributor writes, and what the harness hands over.

Three rungs, one ladder; write a method on the lowest rung that it fits.

1. ``@penalty``: a pure function ``(step, hp) -> scalar``; the harness adds everything else.
2. ``@objective``: a pure function ``(step, hp) -> (loss, metrics)``, or an ``nn.Module`` with that
   ``forward`` when the method owns parameters or buffers.
3. ``@algorithm``: a subclass of ``Algorithm`` that owns networks, optimizers and its ``update``.

Shapes: E rows of a batch (one domain or group each), B examples per row, N = E*B, C outputs,
D features, K training domains, G groups.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, field_validator
from torch import Tensor, nn

from dgharness.algorithm import Algorithm, Descend, Descent, MakeOptimizer, Metrics, Pure, Setup
from dgharness.errors import UsageError
from dgharness.hparams import (
    Annotated,
    Choice,
    Hparams,
    IntLogUniform,
    IntUniform,
    LogUniform,
    Neutral,
    Structural,
    Uniform,
)
from dgharness.step import Batch, Dims, Predictor, Source, Step

__all__ = [
    "API_VERSION",
    "Algorithm",
    "AlgorithmSpec",
    "AnnealedHparams",
    "Annotated",
    "AnnotatorSpec",
    "Batch",
    "Choice",
    "Descend",
    "Dims",
    "Hparams",
    "IntLogUniform",
    "IntUniform",
    "LogUniform",
    "MakeOptimizer",
    "Metrics",
    "Needs",
    "Neutral",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PenaltyHparams",
    "Predictor",
    "Setup",
    "Source",
    "Stage",
    "Step",
    "Structural",
    "TTASpec",
    "Uniform",
    "algorithm",
    "annotator",
    "objective",
    "penalty",
    "tta_method",
]

API_VERSION = 1


# --- what a method declares ------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What must be there before training starts; the harness says what is missing."""

    min_domains: int = 1
    domain_rows: bool = False  # rows of one domain each; more than one domain implies it
    groups: bool = False
    tasks: tuple[str, ...] = ()  # none named: any
    places: tuple[str, ...] = ()  # what it takes of the tasks with outputs at many places of an example
    unlabeled: bool | Literal["optional"] = False  # optional: used where the split has some
    views: tuple[str, ...] = ()
    feature_maps: tuple[str, ...] = ()
    pretrained: bool = False
    text: bool = False
    one_tensor: bool = False  # inputs that are one tensor, as images are and tokens with their mask are not
    linear_classifier: bool = False

    def __str__(self) -> str:
        stated = [
            f"{item.name.replace('_', ' ')}: {getattr(self, item.name)}"
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != item.default
        ]
        return ", ".join(stated) or "nothing beyond labels"


@dataclass(frozen=True)
class Stage:
    """A part of training with its own data; the last stage takes the steps that are left."""

    name: str
    steps: int | None = None
    sampler: str | None = None
    split: Literal["train", "val"] = "train"
    reinit: bool = False  # start from the initial weights again


class PenaltyHparams(Hparams):
    """What every penalty has."""

    weight: float = 1.0
    """Weight of the penalty."""
    rescale: Annotated[bool, Structural] = False
    """Divide the whole loss by the weight when it is above 1, as the IRM paper's script does."""
    l2: Annotated[float, Structural] = 0.0
    """Adds l2 times the squared norm of the model's parameters, as the IRM paper's script does."""

    @field_validator("weight", "l2")
    @classmethod
    def not_negative(cls, value: float) -> float:
        if value < 0:
            raise ValueError("a penalty that is rewarded is another method; it must be at least 0")
        return value


class AnnealedHparams(PenaltyHparams):
    """What every penalty has that comes into force at a step."""

    anneal_steps: NonNegativeInt = 0
    """Updates before the penalty gets its weight."""
    restart: Annotated[bool, Structural] = True
    """Start the optimizer afresh at that update, as DomainBed does and the papers' scripts do not."""


Schedule = Literal["constant", "from_one", "from_zero"]
Restarts = Callable[[Any], Sequence[tuple[int, float | None]]]


@dataclass(frozen=True)
class AlgorithmSpec:
    """An algorithm as the registry holds it: how to build it, and what it declares."""

    build: Callable[[Setup], Algorithm]
    rung: Literal[1, 2, 3]
    objective: Callable[[Dims, Any], nn.Module] | None = None  # rungs 1 and 2: pure, so it can be vmapped
    hparams: type[Hparams] = Hparams
    needs: Needs = Needs()
    restarts: Restarts = lambda hp: ()
    lr_multipliers: Callable[[Any], Mapping[str, float]] = (
        lambda hp: {}
    )  # prefix of parameter names -> factor
    stages: Callable[[Any], Sequence[Stage]] = lambda hp: ()
    noise: Callable[[int, int, torch.Generator], Tensor] | None = None  # (E, B, generator) -> numbers
    zero_on_identical_domains: bool = False  # the conformance kit holds the penalty to it
    sampler: str | None = None  # an exception from the protocol's sampler; it is tagged
    tta: str | None = None  # the default TTA method
    model: Any = None  # a ModelSpec, where the method brings a network of its own
    version: int = 1  # raise it when the numbers change
    doc: str = ""
    api: int = API_VERSION
    group: ClassVar[str] = "algorithms"


def penalty(
    schedule: Schedule = "constant", hparams: type[PenaltyHparams] | None = None, **declared: Any
) -> Callable[[Callable[[Step, Any], Tensor]], AlgorithmSpec]:
    """Lift ``fn(step, hp) -> scalar`` to the objective *mean risk + weight x penalty*.

    The weight is ``hp.weight`` throughout (``constant``), or from ``hp.anneal_steps`` on and before that
    1 (``from_one``: IRM, V-REx) or 0 (``from_zero``: IB, Fishr).

    >>> @penalty("from_one")
    ... def vrex(step, hp):
    ...     return step.risks_E.var(correction=0)
    """
    default = PenaltyHparams if schedule == "constant" else AnnealedHparams

    def lift(fn: Callable[[Step, Any], Tensor]) -> AlgorithmSpec:
        def objective_fn(step: Step, hp: Any) -> tuple[Tensor, Metrics]:
            risk, value = step.risks_E.mean(), fn(step, hp)
            if value.dim():
                raise UsageError(
                    f"the penalty {fn.__name__} must return one number, and returned {list(value.shape)}; "
                    "take a mean or a sum over the domains"
                )
            weight = _weight(schedule, step.t, hp)
            loss = risk + weight * value
            if hp.l2:
                loss = loss + hp.l2 * _squared_norm(step.model)
            if hp.rescale:
                loss = loss / torch.clamp(torch.as_tensor(weight), min=1.0)
            return loss, {"risk": risk, "penalty": value}

        if schedule != "constant":
            declared.setdefault("restarts", lambda hp: [(hp.anneal_steps, None)] if hp.restart else [])
        declared.setdefault("doc", _doc(fn))
        return _objective_spec(lambda dims, hp: Pure(objective_fn), 1, hparams or default, declared)

    return lift


def objective(hparams: type[Hparams] = Hparams, **declared: Any) -> Callable[[Any], AlgorithmSpec]:
    """Lift ``fn(step, hp) -> (loss, metrics)``, or an ``nn.Module`` class with that ``forward``.

    The class is built as ``cls(dims, hp)`` and may have ``predictor(model, hp, source) -> Predictor``,
    ``end_stage(name, source) -> tensors`` and ``finished``.
    """

    def lift(target: Any) -> AlgorithmSpec:
        declared.setdefault("doc", _doc(target))
        build = target if isinstance(target, type) else lambda dims, hp: Pure(target)
        return _objective_spec(build, 2, hparams, declared)

    return lift


def algorithm(hparams: type[Hparams] = Hparams, **declared: Any) -> Callable[[Any], AlgorithmSpec]:
    """Register a subclass of ``Algorithm``; built as ``cls(setup)``."""

    def lift(cls: type[Algorithm]) -> AlgorithmSpec:
        declared.setdefault("doc", _doc(cls))
        return AlgorithmSpec(build=cls, rung=3, hparams=hparams, **declared)

    return lift


# --- test time, and before training ----------------------------------------------------------------


@dataclass(frozen=True)
class TTASpec:
    """A test-time method: ``factory(predictor, hp, source, seed)`` gives ``x -> logits``.

    It gets its own copy of the predictor, made once per target domain, and is called batch by batch.
    """

    factory: Callable[[Any, Any, Source, int], Callable[[Any], Tensor]]
    hparams: type[Hparams] = Hparams
    needs: Needs = Needs()
    version: int = 1
    doc: str = ""
    api: int = API_VERSION
    group: ClassVar[str] = "tta"


def tta_method(hparams: type[Hparams] = Hparams, **declared: Any) -> Callable[[Any], TTASpec]:
    """Register a test-time method, built as ``cls(predictor, hp, source, seed)``."""
    return lambda cls: TTASpec(factory=cls, hparams=hparams, **{"doc": _doc(cls), **declared})


@dataclass(frozen=True)
class AnnotatorSpec:
    """Runs before training: ``annotate(source, new_model, hp, seed)`` writes columns.

    The columns (``domain`` or ``group``, one integer per training row, in ``source.columns`` order) replace
    those of the manifest in training only.
    """

    annotate: Callable[[Source, Callable[[], Any], Any, int], Mapping[str, Tensor]]
    hparams: type[Hparams] = Hparams
    version: int = 1
    doc: str = ""
    api: int = API_VERSION
    group: ClassVar[str] = "annotators"


def annotator(hparams: type[Hparams] = Hparams, **declared: Any) -> Callable[[Any], AnnotatorSpec]:
    """Register a function that finds domains or groups before training."""
    return lambda fn: AnnotatorSpec(annotate=fn, hparams=hparams, **{"doc": _doc(fn), **declared})


def _weight(schedule: Schedule, t: int, hp: Any) -> Any:
    if schedule == "constant":
        return hp.weight
    before = 1.0 if schedule == "from_one" else 0.0
    if isinstance(hp.anneal_steps, int):
        return hp.weight if t >= hp.anneal_steps else before
    return torch.where(torch.as_tensor(t >= hp.anneal_steps), hp.weight, before)


def _squared_norm(model: nn.Module) -> Tensor:
    return torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()


def _objective_spec(
    build: Callable[[Dims, Any], nn.Module],
    rung: Literal[1, 2],
    hparams: type[Hparams],
    declared: Mapping[str, Any],
) -> AlgorithmSpec:
    def lifted(setup: Setup) -> Algorithm:
        return Descent(setup, build(setup.dims, setup.hp))

    return AlgorithmSpec(build=lifted, rung=rung, objective=build, hparams=hparams, **declared)


def _doc(target: Any) -> str:
    own = target.__doc__ if not (isinstance(target, type) and target.__doc__ is nn.Module.__doc__) else None
    return inspect.cleandoc(own or sys.modules[target.__module__].__doc__ or "")
