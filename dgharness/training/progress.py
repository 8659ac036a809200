"""What a person sees of a run: a header, one line per evaluation, and the result. All of it on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dgharness.metrics.measure import ACCURACY, measure_of
from dgharness.metrics.scores import FEW
from dgharness.names import find, listed
from dgharness.selection.rule import Evaluation
from dgharness.training.leaderboard import against_rules

if TYPE_CHECKING:
    from dgharness.training.loop import Run
    from dgharness.training.prepare import Prepared


def to_stderr(text: str) -> None:
    """The default: messages and progress go where they do not mix with data."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Progress:
    """Says things about a run; ``say`` is where they go."""

    say: Callable[[str], None] = to_stderr
    _mark: tuple[float, int, int] | None = field(default=None, init=False)  # (time, t, images)
    _titled: bool = field(default=False, init=False)

    def start(self, run: Run) -> None:
        """From here on speed is measured."""
        self._mark = (time.perf_counter(), run.learner.t, run.images)

    def line(self, run: Run, evaluation: Evaluation) -> None:
        """One evaluation: risk, penalty, validation, speed, time left."""
        measure = measure_of(evaluation.metrics)
        if not self._titled:
            self._titled = True
            of_all = "val mean" if measure is ACCURACY else "val mse"
            self.say(f"  step    risk  penalty  {of_all:>8}  val worst                 img/s    left")
        now, (then, t0, images0) = time.perf_counter(), self._mark or (time.perf_counter(), 0, 0)
        updates = max(run.learner.t - t0, 1)
        left = (now - then) / updates * (run.total - run.learner.t)
        rate = (run.images - images0) / max(now - then, 1e-9)
        latest = {metric.key: metric.value for metric in run.rundir.journal if metric.step == run.learner.t}
        risk, penalty = (latest.get(f"train/{name}") for name in ("risk", "penalty"))
        mean = measure.shown(evaluation.metrics[f"val/{measure.key}_domain_mean"])
        worst_name, worst = worst_domain(run, evaluation)
        self.say(
            f"{run.learner.t:6d}  {_short(risk):>6}  {_short(penalty):>7}"
            f"  {mean:>8}  {measure.shown(worst):>9} {worst_name:<14}"
            f"{rate:7.0f}  {minutes(left):>6}"
        )


def worst_domain(run: Run, evaluation: Evaluation) -> tuple[str, float]:
    """The training domain that does worst in validation, and its accuracy or squared error."""
    measure = measure_of(evaluation.metrics)
    found = {d: find(evaluation.metrics, f"val/{measure.key}/", d) for d in run.splits.rows["val"]}
    known = [(d, value) for d, value in found.items() if value is not None]
    if not known:  # of many domains only summaries are logged
        return "", evaluation.metrics[f"val/{measure.key}_worst_domain"]
    return min(known, key=lambda pair: measure.sign * pair[1])


def worst_group(metrics: Mapping[str, float]) -> str:
    """The group that does worst on the target, by name and size.

    >>> worst_group({"test/wga": 0.25, "test/group_acc/a": 0.25, "test/group_count/a": 8.0})
    'a 25.0 n=8'
    """
    measure = measure_of(metrics)
    prefix, worst = f"test/group_{measure.key}/", metrics[f"test/{measure.worst_group}"]
    names = [
        key.removeprefix(prefix)
        for key, value in metrics.items()
        if key.startswith(prefix) and value == worst
    ]
    if not names:
        return measure.shown(worst)
    return f"{names[0]} {measure.shown(worst)} n={metrics[f'test/group_count/{names[0]}']:.0f}"


