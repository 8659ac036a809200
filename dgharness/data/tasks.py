"""What the outputs of a model mean: their loss, what is predicted, and how right it is.

Shapes: N examples, C outputs, T labels of one example, L places of a sequence, V tokens of a vocabulary; the
losses take any leading dimensions [...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgharness.errors import UsageError

Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What the outputs mean: how they are trained, read and scored.

    ``judge(kept, targets)`` says of each example how right it is, from 0 to 1, and what it costs ([N] each,
    NaN where nothing is known of it); classes and numbers have scores of their own and need none.
    ``keep(outputs, targets)`` is what evaluation holds on to where whole outputs would fill the memory.
    """

    name: str
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs [..., C], targets [...]) -> loss per example [...]
    predict: Callable[[Tensor], Tensor]  # outputs [..., C] -> predictions [...]
    judge: Judge | None = None
    keep: Callable[[Tensor, Tensor], Tensor] = lambda outputs, targets: outputs
    places: bool = False  # outputs are of many places of an example: a dimension more


def classification(outputs: int) -> Task:
    """Classes: cross-entropy, arg-max."""
    return Task("classification", outputs, cross_entropy, lambda logits: logits.argmax(-1))


def regression(outputs: int = 1) -> Task:
    """Numbers: squared error; several outputs are each held to the target."""
    return Task("regression", outputs, squared_error, lambda outputs: outputs.mean(-1))


def multilabel(outputs: int) -> Task:
    """Several yes-or-no labels an example, NaN where one is unknown: binary cross-entropy, logit above 0."""
    return Task(
        "multilabel",
        outputs,
        binary_cross_entropy,
        lambda logits: (logits > 0).to(logits.dtype),
        judge=judge_labels,
    )


def tokens(vocabulary: int) -> Task:
    """A token for every place of a sequence, NaN where none is asked for: cross-entropy, arg-max.

    What evaluation keeps is [N, L, 2]: the token that is predicted, and its loss.
    """
    return Task(
        "tokens",
        vocabulary,
        token_cross_entropy,
        lambda logits: logits.argmax(-1),
        judge=judge_tokens,
        keep=keep_tokens,
        places=True,
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per example, of [..., C] and [...].

    >>> cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)).shape
    torch.Size([2, 3])
    """
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.unflatten(0, targets.shape)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error per example, of [..., C] and [...], averaged over the outputs; 0 where a target is NaN.

    >>> squared_error(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, torch.nan]))
    tensor([4., 0.])
    """
    error = outputs - targets.nan_to_num().unsqueeze(-1)
    return torch.where(targets.isnan().unsqueeze(-1), 0.0, error).square().mean(-1)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known labels of each example, of [..., T] twice; 0 without any.

    >>> binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, torch.nan]]))
    tensor([0.6931])
    """
    known = ~targets.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (loss * known).sum(-1) / known.sum(-1).clamp(min=1)


def judge_labels(logits_NT: Tensor, targets_NT: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the known labels of each example that is right, and their mean cross-entropy.

    >>> judge_labels(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]))[0]
    tensor([0.5000], dtype=torch.float64)
    """
    known_NT = ~targets_NT.isnan()
    logits_NT, count_N = logits_NT.double(), known_NT.sum(-1)
    right_NT = ((logits_NT > 0) == (targets_NT > 0.5)) & known_NT & ~logits_NT.isnan()
    loss_N = binary_cross_entropy(logits_NT, targets_NT.double())
    return right_NT.sum(-1).double() / count_N, torch.where(count_N > 0, loss_N, torch.nan)


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the known tokens of each example, of [..., L, V] and [..., L]; 0 without any.

    >>> token_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[3.0, torch.nan]]))
    tensor([1.3863])
    """
    if logits.shape[:-1] != targets.shape:
        raise UsageError(
            f"the task tokens needs outputs [{targets.shape[-1]}, vocabulary] of each example, and this "
            f"model gives {list(logits.shape[targets.dim() - 1 :])}; choose the model code-gpt"
        )
    known = ~targets.isnan()
    loss = cross_entropy(logits, targets.nan_to_num().long())
    return (loss * known).sum(-1) / known.sum(-1).clamp(min=1)


def keep_tokens(logits_NLV: Tensor, targets_NL: Tensor) -> Tensor:
    """The predicted token and the loss at every place, [N, L, 2]; the loss is NaN where no token is known."""
    loss_NL = cross_entropy(logits_NLV.float(), targets_NL.nan_to_num().long())
    predicted_NL = logits_NLV.argmax(-1).to(loss_NL.dtype)
    return torch.stack([predicted_NL, torch.where(targets_NL.isnan(), torch.nan, loss_NL)], dim=-1)


def judge_tokens(kept_NL2: Tensor, targets_NL: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the known tokens of each example that is right, and their mean cross-entropy.

    >>> judge_tokens(torch.tensor([[[7.0, 0.5], [3.0, 1.5]]]), torch.tensor([[7.0, 4.0]]))
    (tensor([0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    known_NL = ~targets_NL.isnan()
    right_NL = (kept_NL2[..., 0] == targets_NL) & known_NL
    return right_NL.sum(-1).double() / known_NL.sum(-1), kept_NL2[..., 1].double().nanmean(-1)
