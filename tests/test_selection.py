"""The rules on records small enough to choose from by eye."""

from __future__ import annotations

import math

import pytest

from dgharness.selection.last import last
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.official_validation import official_validation
from dgharness.selection.rule import Evaluation, Rule, RunRecord, choose
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.selection.worst_class import worst_class
from dgharness.selection.worst_group import worst_group


def run(
    draw: int,
    *evaluations: dict[str, float],
    targets: tuple[str, ...] = ("t",),
    trial: int = 0,
    every: int = 100,
):
    """A run of one draw; its evaluations are ``every`` steps apart."""
    return RunRecord(
        run_id=f"h{draw}-{'+'.join(targets)}-{trial}",
        algorithm="erm",
        dataset="d",
        protocol="leave-one-domain-out",
        targets=targets,
        hparams_seed=draw,
        trial_seed=trial,
        status="FINISHED",
        evaluations=tuple(Evaluation(i * every, metrics) for i, metrics in enumerate(evaluations)),
    )


def val(a: float, b: float, **more: float) -> dict[str, float]:
    return {"val/acc/a": a, "val/acc/b": b} | more


def chosen(rule: Rule, *runs: RunRecord, pairs: tuple[RunRecord, ...] = ()) -> tuple[int, int]:
    """(draw, step) of the choice."""
    choice = choose(rule, runs, pairs)
    assert choice is not None
    return choice.run.hparams_seed, choice.evaluation.step


def test_training_domain_validation_takes_the_best_checkpoint_of_the_best_draw():
    runs = run(0, val(0.5, 0.5), val(0.6, 0.8), val(0.6, 0.6)), run(1, val(0.9, 0.4), val(0.5, 0.5))
    assert chosen(training_domain_validation, *runs) == (0, 100)


def test_training_domain_validation_weighs_domains_equally_whatever_their_size():
    big = {"val/count/a": 1000.0, "val/count/b": 10.0, "val/acc_avg": 0.9}
    assert chosen(training_domain_validation, run(0, val(0.9, 0.1, **big)), run(1, val(0.5, 0.6))) == (1, 0)


def test_training_domain_validation_reads_the_logged_mean_where_domains_are_too_many_to_log():
    runs = run(0, {"val/acc_domain_mean": 0.4}), run(1, {"val/acc_domain_mean": 0.6})
    assert chosen(training_domain_validation, *runs) == (1, 0)


def test_ties_go_to_the_first_draw_and_then_to_the_first_checkpoint():
    runs = run(2, val(0.7, 0.5)), run(1, val(0.1, 0.1), val(0.5, 0.7), val(0.6, 0.6))
    assert chosen(training_domain_validation, *runs) == (1, 100)


def test_the_order_of_summation_decides_no_tie():
    first = {f"val/acc/{name}": value for name, value in zip("abc", (0.1, 0.2, 0.3), strict=True)}
    second = {f"val/acc/{name}": value for name, value in zip("abc", (0.3, 0.2, 0.1), strict=True)}
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert chosen(training_domain_validation, run(0, first), run(1, second)) == (0, 0)
    assert chosen(training_domain_validation, run(0, second), run(1, first)) == (0, 0)


def test_evaluations_are_taken_in_step_order_however_they_come():
    record = run(0, val(0.5, 0.5), val(0.5, 0.5))
    backwards = RunRecord(**(vars(record) | {"evaluations": record.evaluations[::-1]}))
    assert chosen(training_domain_validation, backwards) == (0, 0)
    assert chosen(last, backwards) == (0, 100)


def test_nan_never_wins_and_nothing_but_nan_is_no_choice():
    nan = math.nan
    assert chosen(training_domain_validation, run(0, val(nan, 0.9), val(0.1, 0.1))) == (0, 100)
    assert choose(training_domain_validation, [run(0, val(nan, nan))]) is None
    assert choose(training_domain_validation, [run(0)]) is None
    assert choose(training_domain_validation, []) is None


def test_last_keeps_the_last_checkpoint_and_chooses_the_draw_by_validation_there():
    runs = run(0, val(1.0, 1.0), val(0.2, 0.2)), run(1, val(0.1, 0.1), val(0.3, 0.3))
    assert chosen(last, *runs) == (1, 100)


def test_the_oracle_sees_the_held_back_part_of_the_target_at_the_last_checkpoint_alone():
    def seen(holdout: float, test: float) -> dict[str, float]:
        return val(0.5, 0.5) | {"test_holdout/acc/t": holdout, "test/acc/t": test}

    runs = run(0, seen(0.9, 0.9), seen(0.3, 0.9)), run(1, seen(0.1, 0.1), seen(0.4, 0.1))
    assert oracle.oracle
    assert chosen(oracle, *runs) == (1, 100)


def test_worst_group_goes_by_the_worst_group_at_all_checkpoints():
    runs = (
        run(0, val(0.9, 0.9) | {"val/wga": 0.1}, val(0.5, 0.5) | {"val/wga": 0.4}),
        run(1, {"val/wga": 0.3}),
    )
    assert chosen(worst_group, *runs) == (0, 100)
    assert choose(worst_group, [run(0, val(0.9, 0.9))]) is None


def test_worst_class_reads_classes_and_no_group():
    runs = (
        run(0, {"val/worst_class_acc": 0.3, "val/wga": 0.9}),
        run(1, {"val/worst_class_acc": 0.1}, {"val/worst_class_acc": 0.4}),
    )
    assert chosen(worst_class, *runs) == (1, 100)
    assert choose(worst_class, [run(0, val(0.9, 0.9) | {"val/wga": 0.9})]) is None


