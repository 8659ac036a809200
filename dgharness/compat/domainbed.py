"""Runs an unmodified algorithm class of DomainBed, or of a fork: ``--algorithm domainbed:MODULE:CLASS``.

    dgharness train --algorithm domainbed:my_algorithms.py:MyERM --set hp.my_weight=0.1

The class is a ``torch.nn.Module`` with ``__init__(input_shape, num_classes, num_domains, hparams)``,
``predict(x)``, and an ``update`` in one of two dialects: DomainBed's ``update(minibatches, unlabeled=None)``,
a list of one ``(x, y)`` per domain, or ``update(x, y, **kwargs)``, lists by domain, of SWAD, MIRO and what
was made from them, which are also given ``step``. ``update`` returns a dict of numbers. DomainBed itself is
imported only if the class does so.

The class brings its own network, so the setting ``model`` does not apply: a run's model is ``own``, with
weights of its own, and stands in a table with others of that kind. Learning rate, weight decay, batch size
and the optimizer's name come from the training configuration, every other entry of ``hparams`` from
``hp.NAME=VALUE``; a schedule scales the rates of whatever optimizers there are. Checkpoints hold, besides the
``state_dict``, what ``compat.state`` finds among the attributes; a resume is exact as far as that goes. NumPy
and Python draw from the run's stream too.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dgharness.compat import state
from dgharness.compat.hparams import DomainBedHparams, ForkHparams, given_hparams
from dgharness.errors import UsageError, did_you_mean
from dgharness.importing import Broken
from dgharness.models.model import ModelSpec
from dgharness.names import slug
from dgharness.plugin import Algorithm, AlgorithmSpec, Metrics, Needs, Setup, Step

Dialect = Literal["minibatches", "lists"]

OUT_OF_REACH = ("momentum", "beta1", "sam_rho", "clip_norm", "head_lr_multiplier")


# --- from a class to a spec ------------------------------------------------------------------------


def lift(module: ModuleType, name: str) -> tuple[AlgorithmSpec, Path, str]:
    """The spec of a class, the file that it is written in, and the hash of that and of its bases' files."""
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and _runs(value)]
        place = Path(module.__file__ or "").stem  # the name of a file's module is made up
        raise Broken(f"{place} has no class {name!r}; {did_you_mean(name, known)}")
    if not issubclass(cls, nn.Module):
        raise Broken(f"{name} is no torch.nn.Module")
    if not callable(getattr(cls, "predict", None)):
        raise Broken(f"{name} has no predict(x)")
    if not _takes(cls.__init__, 4):
        raise Broken(
            f"{name} is built from {inspect.signature(cls)} and not from "
            "(input_shape, num_classes, num_domains, hparams)"
        )
    dialect = _dialect(cls)
    own = inspect.getdoc(cls) if cls.__doc__ else None
    spec = AlgorithmSpec(
        build=partial(DomainBedAlgorithm, cls=cls, dialect=dialect),
        rung=3,
        hparams=DomainBedHparams if dialect == "minibatches" else ForkHparams,
        needs=Needs(domain_rows=True, tasks=("classification",)),
        model=OWN,
        doc=own or f"{name}, an algorithm class of DomainBed's kind.",
    )
    files = [Path(file) for base in cls.__mro__ if (file := _file(base))]
    sha = hashlib.sha256(b"".join(file.read_bytes() for file in dict.fromkeys(files))).hexdigest()[:16]
    return spec, files[0], sha


def _own_network(input_shape: tuple[int, ...], options: Any) -> tuple[nn.Module, int]:
    return nn.Identity(), 1


OWN = ModelSpec(  # stands where the harness would build a network, and is not trained
    featurizer=_own_network, weights=lambda options: ("own", None), doc="What the class builds for itself."
)


def _dialect(cls: Any) -> Dialect:
    update = getattr(cls, "update", None)
    wanted = "update(minibatches, unlabeled=None) or update(x, y, **kwargs)"
    if not callable(update):
        raise Broken(f"{cls.__name__} has no {wanted}")
    named = [p for p in inspect.signature(update).parameters.values() if p.kind in _NAMED][1:]
    required = [p.name for p in named if p.default is p.empty]
    if [p.name for p in named[:2]] == ["x", "y"] and len(required) <= 2:
        return "lists"
    if len(required) == 1 or required[1:] == ["unlabeled"]:
        return "minibatches"
    raise Broken(f"{cls.__name__} has update{inspect.signature(update)} and not {wanted}")


_NAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _runs(cls: type) -> bool:
    return issubclass(cls, nn.Module) and callable(getattr(cls, "predict", None)) and hasattr(cls, "update")


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * (arguments + 1))
    except TypeError:
        return False
    return True


def _file(cls: type) -> str | None:
    if cls.__module__.partition(".")[0] in ("builtins", "torch"):
        return None
    return inspect.getsourcefile(cls)


