"""Several yes-or-no labels an example: the loss, the score, and a dataset's own evaluation beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dgharness.data.tasks import binary_cross_entropy, judge_labels, multilabel
from dgharness.metrics.scores import official_keys, score_examples

NAN = float("nan")


def test_the_loss_is_the_mean_over_known_labels():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[[1, 0, NAN, 1]] * 3, [[NAN, NAN, NAN, 0]] * 3], dtype=torch.float64)
    found = binary_cross_entropy(logits, targets)
    for row in range(2):
        for example in range(3):
            known = ~targets[row, example].isnan()
            expected = F.binary_cross_entropy_with_logits(
                logits[row, example][known], targets[row, example][known]
            )
            torch.testing.assert_close(found[row, example], expected)


def test_an_unknown_label_has_no_gradient():
    logits = torch.zeros(1, 2, requires_grad=True)
    multilabel(2).loss(logits, torch.tensor([[1.0, NAN]])).sum().backward()
    assert logits.grad is not None and logits.grad[0, 1] == 0 and logits.grad[0, 0] < 0


def test_an_example_without_known_labels_counts_nowhere():
    logits_NT = torch.tensor([[2.0, -2.0], [2.0, 2.0], [1.0, 1.0]])
    targets_NT = torch.tensor([[1.0, 0.0], [1.0, 0.0], [NAN, NAN]])
    right_N, loss_N = judge_labels(logits_NT, targets_NT)
    assert right_N[:2].tolist() == [1.0, 0.5] and right_N[2].isnan() and loss_N[2].isnan()
    domain_N = torch.tensor([0, 1, 1])
    scores = score_examples(right_N, loss_N, domain_N, ["a", "b"], domain_N, ["a", "b"])
    assert scores.count == 2 and scores.acc_avg == 0.75
    assert scores.domains.acc_K.tolist() == [1.0, 0.5] and scores.domains.count_K.tolist() == [1, 1]


def test_a_nan_output_is_never_a_right_no():
    right_N, loss_N = judge_labels(torch.full((1, 2), NAN), torch.zeros(1, 2))
    assert right_N.tolist() == [0.0] and loss_N.isnan().all()


def test_a_task_without_classes_has_no_score_of_classes():
    one_N = torch.ones(1)
    scores = score_examples(
        one_N, one_N, torch.zeros(1, dtype=torch.long), ["a"], torch.zeros(1).long(), ["a"]
    )
    found = dataclasses.replace(scores, official={"acc_Class-Method (all)": 0.5}).flat("val")
    assert not {"val/ece", "val/worst_class_acc"} & found.keys()
    assert found["val/acc_avg"] == 1.0 and 0.5 in found.values()


@pytest.mark.parametrize("name", ["Acc (Overall)", "acc_y:1_male:1", "a,b", "x" * 300])
def test_names_of_an_official_metric_become_keys_that_a_store_accepts(name):
    (key,) = official_keys({name: np.float64(0.5)})
    assert key.startswith("official/") and not set(key) & set("(),") and len(key) <= 250
