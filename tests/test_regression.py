"""Regression: squared errors instead of accuracies, from the loss to the table, and lower is better."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from small_runs import QUIET, signal_after, stored

from dgharness.commands.listing import show_dataset
from dgharness.config import DEFAULT_RULES, compose
from dgharness.data.dataset import Dataset, InMemory
from dgharness.data.sampling import make_sampler
from dgharness.data.tasks import regression, squared_error
from dgharness.errors import Interrupted, UsageError
from dgharness.metrics.measure import ACCURACY, SQUARED_ERROR, measure_of
from dgharness.metrics.regression import score_regression
from dgharness.report.cells import build_tables
from dgharness.report.render import render
from dgharness.rundir import find
from dgharness.selection.last import last
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.rule import Evaluation, RunRecord, choose
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.selection.worst_group import worst_group
from dgharness.sweep.plan import plan
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress, header_lines, result_lines
from dgharness.training.run import resume, train

# --- targets and loss ------------------------------------------------------------------------------


def test_a_float_y_is_the_target_itself():
    manifest = pd.DataFrame({"y": [0.5, math.nan, -2.0], "domain": pd.Categorical(["a", "a", "b"])})
    dataset = Dataset("numbers", manifest, InMemory(torch.zeros(3, 1)), regression(), (1,))
    assert dataset.targets_M.dtype == torch.float32
    assert dataset.targets_M.nan_to_num(9).tolist() == [0.5, 9, -2]


def test_the_loss_is_the_square_of_the_error_and_unknown_targets_cost_nothing():
    outputs_EBC = torch.tensor([[[1.0], [3.0]], [[-1.0], [7.0]]], requires_grad=True)
    targets_EB = torch.tensor([[0.0, 3.0], [1.0, math.nan]])
    loss_EB = squared_error(outputs_EBC, targets_EB)
    assert loss_EB.tolist() == [[1, 0], [4, 0]]
    loss_EB.sum().backward()
    assert outputs_EBC.grad.flatten().tolist() == [2, 0, -4, 0]


def test_several_outputs_are_each_held_to_the_target():
    assert squared_error(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0])).tolist() == [1.0]
    assert regression(2).predict(torch.tensor([[1.0, 3.0]])).tolist() == [2.0]


def test_the_loss_can_be_mapped_over_trials():
    outputs, targets = torch.randn(3, 4, 5, 1), torch.randn(4, 5)
    mapped = torch.vmap(squared_error, (0, None))(outputs, targets)
    assert torch.equal(mapped, torch.stack([squared_error(each, targets) for each in outputs]))


def test_balancing_classes_of_numbers_is_refused():
    targets_M = torch.linspace(0, 1, 6)
    with pytest.raises(UsageError, match="balances classes, and the targets here are numbers"):
        make_sampler("balanced", [np.arange(6)], targets_M, torch.zeros(6, dtype=torch.long), 2, 0)


# --- metrics ---------------------------------------------------------------------------------------

OUTPUTS_NC = torch.tensor([[0.0], [1.0], [2.0], [10.0], [5.0]])
TARGETS_N = torch.tensor([0.0, 3.0, 2.0, 7.0, math.nan])
DOMAIN_N = torch.tensor([0, 0, 2, 2, 2])
GROUP_N = torch.tensor([0, 1, 1, -1, 0])


def scores(**changes):
    given = {"outputs_NC": OUTPUTS_NC, "targets_N": TARGETS_N} | changes
    return score_regression(
        **given, domain_N=DOMAIN_N, domain_names=["a", "b", "c"], group_N=GROUP_N, group_names=["g", "h", "i"]
    )


def test_errors_are_averaged_per_domain_and_per_group_over_known_targets():
    found, known = scores().flat("val"), (OUTPUTS_NC.mean(1)[:4], TARGETS_N[:4])
    assert {key: value for key, value in found.items() if not math.isnan(value)} == {
        "val/mse_avg": 13 / 4,
        "val/mae_avg": 5 / 4,
        "val/pearson": pytest.approx(pearsonr(*known)[0]), "val/spearman": pytest.approx(0.8),
        "val/count": 4,
        "val/mse/a": 2, "val/mae/a": 1, "val/count/a": 2,
        "val/mse/c": 4.5, "val/mae/c": 1.5, "val/count/c": 2,
        "val/mse_domain_mean": 3.25, "val/mse_worst_domain": 4.5, "val/mse_worst_domain_count": 2,
        "val/group_mse/g": 0, "val/group_mae/g": 0, "val/group_count/g": 1,
        "val/group_mse/h": 2, "val/group_mae/h": 1, "val/group_count/h": 2,
        "val/group_count/i": 0,
        "val/mse_group_mean": 1, "val/mse_worst_group": 2, "val/mse_worst_group_count": 2,
    }  # fmt: skip
    assert math.isnan(found["val/group_mse/i"])  # empty, and never 0
    assert scores().goodness == -3.25


def test_the_worst_group_is_among_those_that_are_large_enough():
    found = score_regression(
        OUTPUTS_NC, TARGETS_N, DOMAIN_N, ["a", "b", "c"], torch.tensor([0, 1, 1, 2, 0]), ["g", "h", "i"],
        min_group_size=2,
    ).flat("test")  # fmt: skip
    assert (found["test/mse_worst_group"], found["test/mse_worst_group_count"]) == (2, 2)


def test_an_output_that_is_no_number_spoils_what_it_enters_and_nothing_else():
    spoilt = OUTPUTS_NC.clone()
    spoilt[2] = math.nan
    found = scores(outputs_NC=spoilt).flat("val")
    spoiled = {"mse_avg", "mse/c", "mse_domain_mean", "mse_worst_domain", "group_mse/h", "mse_worst_group"}
    assert all(math.isnan(found[f"val/{key}"]) for key in spoiled)
    assert found["val/mse/a"] == 2 and found["val/group_mse/g"] == 0


def test_many_slices_are_summed_up_by_their_worst_tenth():
    n = 60
    found = score_regression(
        torch.arange(n)[:, None].float().sqrt(), torch.zeros(n), torch.arange(n), list(map(str, range(n))),
        torch.zeros(n, dtype=torch.long), ["g"],
    ).flat("val")  # fmt: skip
    assert found["val/mse_domain_p90"] == pytest.approx(np.quantile(np.arange(n), 0.9), rel=1e-6)
    assert not any(key.startswith("val/mse/") for key in found)


# --- selection -------------------------------------------------------------------------------------


def record(mse, draw=0, algorithm="erm", trial=0, target="c", **fields):
    """A run of two checkpoints; ``mse`` gives for each its validation error, which its test error doubles."""
    evaluations = tuple(
        Evaluation(
            step,
            {
                "val/mse/a": value - 0.1, "val/mse/b": value + 0.1, "val/mse_domain_mean": value,
                "val/mse_worst_group": value + 0.1, "test_holdout/mse/c": value,
                f"test/mse/{target}": 2 * value, "test/mse_avg": 2 * value, "test/mae_avg": value,
            },
        )
        for step, value in enumerate(mse)
    )  # fmt: skip
    facts = {"dataset": "numbers", "protocol": "leave-one-domain-out", "status": "FINISHED"} | fields
    return RunRecord(
        f"{algorithm}-{draw}-{trial}", algorithm, targets=(target,), hparams_seed=draw, trial_seed=trial,
        evaluations=evaluations, **facts,
    )  # fmt: skip


@pytest.mark.parametrize("rule", [training_domain_validation, worst_group])
def test_rules_choose_the_smallest_error(rule):
    runs = [record([3.0, 2.0], 0), record([0.5, 4.0], 1), record([1.0, math.nan], 2)]
    choice = choose(rule, runs)
    assert (choice.run.hparams_seed, choice.evaluation.step) == (1, 0)


@pytest.mark.parametrize("rule", [last, oracle])
def test_rules_of_the_last_checkpoint_choose_the_draw_with_the_smallest_error_there(rule):
    choice = choose(rule, [record([0.1, 3.0], 0), record([5.0, 2.0], 1)])
    assert (choice.run.hparams_seed, choice.evaluation.step) == (1, 1)


def test_cross_validation_minimises_the_error_on_domains_that_were_held_out():
    def run(targets, error, draw):
        held = [name for name in ("a", "b", "c") if name not in targets]
        metrics = {f"val/mse/{name}": 1.0 for name in held} | {f"test/mse/{t}": error for t in targets}
        facts = {"dataset": "d", "protocol": "p", "hparams_seed": draw, "trial_seed": 0, "status": "FINISHED"}
        return RunRecord(
            f"{targets}{draw}", "erm", targets=targets, evaluations=(Evaluation(1, metrics),), **facts
        )

    singles = [run(("c",), 9.0, draw) for draw in (0, 1)]
    pairs = [run((v, "c"), error, draw) for v in "ab" for draw, error in ((0, 4.0), (1, 2.0))]
    assert choose(leave_one_domain_out_cv, singles, pairs).run.hparams_seed == 1


def test_accuracies_and_errors_are_told_apart_by_their_keys():
    assert measure_of({"val/mse_avg": 1.0, "val/count": 2.0}) is SQUARED_ERROR
    assert measure_of({"val/acc/mse": 1.0, "val/nll": 2.0}) is ACCURACY
    assert measure_of(["test_holdout/mse/E0"]) is SQUARED_ERROR


# --- reports ---------------------------------------------------------------------------------------


def test_a_table_says_that_lower_is_better_and_never_speaks_of_accuracy():
    runs = [
        record([value + trial], algorithm=algorithm, trial=trial)
        for algorithm, value in (("erm", 5.0), ("vrex", 4.0))
        for trial in range(3)
    ]
    tables = build_tables(runs, [training_domain_validation, oracle], extras=["mae_avg"])
    for format in ("text", "markdown", "latex", "csv", "json"):
        text = render(tables, format)
        assert "accurac" not in text.lower() and "%)" not in text
    text = render(tables, "text")
    assert "mean squared error on c, by selection rule" in text
    assert "Mean squared error (lower is better) on held-out domains" in text
    assert "12.0 ± 1.2" in text and "10.0 ± 1.2" in text  # as they are, not times 100


def test_differences_and_gaps_of_errors_have_a_sign_and_their_own_size():
    runs = [
        record([value], draw, algorithm, trial)
        for algorithm, best in (("erm", 3.0), ("vrex", 2.5))
        for trial in (0, 1)
        for draw, value in ((0, best), (1, best + 1))
    ]
    (table,) = build_tables(runs, [training_domain_validation], gaps=False)
    by_name = {column.name: index for index, column in enumerate(table.columns)}
    _, vrex = table.rows
    assert vrex.cells[by_name["difference to erm"]].mean == -1.0
    assert table.columns[by_name["difference to erm"]].unit == "change"
    assert "-1" in render(table, "text") and "-100" not in render(table, "text")


def test_the_gap_is_what_a_rule_loses_to_the_oracle():
    def seen(draw, val, target):
        metrics = {"val/mse/a": val, "val/mse_domain_mean": val}
        metrics |= {"test_holdout/mse/c": target, "test/mse/c": target}
        facts = {"dataset": "numbers", "protocol": "p", "targets": ("c",), "trial_seed": 0}
        return RunRecord(
            f"r{draw}",
            "erm",
            hparams_seed=draw,
            status="FINISHED",
            evaluations=(Evaluation(1, metrics),),
            **facts,
        )

    runs = [seen(0, val=1.0, target=9.0), seen(1, val=2.0, target=4.0)]
    (table,) = build_tables(runs, [training_domain_validation, oracle])
    gap = [column.name for column in table.columns].index("gap of training-domain-validation")
    assert table.rows[0].cells[gap].mean == 5.0
    assert "Gap: mean squared error under the rule minus" in render(table, "text").replace("\n", " ")


# --- whole runs ------------------------------------------------------------------------------------


def small(store, output, dataset="synthetic:unit-test-1", algorithm="erm", **sections):
    base = {
        "algorithm": algorithm,
        "data": {"name": dataset, "n": 60},
        "train": {"steps": 12, "eval_every": 4, "batch_size": 16, "log_every": 3},
        "optimizer": {"lr": 3e-2},
        "execution": {"tracking_uri": store, "output": str(output), "device": "cpu"},
    }
    return compose(flags=base | sections)


@pytest.mark.parametrize("algorithm", ["erm", "irmv1", "vrex", "group-dro", "coral"])
def test_a_run_on_the_official_split_minimises_the_error(mlflow_store, tmp_path, algorithm):
    result = train(small(mlflow_store, tmp_path, algorithm=algorithm), progress=Progress(**QUIET))
    assert result.status == "FINISHED"
    assert set(result.chosen) == set(DEFAULT_RULES) - {"test-domain-validation"}
    chosen = result.chosen["training-domain-validation"].metrics
    assert {"val/mse/E0", "test/mse/E2", "test/mae_avg", "test/group_mse/domain-E1"} <= set(chosen)
    assert not [key for key in chosen if "acc" in key or "wga" in key or "holdout" in key or "nll" in key]
    found = stored(mlflow_store, result.path)
    keys, tags = {key for key, _, _ in found["metrics"]}, found["tags"]
    assert "chosen/last/test_mse" in keys and "chosen/last/test_mse_worst_group" in keys
    assert not [key for key in keys if "acc" in key]
    assert tags["dg.protocol"] == "official" and json.loads(tags["dg.targets"]) == ["E0", "E1", "E2"]
    (step,) = {e.step for rule, e in result.chosen.items() if rule == "last"}
    table = pd.read_parquet(result.path / f"predictions-{step}.parquet")
    assert set(table["split"]) == {"val", "test"} and table["y"].dtype == np.float32


def test_the_checkpoint_with_the_smallest_validation_error_is_kept(mlflow_store, tmp_path):
    result = train(small(mlflow_store, tmp_path), progress=Progress(**QUIET))
    evaluations = json.loads((result.path / "evaluations.json").read_text())
    errors = {each["step"]: each["metrics"]["val/mse_domain_mean"] for each in evaluations}
    assert result.chosen["training-domain-validation"].step == min(errors, key=errors.get)


def test_a_default_adaptation_of_the_same_name_is_not_named_twice():
    # The algorithm meta-dmoe brings the test-time method meta-dmoe.
    flags = {"algorithm": "meta-dmoe", "train": {"steps": 3000}}
    assert header_lines(prepare(compose(flags=flags)), [], "")[0].startswith("meta-dmoe · ")


def test_a_run_too_short_for_its_method_says_so():
    def lines(steps):
        return header_lines(prepare(compose(flags={"algorithm": "eqrm", "train": {"steps": steps}})), [], "")

    assert any("part of eqrm begins at update 2500 and the run ends at 100" in line for line in lines(100))
    assert not any("begins at update" in line for line in lines(5000))


def test_what_a_person_sees_names_the_measure_and_its_direction(mlflow_store, tmp_path):
    said = []
    config = small(mlflow_store, tmp_path)
    result = train(config, progress=Progress(say=said.append))
    prepared = prepare(config)
    (title,) = [line for line in said if line.startswith("  step")]
    assert "val mse" in title
    text = "\n".join(header_lines(prepared, [], "") + result_lines("r", result.chosen, prepared))
    assert "mean squared error; lower is better" in text and "ECE" not in text and "oracle only" not in text


def test_a_leave_one_out_split_of_a_regression_keeps_its_oracle(mlflow_store, tmp_path):
    result = train(small(mlflow_store, tmp_path, "synthetic:linear-sem"), progress=Progress(**QUIET))
    assert "test-domain-validation" in result.chosen
    assert "test_holdout/mse/sigma-5" in result.chosen["last"].metrics


def test_an_official_run_resumes_as_it_was_configured(mlflow_store, tmp_path):
    config = small(mlflow_store, tmp_path / "cut")
    whole = train(small(mlflow_store, tmp_path / "whole"), progress=Progress(**QUIET))
    with pytest.raises(Interrupted), signal_after(6):
        train(config, progress=Progress(**QUIET))
    cut = find(tmp_path / "cut", prepare(config).config_hash)
    again = resume(cut.state.run_id, tmp_path / "cut", progress=Progress(**QUIET))
    assert again.chosen["last"].metrics == whole.chosen["last"].metrics


def test_an_oracle_that_is_asked_for_is_refused_where_nothing_is_held_back(mlflow_store, tmp_path):
    config = small(mlflow_store, tmp_path, selection={"rules": ["last", "test-domain-validation"]})
    with pytest.raises(UsageError, match="holds no target examples back for an oracle"):
        prepare(config)


def test_a_dataset_may_have_a_protocol_of_its_own_which_can_be_overruled(mlflow_store, tmp_path):
    assert prepare(small("", tmp_path)).config.protocol.name == "official"
    overruled = small("", tmp_path, protocol={"name": "leave-one-domain-out", "targets": ["E0"]})
    assert prepare(overruled).splits.targets == ("E0",)


def test_a_sweep_holds_out_what_the_official_split_does():
    layers = {"flags": {"data": {"name": "synthetic:unit-test-1", "n": 20}}}
    jobs = plan(["erm", "vrex"], trials=2, **layers)
    assert [job.cell[:2] for job in jobs] == [("erm", ("E0", "E1", "E2")), ("vrex", ("E0", "E1", "E2"))] * 2
    with pytest.raises(UsageError, match="is tested on E0, E1, E2 by its official split"):
        plan(["erm"], targets=["E0"], **layers)


def test_a_regression_is_shown_by_the_size_of_its_targets_and_its_splits(capsys):
    show_dataset("synthetic:unit-test-1", "", as_json=False)
    shown = capsys.readouterr().out
    assert "targets      numbers, mean " in shown and "standard deviation 3.48" in shown
    assert "splits       train 30000 · val 30000 · test 30000" in shown and "classes" not in shown
    show_dataset("synthetic:zin", "", as_json=True)
    assert set(json.loads(capsys.readouterr().out)) >= {"splits", "classes", "domains", "groups"}
