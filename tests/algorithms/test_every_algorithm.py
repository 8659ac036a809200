"""What every algorithm on the first two rungs keeps: laws of the minibatch, vmap, devices, house rules."""

import ast
import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

import dgharness.algorithms
from dgharness.data.tasks import cross_entropy
from dgharness.hparams import fields
from dgharness.plugin import Dims
from dgharness.step import Step

FILES = {path.stem: path for path in sorted(Path(dgharness.algorithms.__path__[0]).glob("[!_]*.py"))}
ALL = {name: getattr(importlib.import_module(f"dgharness.algorithms.{name}"), name) for name in FILES}
SPECS = {name: spec for name, spec in ALL.items() if spec.rung < 3}
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}

each = pytest.mark.parametrize("name", SPECS)


def each_that(holds):
    return pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if holds(name, spec)])


@each
@pytest.mark.parametrize(("E", "B"), [(1, 1), (1, 4), (3, 1), (2, 2)])
def test_small_minibatches_have_finite_losses_and_gradients(make_step, run, grads, name, E, B):
    step = make_step(E=E, B=B)
    loss, metrics, _ = run(SPECS[name], step)
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    assert grads(loss, step.model).isfinite().all()


@each_that(lambda name, spec: spec.rung == 1 and spec.needs.min_domains >= 2)
def test_one_row_has_nothing_to_compare(make_step, run, name):
    assert run(SPECS[name], make_step(E=1))[1]["penalty"] == 0


@each_that(lambda name, spec: spec.zero_on_identical_domains)
def test_identical_domains_have_no_penalty(make_step, run, name):
    one = make_step(E=1)
    step = make_step(E=3, x=one.x.repeat(3, 1), targets_EB=one.targets_EB.repeat(3, 1))
    assert run(SPECS[name], step)[1]["penalty"].abs() < 1e-12


@each
def test_the_order_of_the_domains_does_not_matter(make_step, run, name):
    step, order = make_step(), torch.tensor([2, 0, 1])
    moved = make_step(
        x=step.x.unflatten(0, (3, 6))[order].flatten(0, 1),
        **{key: getattr(step, key)[order] for key in ("targets_EB", "domain_EB", "group_EB", "noise")},
    )
    torch.testing.assert_close(run(SPECS[name], moved)[0], run(SPECS[name], step)[0], **EXACT)


@each_that(lambda name, spec: spec.noise is None)  # a cut divides the examples by their place
def test_the_order_of_the_examples_does_not_matter(make_step, run, name):
    hp = {"unbiased": False} if "unbiased" in SPECS[name].hparams.model_fields else {}
    step, order = make_step(), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = make_step(
        x=step.x.unflatten(0, (3, 6))[:, order].flatten(0, 1), targets_EB=step.targets_EB[:, order]
    )
    torch.testing.assert_close(run(SPECS[name], moved, **hp)[0], run(SPECS[name], step, **hp)[0], **EXACT)


@each
def test_nothing_is_made_on_another_device(make_step, monkeypatch, name):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no meta device
    spec, hp, step = SPECS[name], SPECS[name].hparams(), make_step()
    tensors = {
        key: getattr(step, key).to("meta")
        for key in ("x", "targets_EB", "domain_EB", "group_EB", "index_EB", "noise")
    }
    objective = spec.objective(Dims(3, 5, 3, 3), hp).double().to("meta")
    loss, _ = objective(make_step(**tensors, model=step.model.to("meta")), hp)
    assert loss.device.type == "meta"


# --- vectorized trials -----------------------------------------------------------------------------


class Trial(nn.Module):
    """A model and an objective as one module, so that one call swaps the state of both."""

    def __init__(self, model, objective, hp, step):
        super().__init__()
        self.model, self.objective = model, objective
        self.hp, self.step = hp, step

    def forward(self, numbers, noise):
        step, hp = self.step, self.hp.model_copy(update=numbers)
        batch = {
            key: getattr(step, key) for key in ("x", "targets_EB", "domain_EB", "group_EB", "index_EB", "t")
        }
        return self.objective(Step(**batch, model=self.model, loss=cross_entropy, noise=noise), hp)


