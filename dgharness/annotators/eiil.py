"""Splits the training data into the two domains under which a reference model is least invariant.

Paper: Creager, Jacobsen and Zemel, "Environment Inference for Invariant Learning", ICML 2021,
    arXiv:2010.07249.
Equation: max_q 1/2 sum_{e=0,1} ( (1/n) sum_i s_i^e d/dw l(w f_i, y_i)|_{w=1} )^2, s^0 = sigmoid(q),
    s^1 = 1 - s^0, f the logits of a model trained on the risk alone; i is in domain 0 where q_i > 0
Agrees with: the authors' code: sums over a domain are divided by all n examples, q starts as standard
    normal, and Adam sees all examples at each step. The slope, (p_i - y_i) f_i for two classes and
    sum_c (p_ic - y_ic) f_ic for more, is found once, since the reference stays as it is. The reference has
    the run's architecture, and weight decay in place of the code's explicit squared norm. Domains that the
    data come with are not looked at.
Trust: verified
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor
from torch.func import jvp

from dgharness.data.tasks import cross_entropy, squared_error
from dgharness.errors import UsageError
from dgharness.plugin import Annotated, Hparams, Source, Structural, annotator
from dgharness.seeds import generator, seeded

# Shapes: L training rows, N examples at a time, C outputs.

CHUNK = 1024  # examples that pass the reference at once


class EIILHparams(Hparams):
    steps: Annotated[NonNegativeInt, Structural] = 501
    """Full-batch Adam updates of the reference model; it should have learnt the shortcut and little else."""
    lr: PositiveFloat = 4.9e-4
    """Learning rate of the reference model."""
    weight_decay: NonNegativeFloat = 2e-3
    """Weight decay of the reference model."""
    inference_steps: Annotated[NonNegativeInt, Structural] = 10_000
    """Adam updates of the split."""
    inference_lr: PositiveFloat = 1e-3
    """Learning rate of the split."""


@annotator(EIILHparams)
def eiil(source: Source, new_model: Callable[[], Any], hp: EIILHparams, seed: int) -> dict[str, Tensor]:
    with seeded(seed, "eiil/reference"):
        model = reference(source, new_model(), hp)
    domain_L = split(slopes(source, model), hp, generator(seed, "eiil/split"))
    sizes = domain_L.bincount(minlength=2).tolist()
    if 0 in sizes:
        raise UsageError(
            f"eiil put all {sum(sizes)} training examples into one domain; give the reference model another "
            "training (annotator.steps, annotator.lr) or the split more steps (annotator.inference_steps)"
        )
    return {"domain": domain_L}


def reference(source: Source, model: Any, hp: EIILHparams) -> Any:
    """The model after full-batch Adam on the plain risk, in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=hp.lr, weight_decay=hp.weight_decay)
    total = len(source.columns["y"])
    model.train()
    for _ in range(hp.steps):
        optimizer.zero_grad()
        for batch in source.batches("train", CHUNK):
            (loss(model(batch.x), batch.targets_EB[0]).sum() / total).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def slopes(source: Source, model: Any) -> Tensor:
    """Derivative [L] of every training example's loss in a factor of its logits, at 1."""
    slope = []
    for batch in source.batches("train", CHUNK):
        logits_NC, y_N = model(batch.x), batch.targets_EB[0]
        slope.append(jvp(lambda f, y_N=y_N: loss(f, y_N), (logits_NC,), (logits_NC,))[1])
    return torch.cat(slope)


def split(slope_L: Tensor, hp: EIILHparams, draws: torch.Generator) -> Tensor:
    """The domain [L] of every example, 0 or 1.

    >>> slope_L = torch.tensor([-1.0, -2.0, 3.0, -1.0, 1.0])
    >>> hp = EIILHparams(inference_steps=200, inference_lr=0.1)
    >>> split(slope_L, hp, torch.Generator().manual_seed(0))
    tensor([0, 0, 1, 0, 1])
    """
    q_L = torch.randn(len(slope_L), generator=draws).to(slope_L)
    optimizer = torch.optim.Adam([q_L], lr=hp.inference_lr)
    for _ in range(hp.inference_steps):
        # The derivative of the shares' mean slope in q; that of the other domain is its negative.
        share_L = q_L.sigmoid()
        per_q_L = share_L * (1 - share_L) * slope_L / len(slope_L)
        first, second = (share_L * slope_L).mean(), ((1 - share_L) * slope_L).mean()
        q_L.grad = -(first - second) * per_q_L
        optimizer.step()
    return (q_L <= 0).long()


def loss(outputs_NC: Tensor, y_N: Tensor) -> Tensor:
    """Cross-entropy per example, or the squared error where the targets are numbers."""
    return (squared_error if y_N.is_floating_point() else cross_entropy)(outputs_NC, y_N)