def test_official_validation_goes_by_the_datasets_own_metric():
    runs = (
        run(0, val(0.9, 0.9) | {"val/official_score": 0.1}, {"val/official_score": -2.0}),
        run(1, {"val/official_score": 0.2}),
    )
    assert chosen(official_validation, *runs) == (1, 0)
    assert choose(official_validation, [run(0, val(0.9, 0.9))]) is None


OURS = [last, training_domain_validation, worst_group, worst_class, official_validation]


@pytest.mark.parametrize("rule", OURS)
def test_captions_are_true_of_a_split_whose_validation_domains_are_not_trained_on(rule):
    assert "training domain" not in rule.caption


@pytest.mark.parametrize("rule", [*OURS, leave_one_domain_out_cv])
def test_no_rule_but_the_oracle_depends_on_labels_of_the_target(rule):
    def records(target_accuracy: float) -> tuple[list[RunRecord], list[RunRecord]]:
        own, pairs = [], []
        for draw in range(3):
            sealed = {"test/acc/t": target_accuracy * draw, "test_holdout/acc/t": target_accuracy * draw}
            seen = dict.fromkeys(("val/wga", "val/worst_class_acc", "val/official_score"), 0.5 - 0.1 * draw)
            own.append(run(draw, val(0.6 - 0.1 * draw, 0.5) | seen | sealed))
            pairs += [
                run(draw, {f"test/acc/{v}": 0.6 - 0.1 * draw} | sealed, targets=tuple(sorted(("t", v))))
                for v in "ab"
            ]
        return own, pairs

    assert not rule.oracle
    for target_accuracy in (0.0, 0.4):
        own, pairs = records(target_accuracy)
        assert chosen(rule, *own, pairs=tuple(pairs)) == (0, 0)


def pair(draw: int, v: str, *accuracies: float, trial: int = 0) -> RunRecord:
    """The run that held out t and v, with its accuracy on v at each checkpoint."""
    evaluations = [{f"test/acc/{v}": accuracy, "test/acc/t": 1 - accuracy} for accuracy in accuracies]
    return run(draw, *evaluations, targets=tuple(sorted(("t", v))), trial=trial)


OWN = (
    run(0, val(0.9, 0.9), val(0.9, 0.9), val(0.9, 0.9)),
    run(1, val(0.1, 0.1), val(0.1, 0.1), val(0.1, 0.1)),
)


def test_cross_validation_averages_the_other_domains_over_the_runs_that_held_them_out():
    pairs = (
        *(pair(0, "a", 0.1, 0.2, 0.1), pair(0, "b", 0.1, 0.2, 0.9)),  # means .1 .2 .5
        *(pair(1, "a", 0.1, 0.6, 0.4), pair(1, "b", 0.1, 0.6, 0.4)),  # means .1 .6 .4
    )
    choice = choose(leave_one_domain_out_cv, OWN, pairs)
    assert choice is not None and choice.score == pytest.approx(0.6)
    assert (choice.run, choice.evaluation.step) == (OWN[1], 100)  # reported from the run on t alone


def test_cross_validation_drops_steps_that_one_of_the_pairs_lacks():
    pairs = pair(0, "a", 0.1, 0.9), pair(0, "b", 0.1), pair(1, "a", 0.2), pair(1, "b", 0.2)
    assert chosen(leave_one_domain_out_cv, *OWN, pairs=pairs) == (1, 0)


def test_cross_validation_leaves_out_a_draw_that_lacks_a_pair():
    pairs = pair(0, "a", 0.9), pair(1, "a", 0.2), pair(1, "b", 0.2)
    assert chosen(leave_one_domain_out_cv, *OWN, pairs=pairs) == (1, 0)


def test_cross_validation_needs_a_pair_for_every_training_domain():
    pairs = pair(0, "a", 0.9), pair(1, "a", 0.2)
    assert choose(leave_one_domain_out_cv, OWN, pairs) is None
    assert choose(leave_one_domain_out_cv, OWN, ()) is None


def test_cross_validation_keeps_draws_trials_and_other_targets_apart():
    foreign = run(0, {"test/acc/a": 0.9, "test/acc/b": 0.9}, targets=("a", "b"))
    pairs = (
        *(pair(0, "a", 0.3), pair(0, "b", 0.3), pair(1, "a", 0.2), pair(1, "b", 0.2)),
        *(pair(1, "a", 0.9, trial=1), pair(1, "b", 0.9, trial=1), foreign),
    )
    assert chosen(leave_one_domain_out_cv, *OWN, pairs=pairs) == (0, 0)


def test_every_rule_scores_a_checkpoint_while_training_without_other_runs():
    evaluation = Evaluation(0, val(0.5, 0.7) | {"val/wga": 0.2})
    assert training_domain_validation.score(evaluation, {}) == pytest.approx(0.6)
    assert worst_group.score(evaluation, {}) == 0.2
    assert math.isnan(oracle.score(evaluation, {}))
    assert math.isnan(leave_one_domain_out_cv.score(evaluation, {}))


def test_rules_are_declared_as_entry_points_under_their_own_names():
    from importlib.metadata import entry_points

    found = {point.name: point.load() for point in entry_points(group="dgharness.selection")}
    ours = {*OURS, oracle, leave_one_domain_out_cv}
    assert ours <= set(found.values())
    assert all(found[rule.name] == rule for rule in ours)
