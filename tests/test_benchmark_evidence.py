"""The benchmarks of published results compute what they say, and each still runs."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dgharness.algorithms.ib_irm import IBIRMHparams, ib_irm
from dgharness.algorithms.irmv1 import IRMv1Hparams, irmv1
from dgharness.algorithms.vrex import VRExHparams, vrex
from dgharness.models.model import Model
from dgharness.plugin import AlgorithmSpec, Dims, Hparams, Step
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
E, B, INPUTS = 3, 6, 4
FORCED = {"unbiased": False, "affine": True}
METHODS = [
    (irmv1, IRMv1Hparams(anneal_steps=0, **FORCED), {"weight": (0.5, 30.0)}),
    (vrex, VRExHparams(anneal_steps=0), {"weight": (1.0, 10.0)}),
    (
        ib_irm,
        IBIRMHparams(irm_anneal_steps=0, ib_anneal_steps=0, of="logits", **FORCED),
        {"irm_weight": (2.0, 9.0), "ib_weight": (0.1, 3.0)},
    ),
]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[..., 0] - targets).square()


# --- the trainer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("own_data", [False, True])
@pytest.mark.parametrize(("spec", "hp", "numbers"), METHODS, ids=["irmv1", "vrex", "ib-irm"])
def test_a_trial_beside_others_is_the_run_of_a_learner(
    imported: Any, spec: AlgorithmSpec, hp: Hparams, numbers: dict[str, tuple[float, float]], own_data: bool
) -> None:
    models = [linear(seed) for seed in range(2)]
    lrs, decays = (0.01, 0.1), (0.0, 0.3)
    xs, ys = (
        [drawn(E * B, INPUTS, seed=seed) for seed in range(2)],
        [drawn(E, B, seed=seed) for seed in (2, 3)],
    )
    if not own_data:
        xs[1], ys[1] = xs[0], ys[0]
    together = imported("vectorized").train(
        spec,
        models,
        torch.stack(xs) if own_data else xs[0],
        torch.stack(ys) if own_data else ys[0],
        hp,
        loss=squared,
        lr_R=torch.tensor(lrs, dtype=torch.float64),
        weight_decay_R=torch.tensor(decays, dtype=torch.float64),
        steps=20,
        numbers={name: torch.tensor(values, dtype=torch.float64) for name, values in numbers.items()},
        own_data=own_data,
        compiled=False,
    )
    for r in range(2):
        learner = Learner(
            spec,
            linear(r),
            Dims(1, INPUTS, E, E),
            hp.model_copy(update={name: values[r] for name, values in numbers.items()}),
            OptimizerConfig(lr=lrs[r], weight_decay=decays[r]),
            0,
            loss=squared,
        )
        for _ in range(20):
            learner.step(xs[r], ys[r])
        for name, alone in learner.algorithm.model.named_parameters():
            torch.testing.assert_close(together[name][r], alone.detach(), rtol=1e-9, atol=1e-12)


def linear(seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Identity(), nn.Linear(INPUTS, 1)).double()


def test_what_changes_at_a_step_is_refused(imported: Any) -> None:
    with pytest.raises(AssertionError, match="anneal_steps=0"):
        imported("vectorized").train(
            vrex,
            [linear(0)],
            drawn(E * B, INPUTS),
            drawn(E, B),
            VRExHparams(anneal_steps=5),
            loss=squared,
            lr_R=torch.ones(1),
            weight_decay_R=torch.zeros(1),
            steps=1,
            compiled=False,
        )


# --- bands and tables ------------------------------------------------------------------------------


def test_a_mean_outside_its_band_is_said_to_be_outside(imported: Any) -> None:
    evidence = imported("evidence")
    band = evidence.around(1.0, 0.5)
    text = evidence.markdown(
        ("what",),
        [evidence.Row((name,), "1.0", band, values) for name, values in RESULTS.items()],
        2,
    )
    verdicts = {line.split("|")[1].strip(): line.split("|")[6].strip() for line in text.splitlines()[2:]}
    assert verdicts == {"in": "yes", "out": "**no**", "none": ""}
    assert "not measured" in text


RESULTS = {"in": [1.0, 1.2], "out": [1.0, 2.2], "none": []}


def test_one_value_has_no_spread(imported: Any) -> None:
    evidence = imported("evidence")
    one, two = (evidence.Row(("x",), "1.0", None, values).cells(1) for values in ([1.0], [1.0, 2.0]))
    assert "1.0" in one and "1.5 ± 0.5" in two


def test_what_was_measured_is_not_measured_again(imported: Any, tmp_path: Path) -> None:
    cells = imported("evidence").Cells(tmp_path / "cells.jsonl")
    for value in (1.0, 2.0):
        cells.measure({"seed": 0}, lambda value=value: {"test": value})
    assert [cell["test"] for cell in cells.having(seed=0)] == [1.0]


def test_examples_in_the_documentation_of_the_shared_code(imported: Any) -> None:
    assert doctest.testmod(imported("evidence")).failed == 0


# --- the protocols ---------------------------------------------------------------------------------


def test_draws_are_those_of_the_published_table(imported: Any) -> None:
    """The winners that the authors' archive lists, to the digits quoted of them."""
    methods = imported("unit_tests").METHODS
    erm, iga, and_mask = (methods[name].draw for name in ("erm", "iga", "and-mask"))
    assert (erm(4).lr, erm(4).weight_decay) == pytest.approx((6.95e-4, 8.0e-3), rel=0.01)
    assert (iga(19).lr, iga(19).numbers["weight"]) == pytest.approx((1.17e-4, 12874), rel=0.01)
    assert (and_mask(1).lr, and_mask(1).numbers["tau"]) == pytest.approx((0.1537, 0.952), rel=0.01)
    lam = 0.667
    weight, decay = methods["irmv1"].draw(15).numbers["weight"], methods["irmv1"].draw(15).weight_decay
    assert (weight, decay) == pytest.approx((lam / (1 - lam), 1.6e-5 / (1 - lam)), rel=0.01)


