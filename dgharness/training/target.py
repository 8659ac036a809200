"""The target, sealed while training: scored at the end, and only where a requested rule could choose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dgharness import registry
from dgharness.errors import Interrupted
from dgharness.files import write_atomic, write_json
from dgharness.metrics.every import every_metric
from dgharness.metrics.measure import measure_of
from dgharness.metrics.scores import FEW
from dgharness.names import slugs
from dgharness.plugin import Predictor
from dgharness.predictions import Predictions, write_predictions
from dgharness.selection.rule import Evaluation
from dgharness.training import checkpoint
from dgharness.training.adaptation import Adaptation, Draw, best
from dgharness.training.evaluation import all_rows

if TYPE_CHECKING:
    from dgharness.training.loop import Run

DRAWS = 1000  # of the bootstrap, for the intervals of a kept checkpoint


class Scored(NamedTuple):
    """What one checkpoint made of the target."""

    outputs: dict[str, torch.Tensor]  # by split
    draws: Sequence[Draw] = ()  # of the test-time method's hyperparameters, where they were to be chosen


def score_target(run: Run, t: int, predictor: Predictor) -> Scored:
    """Score the targets with one checkpoint into ``run.sealed``.

    ``test/...`` is what the configured run predicts. With a test-time method the unadapted scores stand
    beside it as ``test_unadapted/...`` and, where it sets examples apart to adapt on, those of the other
    examples as ``test_query/...``; ``val_adapted/...`` is what its hyperparameters were chosen by.
    ``test/consistency/...`` is that of the predictor before any adaptation.
    """
    evaluator, adaptation = run.evaluator, adaptation_of(run)
    outputs: dict[str, torch.Tensor] = {}
    sealed: dict[str, float] = {}
    draws: Sequence[Draw] = ()
    if adaptation:
        draws = adaptation.tried(predictor, run.splits.rows["val"])
        chosen = best(draws) if draws else adaptation.draw()
        if chosen.scores:
            sealed.update({"tta/draw": chosen.number, **chosen.scores.flat("val_adapted")})
    for split in target_splits(run):
        rows = all_rows(run.splits.rows[split])
        plain = outputs[split] = evaluator.outputs(predictor, rows)
        if (
            split == "test"
            and hasattr(predictor, "heads")
            and evaluator.dataset.task.name == "classification"
        ):
            sealed.update(head_scores(run, predictor, plain))
        if split == "test":
            for kind, amount in run.config.selection.consistency.items():
                sealed[f"test/consistency/{kind}"] = evaluator.consistency(predictor, rows, kind, amount)
        if adaptation:
            sealed.update(evaluator.scores(plain, rows).flat(f"{split}_unadapted"))
            adapted = adaptation.outputs(predictor, run.splits.rows[split], chosen.hp)
            outputs[split], query_N = adapted.outputs_NC, adapted.query_N
            if query_N.any() and not query_N.all():
                scores = evaluator.scores(outputs[split][query_N], rows[query_N.numpy()])
                sealed.update(scores.flat(f"{split}_query"))
        sealed.update(evaluator.scores(outputs[split], rows).flat(split))
    if t not in run.sealed:  # a checkpoint scored while training is scored once more for its outputs
        run.sealed[t] = sealed
        for key, value in sealed.items():
            run.rundir.record(key, value, t)
    return Scored(outputs, draws)


def adapted_validation(run: Run, predictor: Predictor, split: str = "val") -> torch.Tensor:
    """What the test-time method, with its settings as given, makes of each validation domain."""
    adaptation = adaptation_of(run)
    assert adaptation is not None
    return adaptation.outputs(predictor, run.splits.rows[split], adaptation.draw().hp).outputs_NC


def target_splits(run: Run) -> list[str]:
    """What is sealed: the target, and what the dataset keeps for the very end beside it."""
    return [split for split in ("test", "test_holdout", "id_test") if split in run.splits.rows]


def head_scores(run: Run, predictor: Any, plain_NC: torch.Tensor) -> dict[str, float]:
    """Accuracies on the targets of every head of a predictor that has several, and its adaptivity gap.

    The gap is the accuracy of the best single head, known only to an oracle, minus the predictor's own
    without adaptation (whose outputs are ``plain_NC``).
    """
    evaluator, rows_by_domain = run.evaluator, run.splits.rows["test"]
    found: dict[str, float] = {}
    parts = plain_NC.split([len(rows) for rows in rows_by_domain.values()])
    slug_of = slugs(rows_by_domain)
    for (domain, rows), own_NC in zip(rows_by_domain.items(), parts, strict=True):
        targets_N = evaluator.dataset.targets_M[torch.from_numpy(rows)]
        heads_HNC = evaluator.head_outputs(predictor, rows)
        acc_H = (heads_HNC.argmax(-1) == targets_N).float().mean(1)
        own = (own_NC.argmax(-1) == targets_N).float().mean()
        found[f"test/adaptivity_gap/{slug_of[domain]}"] = float(acc_H.max() - own)
        if len(acc_H) <= FEW:
            of_domain = {f"domain {k}": name for k, name in enumerate(run.source.domain_names)}
            labels = getattr(predictor, "head_names", map(str, range(len(acc_H))))
            names = slugs([of_domain.get(label, label) for label in labels]).values()
            for name, acc in zip(names, acc_H.tolist(), strict=True):
                found[f"test/head_acc/{name}/{slug_of[domain]}"] = acc
    return found


def score_kept(run: Run) -> dict[str, Evaluation]:
    """Score the target with every kept checkpoint; gives the evaluation that each rule chose here.

    Rules choose among draws later, in a report; what is chosen here is the checkpoint.
    """
    kept = {"last": run.evaluations[-1].step, **{name: step for name, (_, step) in run.best.items()}}
    scored: set[int] = set()
    for name, step in kept.items():
        if run.stop.signal is not None:
            raise Interrupted(run.stop.signal)  # a resume scores the target again
        if step not in scored:
            scored.add(step)
            predictor = run.learner.predictor(run.source, checkpoint.load_weights(run, name))
            outputs, draws = score_target(run, step, predictor)
            store_outputs(run, step, predictor, outputs)
            if draws:
                store_choice(run, step, draws)
    run.evaluations = [
        Evaluation(e.step, {**e.metrics, **run.sealed.get(e.step, {})}) for e in run.evaluations
    ]
    by_step = {evaluation.step: evaluation for evaluation in run.evaluations}
    chosen = {rule.name: by_step[kept.get(rule.name, kept["last"])] for rule in run.rules if not rule.pairs}
    if not chosen:
        chosen["last"] = by_step[kept["last"]]
    for name, evaluation in chosen.items():
        metrics, measure = evaluation.metrics, measure_of(evaluation.metrics)
        summary = {
            f"test_{measure.key}": metrics[f"test/{measure.key}_domain_mean"],
            f"test_{measure.worst_group}": metrics[f"test/{measure.worst_group}"],
        }
        # At step 0, because MLflow draws bars, and not a curve of one point, of what has no other step.
        for key, value in {"step": evaluation.step, **summary}.items():
            run.rundir.record(f"chosen/{name}/{key}", value, 0)
    return chosen


def store_outputs(run: Run, step: int, predictor: Predictor, test: Mapping[str, torch.Tensor]) -> None:
    """Outputs of validation and target rows as ``predictions-STEP.parquet``, within the stated size, and
    every metric of them as ``metrics-STEP.csv``.

    Any metric can be computed again from them: logits, or what the task keeps in their place, in single
    precision; in half, examples would tie that a metric of ranks tells apart.
    """
    one = test["test"][0]  # of one example; all splits are alike
    rows, outputs = {}, {}
    for split in ("val", "id_val", *target_splits(run)):
        if split not in run.splits.rows:
            continue
        rows[split] = all_rows(run.splits.rows[split])
        size = len(rows[split]) * one.numel() * one.itemsize
        if size > run.config.selection.predictions_mb * 2**20:
            run.progress.say(f"outputs of {split} are not stored: {size / 2**20:.0f} MB is over the limit")
        elif split in test:
            outputs[split] = test[split]
        elif run.adapts_by_nature:
            outputs[split] = adapted_validation(run, predictor, split)
        else:
            outputs[split] = run.evaluator.outputs(predictor, rows[split])
    if outputs:
        predictions = run.evaluator.predictions(rows, outputs)
        write_predictions(run.rundir.path / f"predictions-{step}.parquet", predictions)
    known = {**outputs, **test}
    measured = {split: known[split] for split in known if split != "test_holdout"}  # the oracle's alone
    store_metrics(run, step, run.evaluator.predictions(rows, measured))


def store_metrics(run: Run, step: int, predictions: Predictions) -> None:
    """Every metric of every slice, the averages and the worst with intervals, as ``metrics-STEP.csv``."""
    import pandas as pd

    tables = []
    for split in dict.fromkeys(predictions.split_N.tolist()):
        table = every_metric(predictions.of(split), bootstrap=DRAWS, seed=run.config.trial_seed)
        table.insert(0, "split", split)
        tables.append(table)
    content = pd.concat(tables).to_csv(index=False, lineterminator="\n").encode()
    write_atomic(run.rundir.path / f"metrics-{step}.csv", content)


def store_choice(run: Run, step: int, draws: Sequence[Draw]) -> None:
    """Every draw of the test-time method and what it is worth as ``tta-STEP.json``; say which was chosen."""
    chosen, name = best(draws), run.config.tta.name
    metrics = {each.number: each.scores.flat("val_adapted") if each.scores else {} for each in draws}
    measure = measure_of(metrics[0])
    key = f"val_adapted/{measure.key}_domain_mean"
    content = [
        {
            "draw": each.number,
            "chosen": each is chosen,
            "hp": each.hp.model_dump(mode="json"),
            key: None if math.isnan(value) else value,  # JSON has no NaN
        }
        for each in draws
        for value in [metrics[each.number][key]]
    ]
    write_json(run.rundir.path / f"tta-{step}.json", {"method": name, "draws": content})
    settings = ", ".join(f"{key} {value}" for key, value in chosen.hp.model_dump(mode="json").items())
    score, given = (measure.shown(metrics[number][key]) for number in (chosen.number, 0))
    run.progress.say(
        f"{name} at checkpoint {step}: draw {chosen.number} ({settings}), {score} on validation data, "
        f"{given} as given"
    )


def adaptation_of(run: Run) -> Adaptation | None:
    """The run's test-time method and its protocol; None where it has none."""
    config = run.config
    if config.tta.name in ("", "none"):
        return None
    method = registry.load("tta", config.tta.name)
    lr = config.optimizer.lr
    assert lr is not None
    return Adaptation(run.evaluator, method, config.tta, run.source, config.trial_seed, lr)