@each
def test_three_trials_at_once_equal_three_trials_alone(make_step, make_model, name):
    spec, step, R = SPECS[name], make_step(t=5), 3
    hp = spec.hparams()
    batchable = [
        record["name"]
        for record in fields(spec.hparams)
        if not record["structural"] and record["type"] in ("float", "int")
    ]
    values = {"weight": [0.5, 3.0, 20.0], "anneal_steps": [0, 5, 6], "eta": [0.01, 0.1, 1.0]}
    numbers = {key: torch.tensor(values[key]).double() for key in batchable if key in values}
    noise_RE = torch.rand(R, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trials = []
    for r in range(R):
        torch.manual_seed(r)
        objective = spec.objective(Dims(3, 5, 3, 3), hp).double()
        trials.append(Trial(make_model(r), objective, hp, step))
    params, buffers = stack_module_state(trials)

    def loss_of(params, buffers, numbers, noise):
        return functional_call(trials[0], (params, buffers), (numbers, noise))

    together = vmap(grad_and_value(loss_of, has_aux=True))
    grads_R, (losses_R, metrics_R) = together(params, buffers, numbers, noise_RE)
    for r, trial in enumerate(trials):
        alone = {key: value[r].item() for key, value in numbers.items()}
        if "anneal_steps" in alone:
            alone["anneal_steps"] = int(alone["anneal_steps"])
        loss, metrics = trial(alone, noise_RE[r])
        loss.backward()
        torch.testing.assert_close(losses_R[r], loss, **EXACT)
        for key, value in metrics.items():
            torch.testing.assert_close(metrics_R[key][r], value, **EXACT)
        for key, parameter in trial.named_parameters():
            torch.testing.assert_close(grads_R[key][r], parameter.grad, **EXACT)
        for key, buffer in trial.named_buffers():
            torch.testing.assert_close(buffers[key][r], buffer, **EXACT)


# --- house rules -----------------------------------------------------------------------------------


def broken_rules(source, structural):
    """What in the source of a rung-1 or rung-2 method could not be vectorized or moved to a device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if node.attr in {"item", "cpu", "cuda", "tolist", "numpy"}:
                yield f".{node.attr}"
            if ast.unparse(node) == "torch.optim":
                yield "torch.optim"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.optim"):
            yield "torch.optim"
        if isinstance(node, ast.Import) and any(name.name.startswith("torch.optim") for name in node.names):
            yield "torch.optim"
        if isinstance(node, ast.Constant) and str(node.value).split(":")[0] in {"cpu", "cuda", "mps"}:
            yield f"device {node.value!r}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
            yield "print"
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            read = [inner for inner in ast.walk(node.test) if isinstance(inner, ast.Attribute)]
            tested = {inner.attr for inner in read if ast.unparse(inner.value).endswith("hp")}
            yield from (f"branch on hp.{name}" for name in tested - structural)


@each
def test_the_file_stays_within_its_rung(name):
    structural = {record["name"] for record in fields(SPECS[name].hparams) if record["structural"]}
    assert list(broken_rules(FILES[name].read_text(), structural)) == []


@pytest.mark.parametrize(
    "line",
    [
        "x = loss.item()",
        "x = z.cpu()",
        "x = torch.zeros(3, device='cuda:0')",
        "torch.optim.Adam([])",
        "from torch.optim import Adam",
        "print(3)",
        "x = 1 if hp.weight > 0 else 2",
        "if self.hp.weight: pass",
    ],
)
def test_the_check_of_the_rung_sees(line):
    assert list(broken_rules(line, {"scaling"})) != []
    assert list(broken_rules("if hp.scaling == 'sun2016': pass", {"scaling"})) == []


@pytest.mark.parametrize("name", ALL)
def test_the_docstring_has_its_fields(name):
    summary, *rest = ALL[name].doc.splitlines()
    keys = [line.split(":")[0] for line in rest if line and not line.startswith(" ")]
    assert keys.pop() == "Shapes" if keys[4:] else True  # a legend, where there are letters of its own
    assert summary.endswith(".") and rest[0] == ""
    assert keys == ["Paper", "Equation", "Agrees with", "Trust"]
    assert {"Trust: core", "Trust: verified", "Trust: unverified"} & set(rest)


@pytest.mark.parametrize("name", ALL)
def test_every_hyperparameter_is_explained(name):
    assert all(record["help"] for record in fields(ALL[name].hparams))


def test_defaults_and_spaces_are_those_of_domainbed():
    table = {
        "irmv1": {"weight": (100, "log-uniform [0.1, 100000]"), "anneal_steps": (500, "[1, 10000)")},
        "vrex": {"weight": (10, "log-uniform [0.1, 100000]"), "anneal_steps": (500, "[1, 10000)")},
        "group_dro": {"eta": (0.01, "log-uniform [0.001, 0.1]")},
        **{
            name: {"weight": (1, "log-uniform [0.1, 10]")}
            for name in ("coral", "mmd", "causirl_coral", "causirl_mmd")
        },
    }
    for name, expected in table.items():
        found = {record["name"]: record for record in fields(SPECS[name].hparams) if record["space"]}
        assert set(found) == set(expected)
        for key, (default, space) in expected.items():
            assert found[key]["default"] == default and found[key]["space"].endswith(space)