def test_the_rule_takes_the_draw_with_the_lowest_validation_error(imported: Any, tmp_path: Path) -> None:
    module = imported("unit_tests")
    cells = module.Cells(tmp_path / "cells.jsonl")
    problem = module.Problem("1", n=20, steps=2)
    number = module.chosen(cells, "erm", problem, compiled=False)
    found = [cell["val"] for cell in cells.having(method="erm", stage="select")]
    sums = [sum(values) for values in zip(*found, strict=True)]
    assert len(found) == module.SELECTION_SEEDS and len(sums) == module.DRAWS
    assert sums[number] == min(sums) < max(sums)


@pytest.mark.parametrize("name", ["oracle", "irmv1", "ib-erm", "ib-irm", "vrex", "iga", "and-mask"])
def test_every_method_of_the_unit_tests_runs(imported: Any, tmp_path: Path, name: str) -> None:
    module = imported("unit_tests")
    cells = module.Cells(tmp_path / "cells.jsonl")
    module.measure(cells, name, module.Problem("2", n=20, steps=2), seeds=2, compiled=False)
    trials = [trial for cell in cells.having(stage="score") for trial in cell.get("trials", [cell])]
    assert len(trials) == 2
    assert all(0 <= error <= 1 for trial in trials for error in trial["test"])


def test_the_penalty_of_the_structural_equations_is_the_gradient_in_the_classifier(imported: Any) -> None:
    module = imported("linear_sem")
    x, y_EB, w = drawn(E * B, INPUTS), drawn(E, B, seed=1), torch.ones(INPUTS, 1, dtype=torch.float64)
    w.requires_grad_()
    model = module.representation(INPUTS).double()
    terms = module.irm.objective(Dims(1, INPUTS, E, E), module.METHODS["irm"][1])(
        step_of(x, y_EB, model), module.METHODS["irm"][1]
    )[1]
    expected = []
    for x_BF, y_B in zip(x.unflatten(0, (E, B)), y_EB, strict=True):
        risk = (model.features(x_BF) @ w - y_B[:, None]).square().mean()
        expected.append(torch.autograd.grad(risk, w)[0].square().mean())
    torch.testing.assert_close(terms["penalty"], torch.stack(expected).mean())


def test_compressed_rows_have_the_same_risk_and_penalty(imported: Any) -> None:
    module = imported("linear_sem")
    x, y = drawn(200, INPUTS), drawn(200, seed=1)
    few_x, few_y = (part.double() for part in module.compressed(x, y))
    assert len(few_x) == INPUTS + 1
    model, hp = module.representation(INPUTS).double(), module.METHODS["irm"][1]
    objective = module.irm.objective(Dims(1, INPUTS, 1, 1), hp)
    many, few = (objective(step_of(*rows, model), hp)[1] for rows in ((x, y[None]), (few_x, few_y[None])))
    for name in ("risk", "penalty"):
        torch.testing.assert_close(few[name], many[name], rtol=1e-5, atol=1e-5)


