"""The learner: the trained unit, usable without data sources and without tracking.

Two learners with the same weights, fed the same minibatches and noise, give the same result to the last
bit at the same thread count.

Shapes: E rows of a batch, B examples per row, N = E*B, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dgharness.data.tasks import cross_entropy
from dgharness.errors import UsageError
from dgharness.plugin import AlgorithmSpec, Dims, Metrics, Predictor, Setup, Source, Stage, Step
from dgharness.seeds import generator, seed_hash, seeded
from dgharness.training import optimizers as opt
from dgharness.training.averaging import AveragingConfig, SimpleMovingAverage
from dgharness.training.optimizers import OptimizerConfig


class Learner:
    """An algorithm on a model with its optimizers; ``t`` counts the updates completed.

    ``steps`` is the planned total, which schedules and the last stage need. ``new_model(number)`` builds
    another network, for the algorithms that ask for one; ``number`` counts them from 1, over resumptions
    too. ``views`` are named augmentations ``(x, generator) -> x``. ``batch_size`` is the configured one, for
    methods that are built from it.
    """

    def __init__(
        self,
        algorithm: AlgorithmSpec,
        model: nn.Module,
        dims: Dims,
        hparams: Any,
        optimizer: OptimizerConfig,
        seed: int,
        *,
        steps: int = 0,
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        averaging: AveragingConfig | None = None,
        precision: str = "float32",
        new_model: Callable[[int], nn.Module] | None = None,
        views: Mapping[str, Callable[[Any, torch.Generator], Any]] | None = None,
        text_CD: Tensor | None = None,
        source: Source | None = None,
        batch_size: Any = None,
    ) -> None:
        self.source = source
        self.spec, self.hp, self.seed, self.steps, self.loss = algorithm, hparams, seed, steps, loss
        self.optimizer_config, self.precision, self.views = optimizer, precision, views or {}
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.networks = 0  # built beside the model
        setup = Setup(
            model, dims, hparams, loss, lambda: self._build_network(new_model), optimizer, batch_size
        )
        with seeded(seed, "init/algorithm"):
            self.algorithm = algorithm.build(setup).to(self.device)
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if len(dtypes) == 1:  # what the method owns computes as the model does, be it in float64
            self.algorithm.to(dtypes.pop())
        multipliers = {opt.HEAD: optimizer.head_lr_multiplier, **algorithm.lr_multipliers(hparams)}
        self.optimizers = self.algorithm.optimizers(
            partial(opt.make_optimizer, optimizer, multipliers=multipliers)
        )
        self.averaged = (
            SimpleMovingAverage(self.algorithm, averaging.start)
            if averaging and averaging.name == "sma"
            else None
        )
        self.pretrained = (
            copy.deepcopy(model).eval().requires_grad_(False) if algorithm.needs.pretrained else None
        )
        self.text_CD = text_CD
        self.restarts = sorted(algorithm.restarts(hparams), key=lambda restart: restart[0])
        stages = [stage for stage in algorithm.stages(hparams) if stage.steps != 0]
        self.stages: list[Stage] = stages or [Stage("train")]
        self.initial = self._copied_state() if any(stage.reinit for stage in self.stages) else None
        self.handed_over: dict[str, Tensor] = {}
        self.ended = False  # what ``finished`` was when this state was saved
        self.t = 0

    # --- one update --------------------------------------------------------------------------------

    def step(
        self,
        x: Any,
        y_EB: Tensor,
        *,
        domain_EB: Tensor | None = None,
        group_EB: Tensor | None = None,
        index_EB: Tensor | None = None,
        noise: Tensor | None = None,
        **fields: Any,
    ) -> Metrics:
        """One update on a minibatch; gives the method's metrics as 0-d tensors, still on the device.

        ``x`` is flat, N = E*B row by row. Without ``domain_EB`` each row is a domain of its own; groups
        are the domains unless given. ``noise`` replaces what the method would draw for itself.
        """
        rows_EB = torch.arange(len(y_EB), device=y_EB.device)[:, None].expand(y_EB.shape[:2])
        domain_EB = rows_EB if domain_EB is None else domain_EB
        if noise is None and self.spec.noise is not None:
            rows, examples = domain_EB.shape
            drawn = self.spec.noise(rows, examples, generator(self.seed, "algorithm", self.t))
            noise = drawn.to(self.device)
        step = Step(
            x=x,
            targets_EB=y_EB,
            domain_EB=domain_EB,
            group_EB=domain_EB if group_EB is None else group_EB,
            index_EB=torch.full_like(rows_EB, -1) if index_EB is None else index_EB,
            t=self.t,
            model=self.algorithm.model,
            loss=self.loss,
            noise=noise,
            pretrained=self.pretrained,
            text_CD=self.text_CD,
            augment=self._augment,
            handed_over=self.handed_over,
            layers=self.spec.needs.feature_maps,
            source=self.source,
            seed=self.seed,
            **fields,
        )
        self._before_update()
        with self._autocast(self.precision == "bf16"):
            metrics = self.algorithm.update(step, self._descend)
        self.t += 1
        if self.averaged is not None:
            self.averaged.update(self.algorithm, self.t)
        # A copy: a metric may be a buffer, which the next update changes.
        return {name: value.detach().clone() for name, value in metrics.items()}

    def _before_update(self) -> None:
        """Put the learning rate, the optimizer restarts and the random state where step t has them."""
        if not self.algorithm.training:
            self.algorithm.train()
        for step, _ in self.restarts:
            if step == self.t:
                for optimizer in self.optimizers.values():
                    opt.restart(optimizer)
        passed = [lr for step, lr in self.restarts if step <= self.t and lr is not None]
        factor = opt.lr_factor(self.optimizer_config, self.t, self.steps)
        for optimizer in self.optimizers.values():
            opt.set_lr(optimizer, passed[-1] if passed else None, factor)
        self._reseed()

    def _reseed(self) -> None:
        # torch.manual_seed would also queue a call for a CUDA that may not be there, at every step.
        seed = seed_hash(self.seed, "dropout", self.t)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _descend(self, name: str, loss_fn: Callable[[], Tensor]) -> None:
        def forward() -> Tensor:
            with self._autocast(self.precision == "bf16"):
                return loss_fn()

        with self._autocast(False):
            opt.descend(
                self.optimizers[name], forward, self.optimizer_config, self.algorithm.buffers, self._reseed
            )

    def _autocast(self, enabled: bool) -> torch.autocast:
        # Without the cache of cast weights: an optimizer that evaluates twice changes them in between.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _augment(self, x: Any, name: str) -> Any:
        return self.views[name](x, generator(self.seed, f"view/{name}", self.t))

    # --- stages ------------------------------------------------------------------------------------

    def stage(self) -> tuple[int, bool]:
        """The number of the stage that the next update belongs to, and whether that update is its first."""
        start = 0
        for number, stage in enumerate(self.stages):
            if stage.steps is None or self.t < start + stage.steps:
                return number, self.t == start
            start += stage.steps
        return len(self.stages) - 1, False

    def enter_stage(self, source: Source) -> Stage:
        """The stage of the next update; at its first, close the one before and start as it asks."""
        number, first = self.stage()
        stage = self.stages[number]
        if first and number:
            with seeded(self.seed, "end of stage", self.t):
                handed_over = self.algorithm.end_stage(self.stages[number - 1].name, source)
            # A copy: what is handed over may be a weight, which the next update changes.
            for key, value in handed_over.items():
                self.handed_over[key] = value.detach().clone().to(self.device)
            if stage.reinit and self.initial is not None:
                self.algorithm.load_state_dict(self.initial)
                for optimizer in self.optimizers.values():
                    opt.restart(optimizer)
                if self.averaged is not None:
                    self.averaged.restart(self.algorithm)
        return stage

    @property
    def finished(self) -> bool:
        """Whether the algorithm asked to end early."""
        return self.ended or bool(self.algorithm.finished)

    # --- prediction and state ----------------------------------------------------------------------

    def predictor(self, source: Source | None = None, weights: Mapping[str, Any] | None = None) -> Predictor:
        """What predicts, in evaluation mode: the given weights, else the average if there is one.

        ``source`` is the learner's own unless given.
        """
        algorithm: Any = self.averaged.module if self.averaged is not None else self.algorithm
        if weights is not None:
            algorithm = copy.deepcopy(algorithm)
            _load(algorithm, weights)
        predictor: Any = algorithm.eval().predictor(self.source if source is None else source)
        if isinstance(predictor, nn.Module):
            predictor.eval()
        return predictor

    @torch.no_grad()
    def predict(self, x: Any) -> Tensor:
        """Outputs [N, C] of prepared inputs."""
        predictor = self.predictor()
        return predictor.classify(predictor.features(x))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, under model, algorithm, optimizers, averaged, handed_over, t."""
        model, own = _split(self.algorithm.state_dict())
        return {
            "model": model,
            "algorithm": own,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
            "handed_over": dict(self.handed_over),
            "networks": self.networks,
            "finished": self.finished,
            "t": self.t,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` gave, on whatever device this learner is."""
        _load(self.algorithm, state)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.handed_over = {key: value.to(self.device) for key, value in state["handed_over"].items()}
        self.networks, self.ended, self.t = state["networks"], state["finished"], state["t"]

    def weights(self) -> dict[str, Any]:
        """What predicts, alone: model and algorithm, averaged if there is an average."""
        algorithm = self.averaged.module if self.averaged is not None else self.algorithm
        model, own = _split(algorithm.state_dict())
        return {"model": model, "algorithm": own}

    def _build_network(self, new_model: Callable[[int], nn.Module] | None) -> nn.Module:
        if new_model is None:
            raise UsageError("this algorithm builds another network; give Learner(new_model=...) a way to")
        self.networks += 1
        return new_model(self.networks)

    def _copied_state(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.algorithm.state_dict().items()}


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's own entries without their prefix, and all others."""
    model = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    return model, {key: value for key, value in state.items() if not key.startswith("model.")}


def _load(algorithm: nn.Module, state: Mapping[str, Any]) -> None:
    algorithm.load_state_dict(
        {**{f"model.{key}": value for key, value in state["model"].items()}, **state["algorithm"]}
    )
