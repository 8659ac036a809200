"""Every benchmark still runs, and compares what it says it compares."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from dgharness.algorithms.irmv1 import irmv1
from dgharness.data.tasks import cross_entropy
from dgharness.plugin import Dims
from dgharness.step import Step

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALLEST = {
    "step": ["--model", "linear", "--rounds", "2", "--steps", "2"],
    "tracking": [
        "--model",
        "linear",
        "--steps=2",
        "--evaluations=1",
        "--full-steps=4",
        "--full-evaluations=2",
    ],
    "cli": ["--rounds", "1"],
    "report": ["--runs", "200", "--checkpoints", "2", "--repeats", "1"],
    "manifest": ["--rounds", "1", "--rows", "2000"],
    "pipeline": ["--rounds", "1", "--images", "32", "--workers", "0", "1"],
    "cost": ["--rounds", "1", "--steps", "1", "--algorithms", "vrex"],
    "evaluation": [
        "--model",
        "linear",
        "--steps",
        "4",
        "--evaluations",
        "2",
        "--images",
        "64",
        "--rounds",
        "2",
    ],
}


@pytest.fixture
def step_benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step")


@pytest.mark.parametrize("name", ["forward_mode", "reverse_mode"])
def test_bare_loops_have_the_penalty_of_the_algorithm(step_benchmark: ModuleType, name: str) -> None:
    stream = torch.Generator().manual_seed(0)
    logits_EBC = torch.randn(2, 6, 2, generator=stream, dtype=torch.float64).requires_grad_()
    y_EB = torch.randint(2, (2, 6), generator=stream)
    own = getattr(step_benchmark, name)(logits_EBC, y_EB)
    harness = _penalty_of_the_algorithm(logits_EBC, y_EB)
    torch.testing.assert_close(own, harness)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits_EBC)[0] for value in (own, harness)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_benchmark_prints_a_table_and_the_machine(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SMALLEST[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout
    assert "| ---" in done.stdout
    assert not list(tmp_path.iterdir()), "a benchmark leaves nothing behind"


def _penalty_of_the_algorithm(logits_EBC: Tensor, y_EB: Tensor) -> Tensor:
    rows_EB = torch.arange(len(y_EB))[:, None].expand(y_EB.shape)
    model = SimpleNamespace(features=lambda x: x, classify=lambda z: z)
    step = Step(
        x=logits_EBC.flatten(0, 1),
        targets_EB=y_EB,
        domain_EB=rows_EB,
        group_EB=rows_EB,
        index_EB=rows_EB,
        model=model,
        loss=cross_entropy,
    )
    assert irmv1.objective is not None
    hp = irmv1.hparams()
    _, terms = irmv1.objective(Dims(outputs=2, features=2, domains=2, groups=2), hp)(step, hp)
    return terms["penalty"]
