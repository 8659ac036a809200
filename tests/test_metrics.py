"""Scores against scikit-learn and loops written out by hand; names that may stand in metric keys."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from mlflow.entities import Metric
from mlflow.utils.validation import _validate_metric
from sklearn.metrics import accuracy_score, log_loss, recall_score

from dgharness.metrics.classification import ece
from dgharness.metrics.scores import score
from dgharness.names import find, slug, slugs

N, C = 500, 4
DOMAINS, GROUPS = (
    ("+90%", "+80%", "-90%"),
    tuple(f"y={y},color={c}" for y in range(2) for c in ("red", "green")),
)


def predictions(n: int = N) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "logits_NC": torch.randn(n, C, generator=draw),
        "targets_N": torch.randint(C, (n,), generator=draw),
        "domain_N": torch.randint(3, (n,), generator=draw),
        "group_N": torch.randint(-1, 4, (n,), generator=draw),
    }


def scored(data: dict[str, torch.Tensor], **options: object):
    return score(**data, domain_names=DOMAINS, group_names=GROUPS, **options)  # type: ignore[arg-type]


def test_accuracy_and_loss_agree_with_scikit_learn_overall_and_in_every_slice():
    data = predictions()
    scores = scored(data)
    y, predicted = data["targets_N"].numpy(), data["logits_NC"].argmax(1).numpy()
    probability = data["logits_NC"].double().softmax(1).numpy()

    def reference(kept: np.ndarray) -> tuple[float, float, int]:
        return (
            accuracy_score(y[kept], predicted[kept]),
            log_loss(y[kept], probability[kept], labels=range(C)),
            int(kept.sum()),
        )

    assert (scores.acc_avg, scores.nll, scores.count) == pytest.approx(reference(np.ones(N, bool)), rel=1e-6)
    for slices, of_example in ((scores.domains, data["domain_N"]), (scores.groups, data["group_N"])):
        for k, (_, acc, loss, count) in enumerate(slices.rows()):
            assert (acc, loss, count) == pytest.approx(reference(of_example.numpy() == k), rel=1e-6)
    assert scores.classes.acc_K.tolist() == pytest.approx(recall_score(y, predicted, average=None))


def test_summaries_are_the_mean_and_the_worst_of_the_slices():
    data = predictions()
    scores = scored(data, train_count_G=torch.tensor([10, 20, 30, 40]))
    by_domain, by_group, by_class = (
        part.acc_K.tolist() for part in (scores.domains, scores.groups, scores.classes)
    )
    assert scores.acc_domain_mean == pytest.approx(np.mean(by_domain))
    assert scores.acc_group_mean == pytest.approx(np.mean(by_group))
    assert scores.acc_adjusted == pytest.approx(np.average(by_group, weights=[0.1, 0.2, 0.3, 0.4]))
    for worst, values, names in (
        (scores.acc_worst_domain, by_domain, DOMAINS),
        (scores.wga, by_group, GROUPS),
        (scores.worst_class_acc, by_class, "0123"),
    ):
        assert (worst.acc, worst.name) == (min(values), names[int(np.argmin(values))])
    assert scores.wga.count == (data["group_N"] == GROUPS.index(scores.wga.name)).sum()


def test_an_empty_group_is_nan_with_count_zero_and_never_the_worst():
    data = predictions()
    data["group_N"] = data["group_N"].where(data["group_N"] != 2, 0)
    scores = scored(data, train_count_G=torch.ones(4))
    flat = scores.flat("val")
    assert math.isnan(flat["val/group_acc/y-1_color-red"]) and math.isnan(
        flat["val/group_loss/y-1_color-red"]
    )
    assert flat["val/group_count/y-1_color-red"] == 0
    assert scores.wga.acc > 0 and scores.wga.name != GROUPS[2]
    assert scores.acc_group_mean == pytest.approx(scores.groups.acc_K[[0, 1, 3]].mean().item())
    assert math.isnan(scores.acc_adjusted)  # a quarter of the training weight was not measured


def test_the_worst_group_is_sought_among_groups_of_the_least_size():
    data = predictions()
    data["group_N"][:] = 0
    data["group_N"][0] = 1
    data["logits_NC"][0] = torch.nn.functional.one_hot((data["targets_N"][0] + 1) % C, C)  # wrong
    assert scored(data).wga.name == GROUPS[1] and scored(data).wga.acc == 0
    assert scored(data, min_group_size=2).wga.name == GROUPS[0]
    nobody = scored(data, min_group_size=N + 1).wga
    assert math.isnan(nobody.acc) and (nobody.name, nobody.count) == ("", 0)


def test_examples_of_an_unknown_group_count_in_no_group_but_in_the_average():
    data = predictions()
    data["group_N"][:] = -1
    scores = scored(data)
    assert scores.groups.count_K.sum() == 0 and math.isnan(scores.wga.acc) and scores.acc_avg > 0


def test_no_examples_at_all_give_nan():
    flat = scored(predictions(0)).flat("val")
    assert math.isnan(flat["val/acc_avg"]) and math.isnan(flat["val/wga"]) and math.isnan(flat["val/ece"])
    assert flat["val/count"] == 0


def test_calibration_error_agrees_with_a_loop_over_bins_closed_on_the_right():
    draw = random.Random(0)
    confidence = [draw.choice([k / 15 for k in range(1, 16)] + [draw.random()]) for _ in range(400)]
    correct = [float(draw.random() < 0.7) for _ in confidence]
    expected = 0.0
    for b in range(15):
        inside = [k for k, p in enumerate(confidence) if max(math.ceil(p * 15), 1) == b + 1]
        expected += abs(sum(correct[k] - confidence[k] for k in inside)) / 400
    found = ece(torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct, dtype=torch.float64))
    assert found == pytest.approx(expected)


def test_a_certain_and_right_model_is_calibrated_and_a_certain_and_wrong_one_is_not():
    one, zero = torch.ones(10).double(), torch.zeros(10).double()
    assert ece(one, one) == 0 and ece(one, zero) == 1


def test_nan_logits_are_not_a_lucky_class_zero():
    data = predictions()
    data["targets_N"][:] = 0
    data["logits_NC"][data["domain_N"] == 1] = torch.nan
    scores = scored(data)
    assert math.isnan(scores.acc_avg) and math.isnan(scores.nll) and math.isnan(scores.overall["ece"])
    assert scores.domains.acc_K.isnan().tolist() == [False, True, False]


def test_nan_logits_of_one_example_leave_no_number_that_it_enters():
    data = predictions()
    data["logits_NC"][0], data["group_N"][0] = torch.nan, 1
    flat = scored(data, train_count_G=torch.ones(4)).flat("val")
    summaries = {key: value for key, value in flat.items() if key.count("/") == 1 and "count" not in key}
    assert len(summaries) >= 15 and all(map(math.isnan, summaries.values())), summaries


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_low_and_high_precision_logits_are_scored_as_they_are(dtype):
    data = predictions()
    low = data | {"logits_NC": data["logits_NC"].to(dtype)}
    again = data | {"logits_NC": low["logits_NC"].double()}
    assert scored(low).nll == pytest.approx(scored(again).nll, rel=1e-6)


def test_flat_keys_are_those_that_mlflow_takes_and_name_every_slice():
    data = predictions()
    flat = scored(data, train_count_G=torch.ones(4)).flat("val")
    for key, value in flat.items():
        _validate_metric(key, value, 0, 0)
        Metric(key, value, 0, 0)
    assert {key for key in flat if key.startswith("val/acc/")} == {
        "val/acc/plus90pct",
        "val/acc/plus80pct",
        "val/acc/minus90pct",
    }
    summaries = {"acc_avg", "acc_domain_mean", "acc_worst_domain", "acc_group_mean", "acc_adjusted", "wga"}
    assert {
        f"val/{name}" for name in summaries | {"worst_class_acc", "ece", "nll", "wga_count"}
    } <= flat.keys()
    assert flat["val/count/plus90pct"] == (data["domain_N"] == 0).sum()


def test_a_domain_outside_the_split_has_no_key():
    data = predictions()
    data["domain_N"] = data["domain_N"].clamp(max=1)
    flat = scored(data).flat("val")
    assert "val/acc/plus80pct" in flat and not any("minus90pct" in key for key in flat)


def test_above_fifty_domains_only_summaries_are_flat():
    n = 51
    data = predictions() | {"domain_N": torch.arange(N) % n, "group_N": torch.arange(N) % n}
    names = [f"d{k}" for k in range(n)]
    scores = score(**data, domain_names=names, group_names=names)  # type: ignore[arg-type]
    flat = scores.flat("test")
    assert not any("/acc/" in key or "/group_acc/" in key for key in flat)
    tenth = np.percentile(scores.domains.acc_K.numpy(), 10)
    assert flat["test/acc_domain_p10"] == flat["test/acc_group_p10"] == pytest.approx(tenth)
    assert flat["test/acc_worst_domain"] == scores.domains.acc_K.min()


def test_the_worst_of_many_equals_is_the_first():
    data = predictions()
    data["logits_NC"] = torch.nn.functional.one_hot(data["targets_N"], C).float()
    assert scored(data).acc_worst_domain.name == DOMAINS[0]


HARD = [
    "+90%",
    "-90%",
    "90%",
    "90",
    "-90",
    "a/b",
    "a\\b",
    "a:b",
    "Art",
    "art",
    "..",
    ".",
    "",
    "写真",
    "é",
    "x" * 400,
]


def test_slugs_differ_for_every_name_even_without_case_and_are_valid_keys():
    found = slugs(HARD)
    assert len({value.casefold() for value in found.values()}) == len(HARD)
    for value in found.values():
        _validate_metric(f"test_holdout/group_count/{value}", 0.0, 0, 0)


def test_a_slug_is_its_own_slug():
    for name in [*HARD, "=5", *GROUPS]:
        assert slug(slug(name)) == slug(name)


def test_slugs_do_not_depend_on_the_order_of_names():
    assert slugs(HARD) == slugs(reversed(HARD))


def test_a_name_without_collisions_keeps_its_plain_slug():
    assert slugs(DOMAINS) == {name: slug(name) for name in DOMAINS}


def test_metrics_are_found_again_whether_or_not_their_names_collided():
    for names in (["a/b"], ["a/b", "a:b"]):
        metrics = {f"test/acc/{value}": 0.5 if name == "a/b" else 0.1 for name, value in slugs(names).items()}
        assert find(metrics, "test/acc/", "a/b") == 0.5
    assert find({}, "test/acc/", "a/b") is None
