"""Linear structural equations of the IRM paper: errors of the estimated coefficients.

Published: Arjovsky et al., "Invariant Risk Minimization", 2019, arXiv:1907.02893, section 5.1, from the
results file of the authors' code (200 repetitions; mean squared error of the coefficients of causes / of
effects, not scrambled): ``PUBLISHED``. The standard deviations over repetitions are rounded from some
thirty of them.

Bands, fixed before measuring: the published mean ± three standard errors of the difference between it and
a mean over as many repetitions as here.

Protocol, as in the authors' code: 10 inputs, 1000 examples in each of the environments with noise 0.2, 2
and 5. The representation is a 10 x 10 matrix that starts as the identity, the classifier a vector of ones
that stays; the dummy is that whole vector. IRM minimises reg x error + (1 - reg) x penalty on the first
two environments, 100 000 steps of Adam at 1e-3 from each reg in {0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1}, and
takes the reg with the lowest error in the last. ERM is least squares on all three.

``irmv1`` has the scalar dummy of the paper's text and of DomainBed, which is another penalty (of the
square of the sum of the ten derivatives instead of the mean of their squares). The published one is
written below as a penalty of its own; ``irmv1`` is shown beside it, and not judged.

Reduced: fewer repetitions (column n). Exact, but cheaper: squared loss and its derivatives depend on an
environment through its second moments alone, so 1000 examples are replaced by the 11 rows with the same
moments (a triangular factor). ERM is fitted by the algorithm ``erm`` with Adam to the least-squares
solution, which the authors take in closed form.

Shapes: P problems (a setting and a repetition), N = E*B rows, E environments, F inputs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from evidence import Cells, Row, difference, markdown, parser, write
from torch import Tensor, nn
from torch.func import grad
from vectorized import train

from dgharness.algorithms.erm import erm
from dgharness.algorithms.irmv1 import IRMv1Hparams, irmv1
from dgharness.data.synthetic.linear_sem import chain
from dgharness.models.model import Model
from dgharness.plugin import AlgorithmSpec, Hparams, PenaltyHparams, Step, penalty

REGS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
INFINITE = 1e12  # the penalty's weight that stands for reg = 0; the loss is divided by it
SETTINGS = [(hidden, hetero) for hidden in (False, True) for hetero in (True, False)]
PUBLISHED = {  # (hidden, hetero): method: mean and deviation of the errors of causes, and of effects
    (False, True): {"erm": ((0.821, 0.012), (0.821, 0.010)), "irm": ((0.257, 0.018), (0.333, 0.015))},
    (False, False): {"erm": ((0.0091, 0.001), (0.0090, 0.001)), "irm": ((0.0029, 0.002), (0.0024, 0.002))},
    (True, True): {"erm": ((0.774, 0.040), (0.774, 0.030)), "irm": ((0.215, 0.027), (0.340, 0.014))},
    (True, False): {"erm": ((0.0189, 0.010), (0.0179, 0.008)), "irm": ((0.0152, 0.014), (0.0142, 0.011))},
}
PUBLISHED_REPETITIONS = 200


@penalty()
def irm(step: Step, hp: PenaltyHparams) -> Tensor:
    """Mean square of the derivatives of a domain's risk in the entries of its classifier."""
    slope_EBC = grad(lambda z: step.loss(z, step.targets_EB).sum())(step.logits_EBC)
    return (slope_EBC * step.features_EBD).mean(1).square().mean()


METHODS: dict[str, tuple[AlgorithmSpec, Hparams]] = {
    "irm": (irm, PenaltyHparams(rescale=True)),
    "irmv1": (irmv1, IRMv1Hparams(rescale=True, unbiased=False, anneal_steps=0)),
}


class Ones(nn.Module):
    """The sum of the features: a classifier that does not train."""

    w: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("w", torch.ones(1, features))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.w)


def representation(inputs: int) -> Model:
    phi = nn.Linear(inputs, inputs, bias=False)
    nn.init.eye_(phi.weight)
    return Model(phi, Ones(inputs))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[..., 0] - targets).square()