def test_v_rex_is_scaled_to_the_squared_difference_of_two_risks(imported: Any) -> None:
    recipe = imported("irm_colored_mnist").RECIPES["vrex"]
    step = step_of(drawn(2 * B, INPUTS), drawn(2, B, seed=1), linear(0))
    assert recipe.algorithm.objective is not None
    terms = recipe.algorithm.objective(Dims(1, INPUTS, 2, 2), recipe.hparams)(step, recipe.hparams)[1]
    torch.testing.assert_close(terms["penalty"], (step.risks_E[0] - step.risks_E[1]).square())


def test_the_wrong_channel_is_dark_and_colours_lie_as_often_as_said(imported: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    digits = torch.arange(20_000) % 10
    x, y = imported("irm_colored_mnist").colored(torch.full((20_000, 2, 2), 255), digits, 0.9, draws)
    lit = x.amax((2, 3))
    assert lit.sum(1).eq(1).all()
    assert ((digits < 5) != y).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (lit.argmax(1).bool() != y).float().mean().item() == pytest.approx(0.9, abs=0.02)


def step_of(x: Tensor, y_EB: Tensor, model: Model) -> Step:
    rows_EB = torch.arange(len(y_EB))[:, None].expand(y_EB.shape)
    return Step(
        x=x,
        targets_EB=y_EB,
        domain_EB=rows_EB,
        group_EB=rows_EB,
        index_EB=rows_EB,
        t=0,
        model=model,
        loss=squared,
    )


# --- the commands ----------------------------------------------------------------------------------

SMALLEST = {
    "unit_tests": [
        "--n=20",
        "--steps=2",
        "--seeds=2",
        "--examples",
        "1",
        "--methods",
        "erm",
        "--d-spu",
        "5",
        "--eager",
    ],
    "linear_sem": ["--repetitions=2", "--steps=2", "--eager"],
    "irm_colored_mnist": ["--data-root=DATA", "--steps=2", "--restarts=1", "--methods", "grayscale", "fishr"],
    "domainbed_colored_mnist": ["--data-root=DATA", "--steps=2", "--draws=1", "--model=linear"],
    "adaptation": ["--seeds=1", "--steps=5", "--draws=2"],
    "meta_dmoe": ["--seeds=1", "--steps=520"],
}
SHARED = {"common", "evidence", "vectorized"}
SIMULATED = {"comparisons"}


def test_every_benchmark_is_run_by_a_test() -> None:
    from test_benchmarks import SMALLEST as MEASURING_TIME

    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {
        *SMALLEST,
        *MEASURING_TIME,
        *SHARED,
        *SIMULATED,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_every_command_writes_its_table(imported: Any, name: str, tmp_path: Path) -> None:
    common: ModuleType = imported("common")
    with common.data_root() as (root, _):
        arguments = [argument.replace("DATA", root) for argument in SMALLEST[name]]
        where = [f"--cells={tmp_path / 'cells.jsonl'}", f"--out={tmp_path / 'table.md'}"]
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments, *where]
        done = subprocess.run(
            command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    judged = "lie in their bands" if name == "adaptation" else "| inside? |"
    assert judged in text and "Made by `python benchmarks/" in text
    cells = tmp_path / "cells.jsonl"
    assert name == "domainbed_colored_mnist" or all(map(json.loads, cells.read_text().splitlines()))


def test_simulated_comparisons_write_their_tables(
    imported: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["comparisons.py", "--tables=2", f"--out={out}"])
    imported("comparisons").main()
    assert out.read_text().count("\n| ---") == 4 and "Made by `python benchmarks/" in out.read_text()


def test_sign_flips_are_those_of_scipys_permutation_test(imported: Any) -> None:
    value_Rkn = np.random.RandomState(0).normal(0.5, 1, (2, 3, 7))
    exact = stats.permutation_test(
        (value_Rkn,), np.sum, permutation_type="samples", n_resamples=np.inf, axis=2, vectorized=True
    )
    assert np.allclose(imported("comparisons").flips(value_Rkn), exact.pvalue)
