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
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dgharness.hparams import Annotated, Choice, Hparams, IntLogUniform, LogUniform, Structural, Uniform
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
    "Dims",
    "Hparams",
    "IntLogUniform",
    "LogUniform",
    "Metrics",
    "Needs",
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
Metrics = dict[str, Tensor]


# --- what a method declares ------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What must be there before training starts; the harness says what is missing."""

    min_domains: int = 1
    groups: bool = False
    tasks: tuple[str, ...] = ()  # none named: any
    unlabeled: bool = False
    views: tuple[str, ...] = ()
    feature_maps: tuple[str, ...] = ()
    pretrained: bool = False
    text: bool = False
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


class AnnealedHparams(PenaltyHparams):
    """What every penalty has that comes into force at a step."""

    anneal_steps: int = 0
    """Updates before the penalty gets its weight; the optimizer starts afresh at that step."""


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
    stages: Callable[[Any], Sequence[Stage]] = lambda hp: ()
    noise: Callable[[int, int, torch.Generator], Tensor] | None = None  # (E, B, generator) -> numbers
    zero_on_identical_domains: bool = False  # the conformance kit holds the penalty to it
    sampler: str | None = None  # an exception from the protocol's sampler; it is tagged
    tta: str | None = None  # the default TTA method
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
            weight = _weight(schedule, step.t, hp)
            loss = risk + weight * value
            if hp.l2:
                loss = loss + hp.l2 * _squared_norm(step.model)
            if hp.rescale:
                loss = loss / torch.clamp(torch.as_tensor(weight), min=1.0)
            return loss, {"risk": risk, "penalty": value}

        if schedule != "constant":
            declared.setdefault("restarts", lambda hp: [(hp.anneal_steps, None)])
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


# --- how a method runs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What an algorithm is built from."""

    model: Any
    dims: Dims
    hp: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    new_model: Callable[[], Any]  # another network, with its own initialisation


MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
Descend = Callable[[str, Callable[[], Tensor]], None]


class Algorithm(nn.Module):
    """Rung 3: owns its networks and optimizers, and says what one update is."""

    finished: bool = False  # set it to end the loop early

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.model, self.hp, self.dims = setup.model, setup.hp, setup.dims

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by name; ``make`` builds the configured one over named parameters."""
        return {"model": make(self.named_parameters())}

    @abstractmethod
    def update(self, step: Step, descend: Descend) -> Metrics:
        """One update. ``descend(name, loss_fn)`` makes one step of that optimizer on ``loss_fn()``.

        ``loss_fn`` may be called more than once (SAM): what it computes must start from ``step.fresh()``.
        """

    def predictor(self, source: Source | None) -> Predictor:
        return self.model

    def end_stage(self, name: str, source: Source) -> Mapping[str, Tensor]:
        """Tensors to keep in the checkpoint from here on; later steps see them as ``step.handed_over``."""
        return {}


class Descent(Algorithm):
    """The lift from an objective to an algorithm: one optimizer descends its loss."""

    def __init__(self, setup: Setup, objective: nn.Module) -> None:
        super().__init__(setup)
        self.objective = objective

    @property
    def finished(self) -> bool:  # type: ignore[override]
        return getattr(self.objective, "finished", False)

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}

        def loss_fn() -> Tensor:
            now = step.fresh()
            loss, terms = self.objective(now, self.hp)
            if not metrics:
                risks = {"risks_E": now.risks_E} if "risks_E" in vars(now) else {}
                metrics.update({"loss": loss, **terms, **risks})
            return loss

        descend("model", loss_fn)
        return metrics

    def predictor(self, source: Source | None) -> Predictor:
        own = getattr(self.objective, "predictor", None)
        return own(self.model, self.hp, source) if own else self.model

    def end_stage(self, name: str, source: Source) -> Mapping[str, Tensor]:
        own = getattr(self.objective, "end_stage", None)
        return own(name, source) if own else {}


class Pure(nn.Module):
    """A function in the clothes of a module without parameters."""

    def __init__(self, fn: Callable[[Step, Any], tuple[Tensor, Metrics]]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, step: Step, hp: Any) -> tuple[Tensor, Metrics]:
        return self.fn(step, hp)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pure:
        return Pure(self.fn)


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
