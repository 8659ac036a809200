"""Linear unit tests for invariance: the published table, methods by examples.

Published: Aubin et al., "Linear unit-tests for invariance discovery", 2021, arXiv:2102.10867, the table
of the authors' repository (three environments, 5 invariant and 5 spurious inputs, 50 data seeds; mean
squared error in example 1, share of errors elsewhere, on the test split, mean over the environments; ±
standard deviation over data seeds): ``PUBLISHED`` below. IB-ERM and IB-IRM are of Ahuja et al., NeurIPS
2021, arXiv:2106.06607, who use the same suite.

Bands, fixed before measuring: the published mean ± three standard errors of the difference between it and
a mean over as many data seeds as here, and at least ± 0.1 in example 1 and ± 0.01 elsewhere. V-REx has no
published value: it is a negative control, which must fail (above 20) in example 1, where the noise
differs between environments. Without spurious inputs every method must equal the oracle.

Protocol, as published: one linear output, full batches of 3 x 10 000, 10 000 steps of Adam (ANDMask:
plain gradient steps); 20 draws of hyperparameters, the first of them the defaults, all 20 the same
numbers as in the authors' code, which seeds Python's generator by the draw. The rule takes the draw with
the lowest sum of validation errors (the validation split has the spurious link, as training has; the
oracle's has not), mean over data seeds. Test errors choose nothing.

Reduced: fewer data seeds (column n), and in the column ``draw``
- ``published``: the draw that won in the published table over 50 data seeds is taken from there;
- ``chosen``: the rule was applied here, on the first two data seeds instead of 50;
- ``as in N``: the published winner of example N, which is the same problem before the inputs are turned;
- ``as with 5``: without spurious inputs, the draw of the same example with five of them. Where the rule
  can be applied cheaply, it is applied as well, since the published runs without spurious inputs were
  searched too;
- ``one setting``: no search.

The published losses are (1 - lambda) R + lambda P + ib V. Divided by 1 - lambda they are R + w P + w' V
with w = lambda / (1 - lambda), w' = ib / (1 - lambda), and so must be the weight decay, which Adam adds
to the gradient; what is left of the factor is Adam's epsilon of 1e-8. IB-ERM has no such factor.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from evidence import Band, Cells, Row, above, difference, markdown, parser, write
from torch import Tensor, nn
from vectorized import predict, train

from dgharness.algorithms.and_mask import ANDMaskHparams, and_mask
from dgharness.algorithms.erm import erm
from dgharness.algorithms.ib_erm import IBERMHparams, ib_erm
from dgharness.algorithms.ib_irm import IBIRMHparams, ib_irm
from dgharness.algorithms.iga import IGAHparams, iga
from dgharness.algorithms.irmv1 import IRMv1Hparams, irmv1
from dgharness.algorithms.vrex import VRExHparams, vrex
from dgharness.data.synthetic.environments import Examples
from dgharness.data.synthetic.unit_tests import example_1, example_2, example_3
from dgharness.hparams import Hparams
from dgharness.models.model import Model
from dgharness.plugin import AlgorithmSpec, Dims
from dgharness.seeds import seeded
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig

DRAWS, SELECTION_SEEDS, PUBLISHED_SEEDS = 20, 2, 50
EXAMPLES = ("1", "2", "3", "1s", "2s", "3s")
PUBLISHED = {
    "oracle": [(10.419, 0.162), (0.000, 0.0), (0.013, 0.001), (10.451, 0.188), (0.000, 0.0), (0.013, 0.001)],
    "erm": [(13.363, 1.487), (0.421, 0.007), (0.480, 0.073), (13.328, 1.489), (0.449, 0.005), (0.485, 0.064)],
    "irmv1": [
        (11.150, 0.710),
        (0.450, 0.005),
        (0.485, 0.067),
        (11.066, 0.681),
        (0.449, 0.005),
        (0.485, 0.067),
    ],
    "iga": [(17.470, 2.165), (0.450, 0.005), (0.470, 0.094), (17.679, 3.316), (0.449, 0.005), (0.485, 0.063)],
    "and-mask": [
        (10.594, 0.170),
        (0.443, 0.023),
        (0.344, 0.217),
        (11.240, 0.741),
        (0.449, 0.005),
        (0.473, 0.077),
    ],
    "ib-erm": [(12.96, 1.30), (0.00, 0.00), (0.49, 0.06), None, (0.00, 0.01), None],
    "ib-irm": [(11.68, 0.90), (0.00, 0.01), (0.48, 0.07), None, (0.06, 0.12), None],
}
WINNERS = {  # draw by example, in the published table
    "erm": {"1": 4, "2": 1, "3": 1},
    "irmv1": {"1": 15, "2": 1, "3": 4},
    "iga": {"1": 19, "2": 6, "3": 7},
    "and-mask": {"1": 1, "2": 1, "3": 13},
}
WITHOUT_SPURIOUS = ("oracle", "erm", "irmv1", "iga", "and-mask")


@dataclass(frozen=True)
class Draw:
    """One draw of hyperparameters: of the optimizer, and numbers of the method."""

    lr: float
    weight_decay: float
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Method:
    spec: AlgorithmSpec
    hparams: Hparams  # but for the numbers
    draw: Callable[[int], Draw]
    pooled: bool = False  # all environments in one row


def adam(
    own: Callable[[float, float, Sequence[float]], Draw], *ranges: tuple[float, tuple[float, float]]
) -> Any:
    """Draws as the authors' code makes them: learning rate, weight decay, then the method's own numbers.

    A range is (default, bounds of the exponent of 1 - 10^u).
    """

    def draw(number: int) -> Draw:
        if number == 0:
            return own(1e-3, 0.0, [default for default, _ in ranges])
        draws = random.Random(1000 + number)
        lr, decay = 10 ** draws.uniform(-4, -2), 10 ** draws.uniform(-6, -2)
        return own(lr, decay, [1 - 10 ** draws.uniform(*bounds) for _, bounds in ranges])

    return draw


def iga_draw(number: int) -> Draw:
    draws = random.Random(1000 + number)
    drawn = 10 ** draws.uniform(-4, -2), 10 ** draws.uniform(-6, -2), 10 ** draws.uniform(1, 5)
    lr, decay, weight = drawn if number else (1e-3, 0.0, 1000.0)
    return Draw(lr, decay, {"weight": weight})


def and_mask_draw(number: int) -> Draw:
    draws = random.Random(1000 + number)
    drawn = 10 ** draws.uniform(-4, 0), 10 ** draws.uniform(-5, 0), draws.uniform(0.8, 1)
    lr, decay, tau = drawn if number else (1e-3, 0.0, 0.9)
    return Draw(lr, decay, {"tau": tau})


IRM, IB = (0.9, (-3.0, -0.3)), (0.1, (-2.0, 0.0))
AFFINE = {"unbiased": False, "affine": True}
PLAIN = Method(erm, Hparams(), adam(lambda lr, decay, _: Draw(lr, decay, {})), pooled=True)
METHODS = {
    "oracle": PLAIN,
    "erm": PLAIN,
    "irmv1": Method(
        irmv1,
        IRMv1Hparams(anneal_steps=0, **AFFINE),
        adam(lambda lr, decay, own: Draw(lr, decay / (1 - own[0]), {"weight": own[0] / (1 - own[0])}), IRM),
    ),
    "iga": Method(iga, IGAHparams(), iga_draw),
    "and-mask": Method(and_mask, ANDMaskHparams(variant="unit-tests"), and_mask_draw),
    "ib-erm": Method(
        ib_erm,
        IBERMHparams(anneal_steps=0, of="logits"),
        adam(lambda lr, decay, own: Draw(lr, decay, {"weight": own[0]}), IB),
        pooled=True,
    ),
    "ib-irm": Method(
        ib_irm,
        IBIRMHparams(irm_anneal_steps=0, ib_anneal_steps=0, of="logits", **AFFINE),
        adam(
            lambda lr, decay, own: Draw(
                lr,
                decay / (1 - own[0]),
                {"irm_weight": own[0] / (1 - own[0]), "ib_weight": own[1] / (1 - own[0])},
            ),
            IRM,
            IB,
        ),
    ),
    "vrex": Method(vrex, VRExHparams(anneal_steps=0), lambda number: Draw(1e-3, 0.0, {"weight": 10.0})),
}


# --- one problem, and its errors -------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    example: str
    n: int = 10_000
    steps: int = 10_000
    d_spu: int = 5

    @property
    def inputs(self) -> int:
        return 5 + self.d_spu

    def splits(self, seed: int, oracle: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs [E*B, F] and targets [E, B] by split."""
        generate = {"1": example_1, "2": example_2, "3": example_3}[self.example[0]]
        generated = generate(
            n=self.n, d_spu=self.d_spu, scramble=self.example.endswith("s"), oracle=oracle, seed=seed
        )

        def stacked(environments: Mapping[str, Examples]) -> tuple[Tensor, Tensor]:
            found = list(environments.values())
            return torch.cat([one.x for one in found]), torch.stack([one.y_N for one in found])

        return {split: stacked(generated[split]) for split in ("train", "val", "test")}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.example.startswith("1"):
            return (outputs[..., 0] - targets).square()
        return F.binary_cross_entropy_with_logits(
            outputs[..., 0], targets.to(outputs.dtype), reduction="none"
        )

    def errors(self, outputs: Tensor, targets_EB: Tensor) -> list[float]:
        """By environment, of outputs [E*B, 1]."""
        outputs_EB = outputs[:, 0].view_as(targets_EB)
        if self.example.startswith("1"):
            return (outputs_EB - targets_EB).square().mean(1).tolist()
        return ((outputs_EB > 0) != targets_EB.bool()).float().mean(1).tolist()


