"""Every metric of stored predictions in one long table: by domain, group and class, averages and the worst.

Shapes: N examples, C classes, T labels, K slices, B draws, M metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgharness.metrics import bootstrap as draw
from dgharness.metrics.classification import RANKED, Classified, by_slice, per_class, ranked
from dgharness.metrics.ranking import label_ranks
from dgharness.metrics.regression import errors_by_slice
from dgharness.metrics.scores import weighted_mean
from dgharness.metrics.slicing import Slicing, everything, slicing
from dgharness.predictions import Predictions

NAN = float("nan")
WORST = {  # of the metric with intervals, by kind of slice
    "acc": {"domain": "acc_worst_domain", "group": "wga", "class": "worst_class_acc"},
    "mse": {"domain": "mse_worst_domain", "group": "mse_worst_group"},
}


@dataclass(frozen=True)
class Row:
    """One number of the table; ``low`` and ``high`` are NaN where it has no interval."""

    slice: str  # all, domain, group, class, average or worst
    name: str
    metric: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Measured:
    """How the examples with a known target are measured, as their task asks."""

    examples: Predictions
    main: str  # the metric that has intervals, a mean over examples
    main_N: Tensor  # of these values
    by_slice: Callable[[Slicing], Mapping[str, Tensor]]
    classes: Slicing | None = None  # classes or labels, with metrics of their own
    by_class: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Block:
    """The slices of one kind: metrics [K] by name, and draws of the main one where it has intervals."""

    slices: Slicing
    metrics: Mapping[str, Tensor]
    drawn_BK: Tensor | None = None
    low_K: Tensor | None = None
    high_K: Tensor | None = None


def every_metric(predictions: Predictions, *, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """Every metric of these predictions, a row each: slice, name, metric, value, low, high, count.

    With so many draws of a ``bootstrap``, accuracies (in regression, mean squared errors) have 95 %
    intervals. A group without examples is NaN with count 0; a domain without any is left out. The formulas
    are in docs/metrics.md.
    """
    measured = {"classification": _classes, "regression": _numbers}.get(predictions.task, _judged)(
        predictions
    )
    found = measured.examples
    slices = {
        "all": everything(len(found)),
        "domain": _present(found.domain_N, found.domains),
        "group": slicing(found.group, found.groups),
    }
    blocks = {
        kind: _block(measured, of_kind, measured.by_slice(of_kind), bootstrap, (seed, number))
        for number, (kind, of_kind) in enumerate(slices.items())
    }
    if measured.classes is not None and measured.by_class is not None:
        blocks["class"] = _block(
            measured, measured.classes, measured.by_class, bootstrap, (seed, len(slices))
        )
    summaries = [*_averages(found, measured.main, blocks), *_worst(found, measured.main, blocks)]
    tables = [_table(kind, measured.main, block) for kind, block in blocks.items()]
    return pd.concat([*tables, pd.DataFrame(summaries)], ignore_index=True)


def _classes(found: Predictions) -> Measured:
    made, whole = Classified(found.outputs_NC, found.targets), everything(len(found))
    classes, counts = slicing(found.targets, found.classes), per_class(made, whole)
    by_class = {
        "acc": counts.recall_KC[0],
        "loss": classes.mean(made.loss_N[classes.example_P]),
        "precision": counts.precision_KC[0],
        "recall": counts.recall_KC[0],
        "f1": counts.f1_KC[0],
    }
    if found.outputs_NC.numel() <= RANKED:
        auroc_CK, ap_CK = ranked(made, whole)
        by_class |= {"auroc": auroc_CK[:, 0], "auprc": ap_CK[:, 0]}
    return Measured(found, "acc", made.correct_N, lambda slices: by_slice(made, slices), classes, by_class)


def _numbers(found: Predictions) -> Measured:
    found = found.where(~found.targets.isnan())
    predicted_N, target_N = found.outputs_NC.double().mean(-1), found.targets.double()
    square_N = (predicted_N - target_N).square()
    return Measured(found, "mse", square_N, lambda slices: errors_by_slice(predicted_N, target_N, slices))


def _judged(found: Predictions) -> Measured:
    """Labels, tokens, boxes: each example is as right as the task's own judge says."""
    if found.right_N is None or found.loss_N is None:
        raise ValueError(f"predictions of the task {found.task} need right_N and loss_N, as its judge says")
    known_N = ~found.right_N.isnan()
    right_N, loss_N, found = found.right_N[known_N].double(), found.loss_N[known_N], found.where(known_N)
    labels = found.task == "multilabel"

    def metrics(slices: Slicing) -> dict[str, Tensor]:
        index_P = slices.example_P
        made = {"acc": slices.mean(right_N[index_P]), "loss": slices.mean(loss_N[index_P].double())}
        if labels and found.outputs_NC.numel() <= RANKED:
            made["ap_macro"] = label_ranks(found.outputs_NC, found.targets, slices)[1].nanmean(0)
        return made

    if not labels:
        return Measured(found, "acc", right_N, metrics)
    known_NT = ~found.targets.isnan()
    by_label = {"prevalence": found.targets.nanmean(0)}
    if found.outputs_NC.numel() <= RANKED:
        auroc_TK, ap_TK = label_ranks(found.outputs_NC, found.targets, everything(len(found)))
        by_label |= {"auroc": auroc_TK[:, 0], "auprc": ap_TK[:, 0]}
    names = list(map(str, range(known_NT.shape[1])))
    return Measured(found, "acc", right_N, metrics, slicing(known_NT, names), by_label)