def compressed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows as columns of (x, y), with the same second moments."""
    rows = torch.linalg.qr(torch.cat([x, y[:, None]], 1).double())[1]
    rows = (rows * math.sqrt(len(rows) / len(x))).float()
    return rows[:, :-1], rows[:, -1]


def run(method: str, repetitions: int, steps: int, compiled: bool) -> Mapping[str, Any]:
    """Errors of the coefficients of causes and of effects, by setting and repetition, and the chosen regs."""
    problems = [
        chain(hidden=hidden, hetero=hetero, seed=seed)
        for hidden, hetero in SETTINGS
        for seed in range(repetitions)
    ]
    moments = [[compressed(one.x, one.y_N) for one in problem["train"].values()] for problem in problems]
    x_PNF = torch.stack([torch.cat([x for x, _ in each]) for each in moments])
    y_PEB = torch.stack([torch.stack([y for _, y in each]) for each in moments])
    fit = least_squares if method == "erm" else chosen_by_the_last
    found_PF, regs = fit(method, x_PNF, y_PEB, steps, compiled)
    square = (found_PF - torch.stack([problem.solution_F for problem in problems])).square()
    half = found_PF.shape[1] // 2
    return {
        name: {
            "causes": square[rows, :half].mean(1).tolist(),
            "effects": square[rows, half:].mean(1).tolist(),
            "regs": regs[rows],
        }
        for name, rows in by_setting(repetitions).items()
    }


def by_setting(repetitions: int) -> dict[str, slice]:
    return {
        name_of(*setting): slice(number * repetitions, (number + 1) * repetitions)
        for number, setting in enumerate(SETTINGS)
    }


def name_of(hidden: bool, hetero: bool) -> str:
    return f"hidden={hidden:d} hetero={hetero:d}"


def least_squares(
    method: str, x_PNF: Tensor, y_PEB: Tensor, steps: int, compiled: bool
) -> tuple[Tensor, list[float]]:
    """Coefficients by ERM on all environments."""
    problems, _, inputs = x_PNF.shape
    weights = train(
        erm,
        [Model(nn.Identity(), nn.Linear(inputs, 1, bias=False)) for _ in range(problems)],
        x_PNF,
        y_PEB.flatten(1)[:, None],
        Hparams(),
        loss=squared,
        lr_R=torch.full((problems,), 1e-2),
        weight_decay_R=torch.zeros(problems),
        steps=min(steps, 20_000),
        own_data=True,
        compiled=compiled,
    )
    return weights["classifier.weight"][:, 0], []


def chosen_by_the_last(
    method: str, x_PNF: Tensor, y_PEB: Tensor, steps: int, compiled: bool
) -> tuple[Tensor, list[float]]:
    """Coefficients by IRM on the first environments, for the reg that is best in the last, and those regs."""
    spec, hp = METHODS[method]
    problems, _, inputs = x_PNF.shape
    training = x_PNF.shape[1] - y_PEB.shape[2]
    trials = problems * len(REGS)
    weights = train(
        spec,
        [representation(inputs) for _ in range(trials)],
        x_PNF[:, :training].repeat_interleave(len(REGS), 0),
        y_PEB[:, :-1].repeat_interleave(len(REGS), 0),
        hp,
        loss=squared,
        lr_R=torch.full((trials,), 1e-3),
        weight_decay_R=torch.zeros(trials),
        numbers={"weight": torch.tensor([(1 - reg) / reg if reg else INFINITE for reg in REGS] * problems)},
        steps=steps,
        own_data=True,
        compiled=compiled,
    )
    found = weights["featurizer.weight"].sum(1).unflatten(0, (problems, len(REGS)))  # of the inputs
    best_P = (found @ x_PNF[:, training:].mT - y_PEB[:, -1:]).square().mean(-1).argmin(1)
    return found[torch.arange(problems), best_P], [REGS[number] for number in best_P.tolist()]


def report(cells: Cells, options: argparse.Namespace) -> None:
    rows = []
    for hidden, hetero in SETTINGS:
        for method in ("erm", *METHODS):
            measured = cells.having(method=method, repetitions=options.repetitions, steps=options.steps)
            found = measured[0][name_of(hidden, hetero)] if measured else {}
            regs = found.get("regs", [])
            note = ", ".join(f"{reg:g} ({regs.count(reg)})" for reg in REGS if reg in regs)
            for number, part in enumerate(("causes", "effects")):
                what = ("yes" if hidden else "no", "target" if hetero else "effects", method, part)
                published = PUBLISHED[hidden, hetero].get(method)
                if published is None:  # shown where it was measured, and judged by nothing
                    rows += [Row(what, "", None, found[part], note)] if found else []
                    continue
                mean, deviation = published[number]
                band = difference(mean, deviation, PUBLISHED_REPETITIONS, options.repetitions)
                rows.append(Row(what, f"{mean} ± {deviation}", band, found.get(part, []), note))
    write(
        options.out,
        "Linear structural equations of the IRM paper",
        f"""
        Mean squared error of the coefficients, mean ± standard deviation over n repetitions (published:
        {PUBLISHED_REPETITIONS}), {options.steps} steps. Inputs not scrambled. Note: which reg the last
        environment chose, and how often. `irm` is the authors' penalty (a dummy on every feature), `irmv1`
        the scalar dummy, for which nothing was published here. Reduced: fewer repetitions. Details: the head
        of `benchmarks/linear_sem.py`.
        """,
        [markdown(("hidden", "noise of", "method", "coefficients"), rows, 4)],
    )


def main() -> None:
    arguments = parser(__doc__, "linear_sem")
    arguments.add_argument("--repetitions", type=int, default=10)
    arguments.add_argument("--steps", type=int, default=100_000)
    arguments.add_argument("--eager", action="store_true", help="do without a C++ compiler, and take longer")
    options = arguments.parse_args()
    cells = Cells(options.cells)
    report(cells, options)
    for method in [] if options.table else ("erm", *METHODS):
        cells.measure(
            {"method": method, "repetitions": options.repetitions, "steps": options.steps},
            lambda method=method: run(method, options.repetitions, options.steps, not options.eager),
        )
        report(cells, options)


if __name__ == "__main__":
    main()
