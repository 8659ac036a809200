"""The conformance kit: what every algorithm must hold to, as one call for a plugin's own tests.

    from dgharness.testing import check_algorithm
    from my_package import my_method

    def test_my_method():
        check_algorithm(my_method)

Shapes: E rows of a batch, B examples per row, N = E*B, R trials side by side.
"""

from __future__ import annotations

import ast
import copy
import inspect
import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dgharness.hparams import draw, spaces
from dgharness.plugin import AlgorithmSpec
from dgharness.testing.world import (
    CLASSES,
    B,
    Case,
    E,
    Stateless,
    assert_same,
    batchable,
    leaves,
    noise_of,
    run,
    small_batch,
    small_model,
    small_source,
    small_step,
    stack,
)


def check_algorithm(spec: AlgorithmSpec, **hparams: Any) -> None:
    """Run every check that applies to the algorithm's rung; an AssertionError says which one failed.

    ``hparams`` replace defaults, where a method needs others on a toy of three domains and three classes.
    """
    for check in CHECKS:
        try:
            check(Case(spec, spec.hparams(**hparams)))
        except AssertionError as error:
            raise AssertionError(f"{check.__name__.removeprefix('check_')}: {error}") from error


# --- the checks ------------------------------------------------------------------------------------


def check_documentation(case: Case) -> None:
    assert case.spec.doc.strip(), "it has no docstring; the first line of it is what the listing shows"


def check_hyperparameters(case: Case) -> None:
    """Every draw is valid, and no field's draw depends on another field."""
    hparams = case.spec.hparams
    for seed in range(20):
        drawn = draw(hparams, seed, trial_seed=0)
        assert hparams.model_validate(drawn.model_dump(mode="json")) == drawn, "a draw does not survive JSON"
    for name in spaces(hparams):
        alone = draw(
            hparams, 3, 0, {other: getattr(hparams(), other) for other in spaces(hparams) if other != name}
        )
        assert getattr(alone, name) == getattr(draw(hparams, 3, 0), name), (
            f"the draw of {name} is not its own"
        )


def check_source_text(case: Case) -> None:
    """Rungs 1 and 2 hold nothing that waits for the device or keeps trials from running side by side."""
    if case.spec.objective is None:
        return
    target = inspect.unwrap(_author_code(case.spec))
    module = inspect.getmodule(target)
    if module is None or module.__name__ == "__main__":
        return
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("item", "cpu", "cuda"), f"line {node.lineno} calls .{node.attr}"
            name = ast.unparse(node)
            assert not name.startswith("torch.optim"), f"line {node.lineno} uses {name}"


def check_every_parameter_trains(case: Case) -> None:
    """Every parameter that asks for gradients is in an optimizer, and moves."""
    learner = case.learner()
    owned = {
        id(p)
        for optimizer in learner.optimizers.values()
        for g in optimizer.param_groups
        for p in g["params"]
    }
    before = {name: p.detach().clone() for name, p in learner.algorithm.named_parameters() if p.requires_grad}
    missing = [n for n, p in learner.algorithm.named_parameters() if p.requires_grad and id(p) not in owned]
    assert not missing, f"in no optimizer: {', '.join(missing)}"
    run(learner, 20)
    still = [
        name for name, p in learner.algorithm.named_parameters() if name in before and p.equal(before[name])
    ]
    assert not still, f"did not move in 20 updates: {', '.join(still)}"


def check_metrics_are_tensors(case: Case) -> None:
    metrics = run(case.learner(), 1)
    for name, value in metrics.items():
        assert isinstance(value, Tensor) and not value.requires_grad, f"metric {name!r} is not a plain tensor"
        assert value.isfinite().all(), f"metric {name!r} is not finite on the first update"


def check_repeatable(case: Case) -> None:
    """The same seed and minibatches give the same weights to the last bit."""
    first, second = case.learner(), case.learner()
    run(first, 5)
    torch.rand(3)  # what others draw from the global generator must not matter
    run(second, 5)
    assert_same(first.state_dict(), second.state_dict())


def check_resume(case: Case) -> None:
    """Saved in the middle, loaded and continued is the same as never interrupted, to the last bit."""
    whole, half = case.learner(), case.learner()
    run(whole, 12)
    run(half, 6)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = case.learner()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, 6)
    assert_same(whole.state_dict(), resumed.state_dict())


def check_prediction(case: Case) -> None:
    """Prediction is deterministic, and no example's depends on its neighbours."""
    learner, source = case.learner(), small_source()
    run(learner, 3)
    predictor = learner.predictor(source)
    x = small_batch(99)[0]
    with torch.no_grad():
        together = predictor.classify(predictor.features(x))
        again = predictor.classify(predictor.features(x))
        alone = torch.cat([predictor.classify(predictor.features(row[None])) for row in x])
    assert together.equal(again), "two predictions of the same inputs differ"
    assert together.shape == (len(x), CLASSES), f"outputs have shape {tuple(together.shape)}"
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def check_one_row(case: Case) -> None:
    """A single domain, and a single example, leave the loss finite."""
    if case.spec.needs.min_domains > 1:
        return
    for rows, examples in ((1, B), (E, 1), (1, 1)):
        x, y_EB = small_batch(0, rows, examples)
        metrics = case.learner().step(x, y_EB)
        for name, value in metrics.items():
            assert value.isfinite().all(), f"{name} is not finite with {rows} x {examples} examples"