def linear(inputs: int, seed: int) -> Model:
    """One linear output on the input."""
    with seeded(seed, "init/model"):
        return Model(nn.Identity(), nn.Linear(inputs, 1))


def side_by_side(
    problem: Problem,
    method: Method,
    draws: Sequence[Draw],
    splits: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
    compiled: bool,
) -> list[dict[str, list[float]]]:
    """Errors by split and environment, one trial per draw; one of ``splits`` serves all, or each has one."""
    own_data = len(splits) == len(draws)

    def given(split: str) -> tuple[Tensor, Tensor]:
        if not own_data:
            return splits[0][split]
        return torch.stack([one[split][0] for one in splits]), torch.stack([one[split][1] for one in splits])

    x, y_EB = given("train")
    models = [linear(problem.inputs, seed) for seed in range(len(draws))]
    weights = train(
        method.spec,
        models,
        x,
        y_EB.flatten(-2).unsqueeze(-2) if method.pooled else y_EB,
        method.hparams,
        loss=problem.loss,
        lr_R=torch.tensor([draw.lr for draw in draws]),
        weight_decay_R=torch.tensor([draw.weight_decay for draw in draws]),
        numbers={name: torch.tensor([draw.numbers[name] for draw in draws]) for name in draws[0].numbers},
        steps=problem.steps,
        own_data=own_data,
        compiled=compiled,
    )
    found: list[dict[str, list[float]]] = [{} for _ in draws]
    for split in ("val", "test"):
        x, y_EB = given(split)
        for number, outputs in enumerate(predict(models[0], weights, x, own_data)):
            found[number][split] = problem.errors(outputs, y_EB[number] if own_data else y_EB)
    return found


