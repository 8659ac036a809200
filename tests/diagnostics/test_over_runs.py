"""Diagnoses over tracked runs, on records and predictions made by hand."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
import torch

from dgharness.diagnostics.accuracy_on_the_line import accuracy_on_the_line
from dgharness.diagnostics.agreement_line import agreement_on_the_line
from dgharness.diagnostics.by_group import by_group
from dgharness.diagnostics.calibration import SPLITS, calibration, confidences, reliability
from dgharness.diagnostics.effective_robustness import effective_robustness
from dgharness.diagnostics.id_ood_line import id_ood_line
from dgharness.diagnostics.line import unscaled
from dgharness.diagnostics.majority_minority import majority_minority
from dgharness.diagnostics.points import accuracy, id_key, ood_key
from dgharness.diagnostics.render import as_csv, as_json, as_text, shown
from dgharness.diagnostics.tracked import TrackedRuns
from dgharness.errors import NotApplicable, UsageError
from dgharness.figures import as_png
from dgharness.metrics.classification import ece
from dgharness.predictions import Predictions
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation

GROUPS = ("y=0,color=red", "y=0,color=green", "y=1,color=red", "y=1,color=green")
SLUGS = ("y-0_color-red", "y-0_color-green", "y-1_color-red", "y-1_color-green")


def record(
    x: float, y: float, algorithm: str = "erm", trial: int = 0, draw: int = 0, groups=(), **fields
) -> RunRecord:
    """A run whose one checkpoint has accuracy x on validation and y on the target."""
    metrics = {"val/acc/a": x, "val/acc_domain_mean": x, "val/count": 1000.0}
    metrics |= {"test/acc_domain_mean": y, "test/acc/t": y, "test/count": 1000.0}
    for name, value in zip(SLUGS, groups, strict=False):
        metrics |= {f"test/group_acc/{name}": value, f"test/group_count/{name}": 250.0}
    facts = {
        "run_id": f"{algorithm}-h{draw}t{trial}",
        "algorithm": algorithm,
        "dataset": "d",
        "protocol": "leave-one-domain-out",
        "targets": ("t",),
        "hparams_seed": draw,
        "trial_seed": trial,
        "status": "FINISHED",
        "evaluations": (Evaluation(10, metrics),),
    }
    return RunRecord(**(facts | fields))


def predicted(seed: int, skill: tuple[float, float], n: int = 400) -> Predictions:
    """Validation and test examples of two classes; ``skill`` separates their logits on each of the splits."""
    chance = torch.Generator().manual_seed(7)  # the same labels for every run
    targets = torch.randint(2, (2 * n,), generator=chance)
    noise = torch.randn(2 * n, generator=torch.Generator().manual_seed(seed))
    noise = 0.7 * torch.randn(2 * n, generator=chance) + 0.7 * noise  # examples are hard for all runs alike
    margin = torch.tensor(skill).repeat_interleave(n) * (2 * targets - 1) + noise
    return Predictions(
        task="classification",
        row_N=torch.arange(2 * n),
        split_N=np.repeat(["val", "test"], n),
        outputs_NC=torch.stack([-margin, margin], 1),
        targets=targets,
        domain_N=torch.zeros(2 * n, dtype=torch.long),
        domains=("t",),
        group=torch.zeros(2 * n, dtype=torch.long),
        groups=GROUPS,
        classes=("0", "1"),
        train_count_G=torch.tensor([450, 50, 40, 460]),
    )


def tracked(records, stored=MappingProxyType({}), **asked) -> TrackedRuns:
    def predictions(run: RunRecord, step: int) -> Predictions:
        if run.run_id not in stored:
            raise NotApplicable(f"run {run.run_id} has stored no predictions")
        return stored[run.run_id]

    return TrackedRuns(
        "d → t", tuple(records), training_domain_validation, lambda run: run.algorithm, predictions, **asked
    )


def on_a_line(slope: float = 0.8, bias: float = -0.3, runs: int = 12, **fields) -> list[RunRecord]:
    probit = np.linspace(0.2, 1.6, runs)
    return [
        record(float(unscaled(np.array(p), "probit")), float(unscaled(slope * np.array(p) + bias, "probit")),
               draw=n, trial=n % 3, **fields)
        for n, p in enumerate(probit)
    ]  # fmt: skip


def with_metrics(run: RunRecord, more: dict[str, float]) -> RunRecord:
    (only,) = run.evaluations
    return dataclasses.replace(run, evaluations=(Evaluation(only.step, {**only.metrics, **more}),))


def test_the_line_over_runs_is_found():
    found = id_ood_line(tracked(on_a_line()))
    assert found.metrics["id-ood-line/probit_slope"] == pytest.approx(0.8)
    assert found.metrics["id-ood-line/probit_r2_linear"] == pytest.approx(1)
    assert "nothing may be selected by it" in found.caption


def test_every_scored_checkpoint_is_a_point_or_only_the_chosen_ones():
    runs = []
    for run in on_a_line():
        (only,) = run.evaluations
        weaker = Evaluation(5, {**only.metrics, "val/acc/a": 0.1, "val/acc_domain_mean": 0.52})
        unscored = Evaluation(7, {"val/acc/a": 0.2, "val/acc_domain_mean": 0.2})
        runs.append(dataclasses.replace(run, evaluations=(weaker, unscored, only)))

    def checkpoints(**asked) -> float:
        return id_ood_line(tracked(runs, **asked)).table.set_index("quantity").loc["checkpoints", "raw"]

    assert checkpoints() == 24
    assert checkpoints(checkpoints="chosen") == 12


def test_other_metrics_can_be_set_against_each_other():
    half = {run.run_id: 0.5 * run.evaluations[0].metrics["val/acc/a"] for run in on_a_line()}
    runs = [with_metrics(run, {"test/wga": half[run.run_id]}) for run in on_a_line()]
    found = id_ood_line(tracked(runs, x="val/acc/a", y="test/wga"))
    assert found.metrics["id-ood-line/raw_slope"] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="no run has logged the metric 'test/wgaa'; did you mean 'test/wga'"):
        id_ood_line(tracked(runs, y="test/wgaa"))


def test_the_axes_follow_what_was_logged():
    run = record(0.8, 0.6)
    assert id_key(tracked([run])) == "val/acc_domain_mean"
    run = with_metrics(run, {"id_test/acc_domain_mean": 0.7})
    assert id_key(tracked([run])) == "id_test/acc_domain_mean"
    assert ood_key(tracked([dataclasses.replace(run, protocol="subpopulation")])) == "test/wga"


def test_accuracies_are_clipped_by_the_examples_that_they_are_over():
    metrics = {"test/acc/a": 1.0, "test/count/a": 50.0, "test/count": 100.0, "val/acc/b": 0.0}
    assert accuracy(metrics, "test/acc/a") == 0.99
    assert np.isnan(accuracy(metrics, "val/acc/b"))  # over nobody knows how many
    with pytest.raises(NotApplicable, match="so no accuracy"):
        accuracy({"test/nll": 1.3}, "test/nll")


def test_runs_that_are_alike_have_no_line():
    with pytest.raises(NotApplicable, match="1 of the scored checkpoints differ"):
        id_ood_line(tracked([record(0.8, 0.6, trial=trial) for trial in range(5)]))


def test_effective_robustness_is_the_distance_to_the_baselines_line():
    runs = on_a_line()
    same = [run.evaluations[0].metrics for run in runs[2:5]]
    above = [
        record(metrics["val/acc/a"], metrics["test/acc/t"] + 0.04 + 0.01 * n, "vrex", trial=n)
        for n, metrics in enumerate(same)
    ]
    found = effective_robustness(tracked([*runs, *above]))
    table = found.table.set_index("algorithm")
    assert table.loc["erm", "residual"] == pytest.approx(0, abs=1e-9)
    assert table.loc["vrex", "residual"] == pytest.approx(0.05)
    assert table.loc["vrex", "s.e. of residual"] == pytest.approx(0.01 / np.sqrt(3))
    assert any("vrex lies 5.0 points above the line" in said for said in found.findings)
    assert not any("too few" in said for said in found.findings)


def test_few_baseline_checkpoints_are_told_and_none_are_not_applicable():
    found = effective_robustness(tracked([*on_a_line(runs=3), record(0.7, 0.6, "vrex", trial=1)]))
    assert "too few" in found.findings[0]
    with pytest.raises(NotApplicable, match="0 of its checkpoints"):
        effective_robustness(tracked(on_a_line(), baseline="coral"))


@pytest.mark.parametrize(("slope", "verdict"), [(0.8, "on the line"), (-0.8, "off the line")])
def test_the_verdict_on_a_split(slope, verdict):
    found = accuracy_on_the_line(tracked(on_a_line(slope)))
    assert found.table["verdict"].tolist() == [verdict]
    assert ("does not test" in found.findings[0]) == (verdict == "on the line")


# --- groups ----------------------------------------------------------------------------------------


def test_groups_are_averaged_over_trials_and_carry_their_own_names():
    runs = [record(0.8, 0.5, trial=t, groups=(0.9, 0.1 + 0.1 * t, 0.3, float("nan"))) for t in range(3)]
    stored = {run.run_id: predicted(0, (1.0, 0.5)) for run in runs}
    table = by_group(tracked(runs, stored)).table.set_index("group")
    assert table.loc["y=0,color=green", "accuracy"] == pytest.approx(0.2)
    assert table.loc["y=0,color=green", "s.e. of accuracy"] == pytest.approx(0.1 / np.sqrt(3))
    assert table.loc["y=0,color=red", "training examples"] == 450
    assert np.isnan(table.loc["y=1,color=green", "accuracy"]) and table.loc["y=1,color=green", "trials"] == 0


def test_a_single_group_is_not_called_both_worst_and_best():
    nan = float("nan")
    found = by_group(tracked([record(0.8, 0.5, groups=(0.9, nan, nan, nan))]))
    assert found.findings == ("erm has examples of one group alone, y-0_color-red (90.0).",)


def test_groups_need_no_predictions():
    found = by_group(tracked([record(0.8, 0.5, groups=(0.9, 0.1, 0.3, 0.8))]))
    assert set(found.table["group"]) == set(SLUGS)
    assert found.findings == ("erm is worst on y-0_color-green (10.0) and best on y-0_color-red (90.0).",)


def test_the_moon_of_subpopulations_is_found_and_a_line_is_none():
    majority = np.linspace(0.5, 0.98, 25)
    minority = 0.2 + 3 * (majority - 0.6) ** 2

    def found(y):
        runs = [
            record(a, b, draw=n, groups=(a, b, b, a))
            for n, (a, b) in enumerate(zip(majority, y, strict=True))
        ]
        return majority_minority(tracked(runs, {run.run_id: predicted(0, (1, 1)) for run in runs}))

    moon = found(minority)
    assert moon.metrics["majority-minority/raw_curvature"] == pytest.approx(3)
    assert any("a moon shape" in said for said in moon.findings)
    assert not any("a moon shape" in said for said in found(majority - 0.2).findings)


# --- predictions -----------------------------------------------------------------------------------


def test_reliability_bins_hold_what_the_calibration_error_is_made_of():
    found = confidences(predicted(0, (1.0, 0.3)).of("test"))
    bins = reliability(found)
    gap = np.nansum(bins.count_B * np.abs(bins.accuracy_B - bins.confidence_B)) / bins.count_B.sum()
    assert gap == pytest.approx(ece(found.confidence_N, found.correct_N)) == pytest.approx(found.ece)


def test_a_temperature_of_the_source_calibrates_the_source():
    runs = [record(0.8, 0.6, trial=trial) for trial in range(2)]
    stored = {run.run_id: predicted(n, (1.0, 0.2)) for n, run in enumerate(runs)}
    stored = {
        name: dataclasses.replace(each, outputs_NC=5 * each.outputs_NC) for name, each in stored.items()
    }
    table = calibration(tracked(runs, stored)).table.set_index("split")
    source, target = (table.loc[split] for split in SPLITS)
    assert source["ECE at the temperature"] < 0.5 * source["ECE"]
    assert target["ECE at the temperature"] < target["ECE"] and target["ECE at the temperature"] > 0.05
    assert target["accuracy"] == pytest.approx(
        np.mean([confidences(each.of("test")).correct_N.mean() for each in stored.values()])
    )


def test_agreement_foretells_accuracy_where_it_is_on_the_line():
    skills = np.linspace(0.4, 1.8, 8)
    runs = [record(0.5 + 0.04 * n, 0.5, draw=n) for n in range(8)]
    stored = {run.run_id: predicted(n, (skills[n], 0.7 * skills[n]), 4000) for n, run in enumerate(runs)}
    found = agreement_on_the_line(tracked(runs, stored))
    assert found.metrics["agreement/r2"] > 0.9
    assert found.metrics["agreement/error_of_ALine-D"] < 0.5 * found.metrics["agreement/error_of_ID_accuracy"]


def test_runs_on_other_data_are_not_compared():
    runs = [record(0.7, 0.5, draw=n, tags={"dg.data_digest": str(n // 2)}) for n in range(4)]
    stored = {run.run_id: predicted(n, (1.0, 0.5)) for n, run in enumerate(runs)}
    with pytest.raises(NotApplicable, match="2 pairs of runs have stored what they predict"):
        agreement_on_the_line(tracked(runs, stored))


def test_checkpoints_of_one_run_are_no_pair_and_those_without_predictions_are_told():
    runs = [record(0.6 + 0.05 * n, 0.5, draw=n) for n in range(5)]
    runs = [
        dataclasses.replace(run, evaluations=(Evaluation(5, run.evaluations[0].metrics), *run.evaluations))
        for run in runs
    ]
    stored = {run.run_id: predicted(n, (0.3 * n, 0.2 * n)) for n, run in enumerate(runs[:4])}
    found = agreement_on_the_line(tracked(runs, stored))
    assert "24 pairs" in found.caption  # of 8 checkpoints, 28 less the 4 within a run
    assert "2 scored checkpoints have no stored predictions" in found.findings[-1]


def test_without_stored_predictions_it_is_said():
    for diagnose in (calibration, agreement_on_the_line, majority_minority):
        with pytest.raises(NotApplicable, match="stored"):
            diagnose(tracked(on_a_line()))


def test_numbers_have_no_majority_accuracy():
    error = dataclasses.replace(record(0.8, 0.5), evaluations=(Evaluation(1, {"test/mse/a": 2.0}),))
    with pytest.raises(NotApplicable, match="these runs predict numbers"):
        majority_minority(tracked([error]))


# --- what is printed and drawn ---------------------------------------------------------------------


def test_every_diagnosis_is_drawn_and_read_alike_in_text_csv_and_json():
    runs = [with_metrics(run, _groups(run)) for run in on_a_line()]
    stored = {run.run_id: predicted(n, (0.4 + 0.1 * n, 0.2 + 0.1 * n)) for n, run in enumerate(runs)}
    for diagnose in (
        id_ood_line, by_group, calibration, agreement_on_the_line, majority_minority, effective_robustness,
        accuracy_on_the_line,
    ):  # fmt: skip
        found = diagnose(tracked(runs, stored))
        assert found.figure is not None and as_png(found.figure()).startswith(b"\x89PNG")
        assert len(as_csv(found).splitlines()) == len(found.table) + 1
        text = as_text(found, "d → t")
        assert text.startswith(f"{found.title}: d → t") and all(
            said.split()[0] in text for said in found.findings
        )
        assert '"diagnosis": "' + found.name in as_json(found, "d → t")
        assert found.metrics and all(isinstance(value, float) for value in found.metrics.values())


def test_counts_among_the_quantities_of_a_fit_are_whole():
    found = id_ood_line(tracked(on_a_line())).table.set_index("quantity")
    assert [shown(value) for value in found.loc["runs"]] == ["12", "12"]


def _groups(run: RunRecord) -> dict[str, float]:
    base = run.evaluations[0].metrics["val/acc/a"]
    return {f"test/group_acc/{name}": base - 0.1 * n for n, name in enumerate(SLUGS)}