def check_low_precision(case: Case) -> None:
    metrics = run(case.learner(precision="bf16"), 3)
    for name, value in metrics.items():
        assert value.isfinite().all(), f"{name} is not finite in bf16"


def check_order_of_domains(case: Case) -> None:
    """The loss does not depend on the order in which the domains stand in the batch."""
    if case.spec.objective is None:
        return
    order = torch.tensor([2, 0, 1])
    model, own = small_model(0).double(), case.objective()
    step = small_step(case, model)
    moved = replace(
        step,
        x=step.x.unflatten(0, (E, B))[order].flatten(0, 1),
        targets_EB=step.targets_EB[order],
        domain_EB=step.domain_EB[order],
        group_EB=step.group_EB[order],
        noise=step.noise[order] if step.noise is not None and len(step.noise) == E else step.noise,
    )
    one = copy.deepcopy(own)(step, case.hp)[0]
    other = copy.deepcopy(own)(moved, case.hp)[0]
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def check_weight_zero_is_erm(case: Case) -> None:
    if case.spec.rung != 1:
        return
    neutral = {"weight": 0.0, "l2": 0.0, "anneal_steps": 0}
    values = {name: value for name, value in neutral.items() if hasattr(case.hp, name)}
    zero = case.with_hp(**values)
    step = small_step(case, small_model(0).double())
    loss = case.objective()(step, zero.hp)[0]
    torch.testing.assert_close(loss, step.risks_E.mean(), rtol=1e-12, atol=1e-12)


def check_identical_domains(case: Case) -> None:
    if case.spec.rung != 1 or not case.spec.zero_on_identical_domains:
        return
    step = small_step(case, small_model(0).double())
    same = replace(
        step,
        x=step.x[:B].repeat(E, *([1] * (step.x.dim() - 1))),
        targets_EB=step.targets_EB[:1].expand(E, B),
    )
    penalty = case.objective()(same, case.hp)[1]["penalty"]
    torch.testing.assert_close(penalty, torch.zeros_like(penalty), rtol=0, atol=1e-12)


def check_trials_side_by_side(case: Case) -> None:
    """Under vmap over trials the loss and every gradient equal those of a loop (float64)."""
    if case.spec.objective is None:
        return
    models = [small_model(seed).double() for seed in range(3)]
    owns = [case.objective(seed=seed) for seed in range(3)]
    hps = [batchable(case, factor) for factor in (0.5, 1.0, 2.0)]
    base = small_step(case, models[0])

    def loss(
        params: Any, buffers: Any, own_params: Any, own_buffers: Any, numbers: Any, noise: Any
    ) -> Tensor:
        hp = SimpleNamespace(**{**case.hp.model_dump(), **numbers})
        step = replace(base, model=Stateless(models[0], {**params, **buffers}), noise=noise)
        return torch.func.functional_call(owns[0], ({**own_params, **own_buffers},), (step, hp))[0]

    trials = []
    for r, (model, own, numbers) in enumerate(zip(models, owns, hps, strict=True)):
        trials.append(
            (
                {k: v.detach() for k, v in model.named_parameters()},
                {k: v.clone() for k, v in model.named_buffers()},
                {k: v.detach() for k, v in own.named_parameters()},
                {k: v.clone() for k, v in own.named_buffers()},
                numbers,
                noise_of(case, r),
            )
        )
    stacked = tuple(stack([trial[i] for trial in trials]) for i in range(6))
    gradient = torch.func.grad_and_value(loss, argnums=(0, 2))
    dims = tuple(0 if part is not None else None for part in stacked)
    together = torch.func.vmap(gradient, in_dims=dims)(*copy.deepcopy(stacked))
    for r, trial in enumerate(trials):
        alone = gradient(*trial)
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            torch.testing.assert_close(a[r], b, rtol=1e-8, atol=1e-10)


def check_learns(case: Case) -> None:
    """Forty updates on an easy task of three domains beat chance by far."""
    learner = case.learner()
    run(learner, 40)
    x, y_EB = small_batch(1000, E, 64)
    predictor = learner.predictor(small_source())
    with torch.no_grad():
        accuracy = float(
            (predictor.classify(predictor.features(x)).argmax(-1) == y_EB.flatten()).float().mean()
        )
    assert accuracy > 0.6, f"accuracy {accuracy:.2f} after 40 updates on a task with chance 0.33"


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_documentation,
    check_hyperparameters,
    check_source_text,
    check_metrics_are_tensors,
    check_every_parameter_trains,
    check_repeatable,
    check_resume,
    check_prediction,
    check_one_row,
    check_low_precision,
    check_order_of_domains,
    check_weight_zero_is_erm,
    check_identical_domains,
    check_trials_side_by_side,
    check_learns,
)


def _author_code(spec: AlgorithmSpec) -> Any:
    """The function or class that the plugin's author wrote."""
    assert spec.objective is not None
    if isinstance(spec.objective, type):
        return spec.objective
    names = dict(zip(spec.objective.__code__.co_freevars, spec.objective.__closure__ or (), strict=True))
    fn = next(cell.cell_contents for cell in names.values() if callable(cell.cell_contents))
    inner = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    return inner["fn"].cell_contents if "fn" in inner else fn