def _present(slice_N: Tensor, names: tuple[str, ...]) -> Slicing:
    """Without the slices that have no example."""
    numbers, slice_N = slice_N.unique(return_inverse=True)
    return slicing(slice_N, [names[number] for number in numbers.tolist()])


def _block(
    measured: Measured,
    slices: Slicing,
    metrics: Mapping[str, Tensor],
    draws: int,
    seed: tuple[int, int],
) -> Block:
    if not draws or measured.main not in metrics:
        return Block(slices, metrics)
    main_P = measured.main_N[slices.example_P]
    if measured.main == "acc":
        drawn_BK = draw.share_draws(slices.total(main_P), slices.count_K, draws, seed)
        return Block(slices, metrics, drawn_BK, *draw.share_interval(drawn_BK, metrics["acc"]))
    drawn_BK = draw.mean_draws(main_P, slices, draws, seed)
    return Block(slices, metrics, drawn_BK, *draw.interval(drawn_BK))


def _table(kind: str, main: str, block: Block) -> pd.DataFrame:
    names, shape = list(block.metrics), (len(block.slices), len(block.metrics))
    ends_2KM = np.full((2, *shape), np.nan)
    if block.low_K is not None and block.high_K is not None:
        ends_2KM[:, :, names.index(main)] = torch.stack([block.low_K, block.high_K]).numpy()
    return pd.DataFrame(
        {
            "slice": kind,
            "name": np.repeat(np.array(block.slices.names, dtype=object), shape[1]),
            "metric": np.tile(np.array(names, dtype=object), shape[0]),
            "value": torch.stack(list(block.metrics.values()), dim=1).double().flatten().numpy(),
            "low": ends_2KM[0].ravel(),
            "high": ends_2KM[1].ravel(),
            "count": np.repeat(block.slices.count_K.numpy(), shape[1]),
        }
    )


def _averages(found: Predictions, main: str, blocks: Mapping[str, Block]) -> Iterator[Row]:
    """Over examples; over domains and groups that count alike; over groups as frequent as in training."""
    ends = (blocks["all"].low_K, blocks["all"].high_K)
    low, high = (NAN if end is None else end.item() for end in ends)
    yield Row("average", "", f"{main}_avg", blocks["all"].metrics[main].item(), low, high, len(found))
    for kind in ("domain", "group"):
        block = blocks[kind]
        value, drawn_BK = block.metrics[main][block.slices.count_K > 0].mean().item(), block.drawn_BK
        # Overlapping groups share examples, so that their draws do not vary one by one.
        apart = found.group.dim() == 1 or kind == "domain"
        low, high = draw.mean_interval(drawn_BK, value) if drawn_BK is not None and apart else (NAN, NAN)
        yield Row("average", "", f"{main}_{kind}_mean", value, low, high, int(block.slices.count_K.sum()))
    if found.train_count_G is not None and main == "acc" and found.group.dim() == 1:
        block = blocks["group"]
        value = weighted_mean(block.metrics[main], found.train_count_G).item()
        low, high = NAN, NAN
        if block.drawn_BK is not None:
            low, high = draw.mean_interval(weighted_mean(block.drawn_BK, found.train_count_G)[:, None], value)
        yield Row("average", "", "acc_adjusted", value, low, high, int(block.slices.count_K.sum()))


def _worst(found: Predictions, main: str, blocks: Mapping[str, Block]) -> Iterator[Row]:
    """The first of the worst slices of each kind; of groups, among those of at least the least size."""
    for kind, key in WORST[main].items():
        if kind in blocks and main in blocks[kind].metrics:
            block = blocks[kind]
            large_K = block.slices.count_K >= (max(found.min_group_size, 1) if kind == "group" else 1)
            low, high = _worst_interval(main, block, large_K)
            yield _worst_row(key, block, main, large_K, low, high, largest=main == "mse")
    if "class" in blocks and "precision" in blocks["class"].metrics:
        for metric in ("precision", "f1"):
            large_K = blocks["class"].slices.count_K > 0
            yield _worst_row(f"worst_class_{metric}", blocks["class"], metric, large_K, NAN, NAN)


def _worst_interval(main: str, block: Block, large_K: Tensor) -> tuple[float, float]:
    value_K = block.metrics[main][large_K]
    if block.drawn_BK is None or value_K.isnan().any():
        return NAN, NAN
    drawn_BK = block.drawn_BK[:, large_K]
    return (
        draw.worst_error_interval(drawn_BK) if main == "mse" else draw.worst_share_interval(drawn_BK, value_K)
    )


def _worst_row(
    key: str, block: Block, metric: str, large_K: Tensor, low: float, high: float, largest: bool = False
) -> Row:
    if not large_K.any():
        return Row("worst", "", key, NAN, NAN, NAN, 0)
    value_K = block.metrics[metric].double()
    k = int((-value_K if largest else value_K).where(large_K, torch.inf).argmin())  # NaN counts as the worst
    return Row(
        "worst", block.slices.names[k], key, value_K[k].item(), low, high, int(block.slices.count_K[k])
    )
