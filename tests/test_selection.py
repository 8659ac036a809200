"""The rules on records small enough to choose from by eye."""

from __future__ import annotations

import inspect
import math
import tomllib
from pathlib import Path

import pytest
from small_runs import small_config

from dgharness import registry
from dgharness.config import compose
from dgharness.errors import UsageError
from dgharness.report.cells import build_tables
from dgharness.selection.auroc import auroc
from dgharness.selection.balanced_accuracy import balanced_accuracy
from dgharness.selection.class_difference import class_difference
from dgharness.selection.id_val import id_val
from dgharness.selection.last import last
from dgharness.selection.leave_one_domain_out_cv import leave_one_domain_out_cv
from dgharness.selection.mean_accuracy import mean_accuracy
from dgharness.selection.official_validation import official_validation
from dgharness.selection.ood_val import ood_val
from dgharness.selection.rule import HELD_OUT, Evaluation, Rule, RunRecord, choose
from dgharness.selection.test_domain_validation import test_domain_validation as oracle
from dgharness.selection.test_mean_accuracy import test_mean_accuracy as best_mean
from dgharness.selection.test_worst_group import test_worst_group as best_worst_group
from dgharness.selection.training_domain_validation import training_domain_validation
from dgharness.selection.worst_class import worst_class
from dgharness.selection.worst_group import worst_group
from dgharness.training.identity import run_tags
from dgharness.training.prepare import prepare

ROOT = Path(__file__).parent.parent


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


def test_mean_accuracy_weighs_examples_and_not_domains():
    runs = run(0, val(0.9, 0.1, **{"val/acc_avg": 0.8})), run(1, val(0.6, 0.6, **{"val/acc_avg": 0.6}))
    assert chosen(mean_accuracy, *runs) == (0, 0)
    assert chosen(training_domain_validation, *runs) == (1, 0)


@pytest.mark.parametrize(
    "rule, key, best, worse",
    [
        (balanced_accuracy, "val/balanced_acc", 0.9, 0.2),
        (auroc, "val/auroc", 0.9, 0.2),
        (class_difference, "val/class_difference", 0.2, 0.9),
    ],
)
def test_rules_on_classes_go_by_their_one_metric_and_need_classes(rule, key, best, worse):
    runs = run(0, {key: worse, "val/acc_avg": 1.0}), run(1, {key: math.nan}, {key: best})
    assert chosen(rule, *runs) == (1, 100)
    assert choose(rule, [run(0, val(0.9, 0.9))]) is None
    assert rule.needs == "classes"


@pytest.mark.parametrize("rule, split", [(ood_val, "val"), (id_val, "id_val")])
def test_the_validation_splits_of_wilds_go_by_the_official_metric_or_else_by_the_mean_over_domains(
    rule, split
):
    def seen(a: float, b: float, **more: float) -> dict[str, float]:
        return {f"{split}/acc/a": a, f"{split}/acc/b": b} | more

    assert chosen(rule, run(0, seen(0.9, 0.2)), run(1, seen(0.6, 0.6))) == (1, 0)
    official = f"{split}/official_score"
    runs = run(0, seen(0.9, 0.9, **{official: -3.0})), run(1, seen(0.1, 0.1, **{official: -2.0}))
    assert chosen(rule, *runs) == (1, 0)
    runs = run(0, {f"{split}/acc_domain_mean": 0.4}), run(1, {f"{split}/acc_domain_mean": 0.6})
    assert chosen(rule, *runs) == (1, 0)  # domains too many to log one by one


def test_in_distribution_validation_reads_no_other_split():
    assert choose(id_val, [run(0, val(0.9, 0.9) | {"val/official_score": 0.5})]) is None


def test_out_of_distribution_validation_refuses_runs_whose_validation_domains_are_trained_on():
    def table(**fields: object):
        record = RunRecord(**(vars(run(0, val(0.5, 0.7) | {"test/acc/t": 0.4})) | fields))
        (found,) = build_tables([record], [ood_val])
        return found

    refused = table().rows[0].cells[0]
    assert refused.problem == "n/a"
    assert "h0-t-0 under leave-one-domain-out says of none" in refused.detail
    there = table(protocol="official", tags={"dg.validation": HELD_OUT}).rows[0].cells[0]
    assert there.trials == {0: 0.4}


@pytest.mark.parametrize("rule, key", [(best_mean, "test/acc_avg"), (best_worst_group, "test/wga")])
def test_the_best_draw_in_hindsight_says_that_it_read_what_is_reported(rule, key):
    runs = run(0, {key: 0.99}, {key: 0.3}), run(1, {key: 0.1}, {key: 0.4})
    assert chosen(rule, *runs) == (1, 100)
    assert rule.oracle and "the very examples that are reported" in rule.caption


@pytest.mark.parametrize("rule", [mean_accuracy, best_mean, id_val, ood_val, worst_group, best_worst_group])
def test_in_regression_the_smaller_error_wins(rule):
    def errors(error: float) -> dict[str, float]:
        keys = ("mse/a", "mse_avg", "mse_domain_mean", "mse_worst_group")
        return {f"{split}/{key}": error for split in ("val", "id_val", "test") for key in keys}

    assert chosen(rule, run(0, errors(2.0)), run(1, errors(1.0))) == (1, 0)


OURS = [
    *(last, training_domain_validation, worst_group, worst_class, official_validation),
    *(mean_accuracy, balanced_accuracy, class_difference, auroc, ood_val, id_val),
]