def one_by_one(
    problem: Problem, method: Method, draw: Draw, splits: Mapping[str, tuple[Tensor, Tensor]], seed: int
) -> dict[str, list[float]]:
    """Errors by split and environment of one Learner."""
    plain_steps = method.spec is and_mask
    learner = Learner(
        method.spec,
        linear(problem.inputs, seed),
        Dims(1, problem.inputs, 3, 3),
        method.hparams.model_copy(update=dict(draw.numbers)),
        OptimizerConfig(
            name="sgd" if plain_steps else "adam", momentum=0.0, lr=draw.lr, weight_decay=draw.weight_decay
        ),
        seed,
        loss=problem.loss,
    )
    for _ in range(problem.steps):
        learner.step(*splits["train"])
    return {
        split: problem.errors(learner.predict(splits[split][0]), splits[split][1])
        for split in ("val", "test")
    }


# --- the protocol ----------------------------------------------------------------------------------


def measure(cells: Cells, name: str, problem: Problem, seeds: int, compiled: bool) -> None:
    """Score the method on ``seeds`` data seeds, with the draw that the protocol gives it."""
    method = METHODS[name]
    with_spurious = replace(problem, d_spu=5)
    winners = WINNERS.get(name, {})
    if name == "vrex":
        number, how = 0, "one setting"
    elif problem.example in winners:
        number, how = winners[problem.example], "published"
    elif method.spec.rung == 3:
        number, how = winners[problem.example[0]], f"as in {problem.example[0]}"
    else:
        number, how = chosen(cells, name, with_spurious, compiled), "chosen"
    if problem == with_spurious:
        score(cells, name, problem, number, how, seeds, compiled)
        return
    score(cells, name, problem, number, "as with 5", seeds, compiled)
    if method.spec.rung < 3 and name in WINNERS:
        score(cells, name, problem, chosen(cells, name, problem, compiled), "chosen", seeds, compiled)