def minutes(seconds: float) -> str:
    """Seconds as m:ss.

    >>> minutes(161)
    '2:41'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".lstrip("0") if 0.001 <= abs(value) < 100 else f"{value:.1e}"


def header_lines(prepared: Prepared, deviations: Sequence[str], store: str = "") -> list[str]:
    """What is about to happen: the parts, the data by domain, deviations from the preset, the store."""
    config, splits, dataset = prepared.config, prepared.splits, prepared.dataset
    weights, sha = prepared.weights
    count = {
        split: {domain: len(rows) for domain, rows in by_domain.items()}
        for split, by_domain in splits.rows.items()
    }
    methods = [config.averaging.name, config.tta.name]
    title = [
        " + ".join(dict.fromkeys([config.algorithm, *(name for name in methods if name != "none")])),
        f"{dataset.name}{' (a toy)' if dataset.toy else ''} → {listed(splits.targets, ' + ')}",
        f"{config.model.name}/{weights}" + (f" (sha {sha[:4]}…)" if sha else ""),
        "tuning full",
        f"preset {config.preset}" if config.preset else "no preset",
        f"h{config.hparams_seed} t{config.trial_seed}",
    ]
    train, val, test = (_counted(count[split], names=split != "val") for split in ("train", "val", "test"))
    oracle_only = sum(count["test_holdout"].values()) if "test_holdout" in count else None
    held_back = "" if oracle_only is None else f" (+{oracle_only} oracle only)"
    lines = [
        " · ".join(title),
        f"data      train {train} | val {val} | test {test}{held_back} | split {splits.digest[:4]}…",
    ]
    if prepared.algorithm.needs.groups:
        names = prepared.train_grouping.names
        lines.append(
            f"groups    {len(names)} by {' x '.join(config.data.train_groups)}: {', '.join(names[:8])}"
        )
    lines += [f"deviates  {deviation}" for deviation in deviations]
    starts = [step for step, _ in prepared.algorithm.restarts(prepared.options.hp)]
    if late := [step for step in starts if step >= (config.train.steps or 0)]:
        lines.append(
            f"note      part of {config.algorithm} begins at update {late[0]} and the run ends at "
            f"{config.train.steps}: until then it is another method (dgharness algorithms show "
            f"{config.algorithm})"
        )
    lines += [f"note      {broken}" for broken in against_rules(config, dataset, splits)]
    return [*lines, f"tracking  {store}"] if store else lines


def result_lines(run_id: str, chosen: Mapping[str, Evaluation], prepared: Prepared) -> list[str]:
    """The result by the rule that is shown, the last checkpoint in brackets."""
    config = prepared.config
    rule = config.selection.shown if config.selection.shown in chosen else next(iter(chosen))
    evaluation, last = chosen[rule], chosen.get("last", chosen[rule])
    metrics, measure = evaluation.metrics, measure_of(evaluation.metrics)
    rows_by_domain = prepared.splits.rows["test"]
    test = [
        f"{domain} {_shown(evaluation, 'test', domain)} [{_shown(last, 'test', domain)}] n={len(rows)}"
        for domain, rows in rows_by_domain.items()
    ]
    if len(test) > FEW:
        mean, of_last = (each.metrics[f"test/{measure.key}_domain_mean"] for each in (evaluation, last))
        n = sum(map(len, rows_by_domain.values()))
        test = [f"mean of {len(test)} domains {measure.shown(mean)} [{measure.shown(of_last)}] n={n}"]
    elif config.tta.name != "none":
        plain = [f"{d} {_shown(evaluation, 'test_unadapted', d)}" for d in prepared.splits.targets]
        test.append(f"without {config.tta.name} {', '.join(plain)}")
    test.append(f"worst group {worst_group(metrics)}")
    if measure is not ACCURACY:
        test.append(f"({measure.name}; lower is better)")
    elif "test/worst_class_acc" in metrics:
        test.append(
            f"worst class {100 * metrics['test/worst_class_acc']:.1f}   ECE {metrics['test/ece']:.3f}"
        )
    official = prepared.dataset.official_metric
    if (value := find(metrics, "test/official/", official)) is not None:
        test.append(f"official {official} {value:.3f}")
    return [
        f"result    checkpoint {evaluation.step} by {rule} (last step in brackets)",
        f" test     {'   '.join(test)}",
    ]


def _counted(count: Mapping[str, int], names: bool) -> str:
    """Examples of each domain, or of all where they are many."""
    if len(count) > FEW:
        return f"{sum(count.values())} of {len(count)} domains"
    return ", ".join(f"{d} {n}" for d, n in count.items()) if names else " ".join(map(str, count.values()))


def _shown(evaluation: Evaluation, split: str, domain: str) -> str:
    measure = measure_of(evaluation.metrics)
    value = find(evaluation.metrics, f"{split}/{measure.key}/", domain)
    return "not scored" if value is None else measure.shown(value)