@pytest.mark.parametrize("rule", [rule for rule in OURS if rule is not id_val])
def test_captions_are_true_of_a_split_whose_validation_domains_are_not_trained_on(rule):
    assert "training domain" not in rule.caption


@pytest.mark.parametrize("rule", [*OURS, leave_one_domain_out_cv])
def test_no_rule_but_the_oracle_depends_on_labels_of_the_target(rule):
    def records(target_accuracy: float) -> tuple[list[RunRecord], list[RunRecord]]:
        own, pairs = [], []
        for draw in range(3):
            sealed = {"test/acc/t": target_accuracy * draw, "test_holdout/acc/t": target_accuracy * draw}
            keys = "wga", "worst_class_acc", "official_score", "acc_avg", "balanced_acc", "auroc"
            seen = dict.fromkeys((f"val/{key}" for key in keys), 0.5 - 0.1 * draw)
            seen |= {"val/class_difference": 0.1 * draw, "id_val/acc/a": 0.5 - 0.1 * draw}
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


# --- what holds for every rule that is registered ---------------------------------------------------

GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
REGISTERED = sorted(GROUPS["dgharness.selection"])
PAGE = (ROOT / "docs" / "selection.md").read_text()


@pytest.mark.parametrize("name", REGISTERED)
def test_a_registered_rule_keeps_the_contract(name):
    rule = registry.load("selection", name)
    assert isinstance(rule, Rule) and rule.name == name
    assert rule.caption.endswith(".") and ". " not in rule.caption and len(rule.caption) < 250
    assert rule.doc and rule.doc.splitlines()[0].endswith(".")
    assert not rule.oracle or "target" in rule.caption or "reported" in rule.caption
    assert math.isnan(rule.score(Evaluation(0, {}), {}))  # nothing to go by is NaN, never a number
    assert len(inspect.signature(rule.score).parameters) == 2


@pytest.mark.parametrize("name", REGISTERED)
def test_every_rule_is_explained_with_its_aliases(name):
    assert f"\n| `{name}`" in PAGE and f"**`{name}`**" in PAGE
    for alias in registry.entry("selection", name).aliases:
        assert f"`{alias}`" in PAGE


def test_the_rules_here_are_all_that_are_registered():
    ours = {rule.name for rule in [*OURS, oracle, leave_one_domain_out_cv, best_mean, best_worst_group]}
    assert ours == set(REGISTERED)


# --- other people's names, and what a dataset must have ---------------------------------------------


@pytest.mark.parametrize("alias, name", registry.ALIASES["selection"].items())
def test_an_alias_of_another_benchmark_is_the_rule_itself(alias, name):
    assert registry.load("selection", alias) is registry.load("selection", name)
    assert compose(sets=[f"selection.rules=last,{alias}"]).selection.rules == tuple(
        dict.fromkeys(("last", name))
    )
    assert compose(sets=[f"selection.rules={alias}", f"selection.shown={alias}"]).selection.shown == name


def test_an_alias_makes_no_other_run(tmp_path):
    def hash_of(rules: list[str]) -> str:
        return prepare(small_config("", tmp_path, selection={"rules": rules})).config_hash

    by_name = hash_of(["mean-accuracy", "worst-group"])
    assert hash_of(["ValMeanAcc", "ValWorstAccAttributeYes"]) == by_name
    assert hash_of(["mean-accuracy", "ValMeanAcc", "worst-group"]) == by_name
    assert hash_of(["mean-accuracy"]) != by_name


@pytest.mark.parametrize(
    "rule, lacking",
    [
        ("id-val", "colored-digits under leave-one-domain-out has no split id_val"),
        ("ood-val", "under leave-one-domain-out the validation domains of colored-digits are trained on"),
        ("official-validation", "colored-digits has no official metric"),
    ],
)
def test_a_rule_that_cannot_choose_on_a_dataset_is_refused_before_training(rule, lacking, tmp_path):
    with pytest.raises(UsageError, match=f"the rule {rule} cannot choose here: {lacking}"):
        prepare(small_config("", tmp_path, selection={"rules": [rule]}))


def official(tmp_path: Path, splits: str, rule: str):
    """A table whose domains are named after their split: train, val, test and perhaps id_val on train."""
    rows = [
        f"{number % 2},{'train' if split == 'id_val' else split},{number},{split}\n"
        for split in splits.split()
        for number in range(20)
    ]
    (tmp_path / "t.csv").write_text("y,domain,x,split\n" + "".join(rows))
    sets = [f"data.name=csv:{tmp_path / 't.csv'}", "data.task=classification", "protocol.name=official"]
    return prepare(compose(sets=[*sets, f"selection.rules={rule}"]))


def test_validation_on_held_out_domains_is_known_to_the_run_that_has_it(tmp_path):
    prepared = official(tmp_path, "train val test", "ood-val")
    assert [rule.name for rule in prepared.rules] == ["ood-val"]
    assert run_tags(prepared)["dg.validation"] == HELD_OUT
    assert "dg.validation" not in run_tags(prepare(small_config("", tmp_path)))


def test_in_distribution_validation_needs_a_split_of_that_name(tmp_path):
    assert [rule.name for rule in official(tmp_path, "train val test id_val", "id-val").rules] == ["id-val"]
    with pytest.raises(UsageError, match="csv:t under official has no split id_val"):
        official(tmp_path, "train val test", "id-val")