@contextmanager
def _one_stream() -> Iterator[None]:
    """NumPy and Python draw what PyTorch's seed says, and are left as they were found."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(torch.initial_seed() % 2**32)
    random.seed(torch.initial_seed())
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


# --- the class as an algorithm of the harness ------------------------------------------------------


class Brought(nn.Module):
    """The class as a predictor: inputs are their own features, and ``predict`` classifies them."""

    def __init__(self, algorithm: Any) -> None:
        super().__init__()
        self.algorithm = algorithm

    def features(self, x: Any) -> Any:
        return x

    def classify(self, z: Any) -> Tensor:
        return self.algorithm.predict(z)

    def forward(self, x: Any) -> Tensor:
        return self.classify(x)

    def train(self, mode: bool = True) -> Brought:
        # As DomainBed calls them: some classes override both and take no mode.
        self.training = mode
        if mode:
            self.algorithm.train()
        else:
            self.algorithm.eval()
        return self

    def get_extra_state(self) -> dict[state.Path, Any]:
        return state.values(self.algorithm)

    def set_extra_state(self, saved: dict[state.Path, Any]) -> None:
        state.load_values(self.algorithm, saved)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self.algorithm.named_buffers()):
            saved = state_dict.get(f"{prefix}algorithm.{name}")
            if saved is not None and saved.shape != buffer.shape:  # sized at the first update
                owner, _, leaf = name.rpartition(".")
                empty = torch.empty_like(saved, device=buffer.device)
                setattr(self.algorithm.get_submodule(owner), leaf, empty)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass
class OwnOptimizers:
    """All that the class holds with a state of its own, as one optimizer of the learner."""

    algorithm: nn.Module
    scheduled: bool

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of its optimizers, or copies where nothing may be changed from outside."""
        groups = []
        for found in state.with_state(self.algorithm).values():
            for group in found.param_groups if isinstance(found, torch.optim.Optimizer) else ():
                own = group if self.scheduled else dict(group)
                own.setdefault("base_lr", own["lr"])
                own.setdefault("lr_multiplier", 1.0)
                groups.append(own)
        return groups

    def state_dict(self) -> dict[state.Path, Any]:
        return state.states(self.algorithm)

    def load_state_dict(self, saved: dict[state.Path, Any]) -> None:
        state.load_states(self.algorithm, saved)


class DomainBedAlgorithm(Algorithm):
    """The class, fed one minibatch per domain."""

    def __init__(self, setup: Setup, cls: Any, dialect: Dialect) -> None:
        super().__init__(setup)
        _refuse_out_of_reach(setup.optimizer, cls)
        if not setup.dims.input_shape:
            raise UsageError(
                f"{cls.__name__} is built from the shape of its inputs: give Dims(input_shape=...)"
            )
        dims, config, hparams = setup.dims, setup.optimizer, given_hparams(setup)
        with _one_stream():
            own = cls(dims.input_shape, dims.outputs, dims.domains, hparams)
        if config.name != "adam" and "optimizer" not in hparams.asked:
            raise UsageError(
                f"{cls.__name__} makes its own optimizers and does not read hparams['optimizer'], so "
                f"optimizer.name={config.name} does not reach it; leave it out"
            )
        self.model, self.dialect = Brought(own), dialect
        self.scheduled = config.schedule != "constant" or config.warmup_steps > 0
        parameters = inspect.signature(own.update).parameters
        self.takes_more = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        self.takes_step = "step" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def optimizers(self, make: Any) -> dict[str, Any]:
        return {"own": OwnOptimizers(self.model.algorithm, self.scheduled)}

    def update(self, step: Step, descend: Any) -> Metrics:
        if not isinstance(step.x, Tensor):
            raise UsageError(
                f"{type(self.model.algorithm).__name__} takes tensors by domain, and this dataset's inputs "
                f"are a {type(step.x).__name__}"
            )
        x_E = list(step.x.unflatten(0, step.targets_EB.shape).unbind())
        y_E = list(step.targets_EB.unbind())
        own: Any = self.model.algorithm
        with _one_stream():
            if self.dialect == "lists":
                returned = own.update(x=x_E, y=y_E, **({"step": step.t} if self.takes_step else {}))
            else:
                minibatches = list(zip(x_E, y_E, strict=True))
                returned = own.update(minibatches, *((step.unlabeled,) if self.takes_more else ()))
        return _numbers(returned, step.targets_EB.device)


def _numbers(returned: Any, device: torch.device) -> Metrics:
    """What can be logged of what ``update`` returned."""
    metrics: Metrics = {}
    for name, value in (returned or {}).items():
        if isinstance(value, Tensor) and value.numel() == 1:
            metrics[slug(str(name))] = value.detach().reshape(())
        elif isinstance(value, (bool, int, float, np.number)):
            metrics[slug(str(name))] = torch.tensor(float(value), device=device)
    return metrics


def _refuse_out_of_reach(config: Any, cls: type) -> None:
    """A setting that cannot reach the class's own optimizers must not be ignored in silence."""
    default = type(config)()
    for name in OUT_OF_REACH:
        if getattr(config, name) != getattr(default, name):
            raise UsageError(
                f"{cls.__name__} makes its own optimizers, which optimizer.{name} cannot reach; leave it out"
            )