def score(
    cells: Cells, name: str, problem: Problem, number: int, how: str, seeds: int, compiled: bool
) -> None:
    """Errors with one draw on every data seed."""
    method, oracle = METHODS[name], name == "oracle"
    draw, key = method.draw(number), {"method": name, **vars(problem), "stage": "score", "how": how}
    if method.spec.rung == 3:
        for seed in range(seeds):
            cells.measure(
                {**key, "seed": seed},
                lambda seed=seed: {
                    "draw": number,
                    **one_by_one(problem, method, draw, problem.splits(seed, oracle), seed),
                },
            )
        return

    def scores() -> dict[str, Any]:
        splits = [problem.splits(seed, oracle) for seed in range(seeds)]
        return {"draw": number, "trials": side_by_side(problem, method, [draw] * seeds, splits, compiled)}

    cells.measure({**key, "seeds": seeds}, scores)


def chosen(cells: Cells, name: str, problem: Problem, compiled: bool) -> int:
    """The published rule: lowest mean over data seeds of the summed validation errors."""
    method, oracle = METHODS[name], name == "oracle"
    draws = [method.draw(number) for number in range(DRAWS)]
    sums = [0.0] * DRAWS
    for seed in range(SELECTION_SEEDS):
        key = {"method": name, **vars(problem), "stage": "select", "seed": seed}
        cells.measure(
            key,
            lambda seed=seed: {
                "val": [
                    sum(found["val"])
                    for found in side_by_side(
                        problem, method, draws, [problem.splits(seed, oracle)], compiled
                    )
                ]
            },
        )
        sums = [a + b for a, b in zip(sums, cells.having(**key)[0]["val"], strict=True)]
    return sums.index(min(sums))


# --- the report ------------------------------------------------------------------------------------


