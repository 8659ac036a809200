"""Evaluation: outputs of a predictor on manifest rows, in large batches and without gradients.

Shapes: N examples, C outputs, H heads of a predictor that has several.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgharness.config import TTAConfig
from dgharness.data.dataset import Dataset, Reader
from dgharness.data.groups import Grouping
from dgharness.data.source import batches
from dgharness.errors import UsageError
from dgharness.metrics.classification import RANKED
from dgharness.metrics.consistency import Kind, consistency
from dgharness.metrics.ranking import label_ranks
from dgharness.metrics.regression import RegressionScores, score_regression
from dgharness.metrics.scores import Scores, score, score_examples
from dgharness.metrics.slicing import everything
from dgharness.plugin import Predictor, Source, TTASpec
from dgharness.predictions import Predictions
from dgharness.seeds import generator, seeded

BATCH = {"small": 2048, "large": 128}


@dataclass(frozen=True)
class Adapted:
    """What a test-time method made of some rows, in the rows' own order."""

    outputs_NC: Tensor
    query_N: Tensor  # which rows were not what the method adapted on beforehand, as its ``support`` says


@dataclass(frozen=True)
class Evaluator:
    """Scores predictors on the rows of a split; holds what does not change during a run."""

    dataset: Dataset
    reader: Reader
    grouping: Grouping
    device: torch.device
    min_group_size: int = 1
    precision: str = "float32"
    train_count_G: Tensor | None = None  # training examples of each group of the metrics

    def outputs(self, predictor: Predictor, rows: np.ndarray) -> Tensor:
        """Outputs [N, C] of the rows, on the CPU in float32; of a task with a ``keep``, what it keeps."""
        kept = self._mapped(lambda x: predictor.classify(predictor.features(x)), rows, self.dataset.task.keep)
        return torch.cat(kept)

    def head_outputs(self, predictor: Any, rows: np.ndarray) -> Tensor:
        """Outputs [H, N, C] of every head of a predictor that has several."""
        heads = self._mapped(
            lambda x: predictor.heads(predictor.features(x)), rows, lambda outputs, targets: outputs
        )
        return torch.cat(heads, dim=1)

    def adapted(
        self,
        predictor: Predictor,
        rows: np.ndarray,
        method: TTASpec,
        hp: Any,
        protocol: TTAConfig,
        source: Source,
        seed: int,
    ) -> Adapted:
        """What a test-time method predicts on one target domain.

        The method gets its own copy of the predictor and sees the stream batch by batch; ``offline`` shows
        it the whole stream once before the pass that counts. What it makes may have an attribute ``support``:
        the number of examples at the head of the stream that it adapted on before it predicted any.
        """
        order = (
            torch.randperm(len(rows), generator=generator(seed, "tta order"))
            if protocol.order == "shuffled"
            else torch.arange(len(rows))
        )
        stream = rows[order.numpy()]
        with seeded(seed, "tta"), self._autocast():
            adapt = method.factory(copy.deepcopy(predictor), hp, source, seed)
            if protocol.mode == "offline":
                for x in self._batches(stream, protocol.batch_size):
                    adapt(x)
            outputs = torch.cat(
                [adapt(x).detach().float().cpu() for x in self._batches(stream, protocol.batch_size)]
            )
        if outputs.shape != (len(rows), self.dataset.task.outputs):
            raise UsageError(
                f"the test-time method {protocol.name} must return outputs [N, {self.dataset.task.outputs}] "
                f"for N inputs, and returned {list(outputs.shape)} for {len(rows)}"
            )
        query_N = torch.ones(len(rows), dtype=torch.bool)
        query_N[order[: int(getattr(adapt, "support", 0))]] = False
        return Adapted(torch.empty_like(outputs).index_copy_(0, order, outputs), query_N)

    def consistency(self, predictor: Predictor, rows: np.ndarray, kind: Kind, amount: float) -> float:
        """Share of the transformed copies of the rows' images that are predicted as the images are."""

        def predicted(x: Tensor) -> Tensor:
            return self.dataset.task.predict(predictor.classify(predictor.features(x)))

        same = self._mapped(
            lambda x: consistency(predicted, x, kind, amount), rows, lambda outputs, targets: outputs
        )
        return torch.cat(same).mean().item()

    def scores(self, logits_NC: Tensor, rows: np.ndarray) -> Scores | RegressionScores:
        """Every metric of some rows' outputs."""
        index, dataset = torch.from_numpy(rows), self.dataset
        slices = (
            dataset.domain_M[index],
            dataset.domains,
            self.grouping.group_M[index],
            self.grouping.names,
        )
        targets, least = dataset.targets_M[index], self.min_group_size
        found: Scores | RegressionScores
        if dataset.task.name == "regression":
            found = score_regression(logits_NC, targets, *slices, min_group_size=least)
        elif dataset.task.judge is None:
            apart = self.grouping.group_M.dim() == 1  # of groups that overlap, no share is one of a whole
            counts = self.train_count_G if apart else None
            found = score(
                logits_NC,
                targets,
                *slices,
                class_names=dataset.classes,
                min_group_size=least,
                train_count_G=counts,
            )
        else:
            found = score_examples(*dataset.task.judge(logits_NC, targets), *slices, min_group_size=least)
            if dataset.task.name == "multilabel" and logits_NC.numel() <= RANKED:
                _, ap_T1 = label_ranks(logits_NC, targets, everything(len(targets)))
                found = dataclasses.replace(found, overall={"ap_macro": ap_T1.nanmean().item()})
        if dataset.official is None:
            return found
        official = dataset.official(logits_NC, rows)
        value = official.get(dataset.official_metric)
        return dataclasses.replace(
            found,
            official=official,
            official_score=None if value is None else dataset.official_sign * value,
        )

    def predictions(
        self, rows_by_split: Mapping[str, np.ndarray], outputs_by_split: Mapping[str, Tensor]
    ) -> Predictions:
        """Outputs of the rows of some splits, with all that scoring them needs."""
        dataset, task = self.dataset, self.dataset.task
        rows = np.concatenate([rows_by_split[split] for split in outputs_by_split])
        index, outputs = torch.from_numpy(rows), torch.cat(list(outputs_by_split.values()))
        targets = dataset.targets_M[index]
        right_N, loss_N = task.judge(outputs, targets) if task.judge else (None, None)
        return Predictions(
            task=task.name,
            row_N=index,
            split_N=np.repeat(list(outputs_by_split), [len(part) for part in outputs_by_split.values()]),
            outputs_NC=outputs.flatten(1),
            targets=targets if targets.dim() == 1 else targets.flatten(1),
            domain_N=dataset.domain_M[index],
            domains=dataset.domains,
            group=self.grouping.group_M[index],
            groups=self.grouping.names,
            classes=dataset.classes if task.name == "classification" else (),
            train_count_G=self.train_count_G,
            min_group_size=self.min_group_size,
            right_N=right_N,
            loss_N=loss_N,
        )

    def _mapped(
        self, fn: Callable[[Any], Tensor], rows: np.ndarray, keep: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        size, targets_M = self.dataset.eval_batch or BATCH[self.dataset.profile], self.dataset.targets_M
        parts = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).split(size)
        with torch.no_grad(), self._autocast():
            return [
                keep(fn(x), targets_M[part].to(self.device)).float().cpu()
                for x, part in zip(self._batches(rows, size), parts, strict=True)
            ]

    def _autocast(self) -> torch.autocast:
        # Without the cache of cast weights: a test-time method may change them in between.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False
        )

    def _batches(self, rows: np.ndarray, size: int) -> Iterator[Any]:
        return batches(self.dataset, self.reader, rows, size, self.device)


def all_rows(rows_by_domain: Mapping[str, np.ndarray], domains: Sequence[str] | None = None) -> np.ndarray:
    """Rows of several domains in one array, so that one pass serves them all."""
    return np.concatenate([rows_by_domain[name] for name in domains or rows_by_domain])


def joined(parts: Sequence[Adapted]) -> Adapted:
    """Several domains one after the other."""
    return Adapted(
        torch.cat([part.outputs_NC for part in parts]), torch.cat([part.query_N for part in parts])
    )