def rows(cells: Cells, options: argparse.Namespace, d_spu: int) -> list[Row]:
    found = []
    for example, name in itertools.product(EXAMPLES, METHODS):
        if not judged(name, example, d_spu):
            continue
        key = {"method": name, "example": example, "n": options.n, "steps": options.steps, "d_spu": d_spu}
        scored = [
            cell
            for cell in cells.having(**key, stage="score")
            if cell["key"].get("seeds", options.seeds) == options.seeds
        ]
        for how in dict.fromkeys(cell["key"]["how"] for cell in scored) or [""]:
            own = [cell for cell in scored if cell["key"]["how"] == how]
            trials = [trial for cell in own for trial in cell.get("trials", [cell])]
            values = [statistics.fmean(trial["test"]) for trial in trials]
            environments = zip(*[trial["test"] for trial in trials], strict=True)
            note = " / ".join(f"{statistics.fmean(errors):.3f}" for errors in environments)
            draw = f"{own[0]['draw']}, {how}" if own else ""
            published, band = expectation(name, example, d_spu, len(values) or options.seeds)
            found.append(Row((example, name, draw), published, band, values, note))
    return found


def judged(name: str, example: str, d_spu: int) -> bool:
    """Whether something is known to compare with."""
    if d_spu == 0:
        return name in WITHOUT_SPURIOUS and not example.endswith("s")
    if name == "vrex":
        return example == "1"
    return PUBLISHED[name][EXAMPLES.index(example)] is not None


def expectation(name: str, example: str, d_spu: int, seeds: int) -> tuple[str, Band]:
    if name == "vrex":
        return "fails", above(20)
    value = PUBLISHED["oracle" if d_spu == 0 else name][EXAMPLES.index(example)]
    assert value is not None
    floor = 0.1 if example.startswith("1") else 0.01
    return f"{value[0]:.3f} ± {value[1]:.3f}", difference(*value, PUBLISHED_SEEDS, seeds, floor)


def report(cells: Cells, options: argparse.Namespace) -> None:
    leading = ("example", "method", "draw")
    write(
        options.out,
        "Linear unit tests for invariance",
        f"""
        Test error (mean squared error in example 1, share of errors elsewhere), mean ± standard deviation
        over n data seeds (published: {PUBLISHED_SEEDS}); note: by environment. Full batches of 3 x
        {options.n}, {options.steps} steps. Bands: three standard errors of the difference of the two means,
        at least 0.1 in example 1 and 0.01 elsewhere. Column draw: number of the hyperparameter draw, and who
        chose it: the published table over {PUBLISHED_SEEDS} data seeds, or the published rule (validation
        error) on {SELECTION_SEEDS} data seeds here. Reduced: fewer data seeds. Details: the head of
        `benchmarks/unit_tests.py`.
        """,
        [
            markdown(leading, rows(cells, options, 5), 3),
            "Without spurious inputs every method should equal the oracle:",
            markdown(leading, rows(cells, options, 0), 3),
        ],
    )


def main() -> None:
    arguments = parser(__doc__, "unit_tests")
    arguments.add_argument("--examples", nargs="*", default=list(EXAMPLES), choices=EXAMPLES)
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments.add_argument("--seeds", type=int, default=10, help="data seeds")
    arguments.add_argument("--seeds-one-by-one", type=int, default=5, help="data seeds of iga and and-mask")
    arguments.add_argument("--d-spu", type=int, nargs="*", default=[5, 0], choices=[5, 0])
    arguments.add_argument("--n", type=int, default=10_000)
    arguments.add_argument("--steps", type=int, default=10_000)
    arguments.add_argument("--eager", action="store_true", help="do without a C++ compiler, and take longer")
    options = arguments.parse_args()
    cells = Cells(options.cells)
    report(cells, options)
    wanted = itertools.product(options.d_spu, options.examples, options.methods)
    for d_spu, example, name in [] if options.table else wanted:
        if judged(name, example, d_spu):
            seeds = options.seeds_one_by_one if METHODS[name].spec.rung == 3 else options.seeds
            measure(cells, name, Problem(example, options.n, options.steps, d_spu), seeds, not options.eager)
            report(cells, options)


if __name__ == "__main__":
    main()
