"""The target, sealed while training: scored at the end, and only where a requested rule could choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dgharness import registry
from dgharness.errors import Interrupted
from dgharness.hparams import checked
from dgharness.names import slug
from dgharness.plugin import Predictor
from dgharness.seeds import seed_hash
from dgharness.selection.rule import Evaluation
from dgharness.training import checkpoint
from dgharness.training.evaluation import all_rows

if TYPE_CHECKING:
    from dgharness.training.loop import Run


def score_target(run: Run, t: int, predictor: Predictor) -> dict[str, torch.Tensor]:
    """Score the targets with one checkpoint into ``run.sealed``; gives the outputs by split.

    ``test/...`` is what the configured run predicts; with a test-time method the unadapted scores
    stand beside it as ``test_unadapted/...``, and a predictor of several heads gets its adaptivity gap:
    the accuracy of its best single head, known only to an oracle, minus its own.
    """
    evaluator, adapts = run.evaluator, run.config.tta.name not in ("", "none")
    outputs: dict[str, torch.Tensor] = {}
    sealed: dict[str, float] = {}
    for split in ("test", "test_holdout"):
        rows = all_rows(run.splits.rows[split])
        plain = outputs[split] = evaluator.outputs(predictor, rows)
        if adapts:
            sealed.update(evaluator.scores(plain, rows).flat(f"{split}_unadapted"))
            outputs[split] = torch.cat([_adapted(run, predictor, r) for r in run.splits.rows[split].values()])
        sealed.update(evaluator.scores(outputs[split], rows).flat(split))
    if hasattr(predictor, "heads"):
        for domain, rows in run.splits.rows["test"].items():
            sealed[f"test/adaptivity_gap/{slug(domain)}"] = adaptivity_gap(run, predictor, rows)
    if t not in run.sealed:  # a checkpoint scored while training is scored once more for its outputs
        run.sealed[t] = sealed
        for key, value in sealed.items():
            run.rundir.record(key, value, t)
    return outputs


def adaptivity_gap(run: Run, predictor: Any, rows: np.ndarray) -> float:
    """Accuracy of the best single head on these rows minus the predictor's own accuracy."""
    evaluator = run.evaluator
    targets_N = evaluator.dataset.targets_M[torch.from_numpy(rows)]
    own = (evaluator.outputs(predictor, rows).argmax(-1) == targets_N).float().mean()
    heads_H = (evaluator.head_outputs(predictor, rows).argmax(-1) == targets_N).float().mean(1)
    return float(heads_H.max() - own)


def score_kept(run: Run) -> dict[str, Evaluation]:
    """Score the target with every kept checkpoint; gives the evaluation that each rule chose here.

    Rules choose among draws later, in a report; what is chosen here is the checkpoint.
    """
    kept = {"last": run.evaluations[-1].step, **{name: step for name, (_, step) in run.best.items()}}
    outputs: dict[int, Mapping[str, torch.Tensor]] = {}
    for name, step in kept.items():
        if run.stop.signal is not None:
            raise Interrupted(run.stop.signal)  # a resume scores the target again
        if step not in outputs:
            predictor = run.learner.predictor(run.source, checkpoint.load_weights(run, name))
            outputs[step] = score_target(run, step, predictor)
            store_outputs(run, step, predictor, outputs[step])
    run.evaluations = [
        Evaluation(e.step, {**e.metrics, **run.sealed.get(e.step, {})}) for e in run.evaluations
    ]
    by_step = {evaluation.step: evaluation for evaluation in run.evaluations}
    chosen = {rule.name: by_step[kept.get(rule.name, kept["last"])] for rule in run.rules if not rule.pairs}
    if not chosen:
        chosen["last"] = by_step[kept["last"]]
    for name, evaluation in chosen.items():
        metrics = evaluation.metrics
        summary = {"test_acc": metrics["test/acc_domain_mean"], "test_wga": metrics["test/wga"]}
        # At step 0, because MLflow draws bars, and not a curve of one point, of what has no other step.
        for key, value in {"step": evaluation.step, **summary}.items():
            run.rundir.record(f"chosen/{name}/{key}", value, 0)
    return chosen


def store_outputs(run: Run, step: int, predictor: Predictor, test: Mapping[str, torch.Tensor]) -> None:
    """Outputs of validation and target rows as ``predictions-STEP.parquet``, within the stated size.

    Half precision: any metric can be computed again from them.
    """
    import pandas as pd

    dataset, frames, bytes_per_output = run.evaluator.dataset, [], 2
    for split in ("val", "test", "test_holdout"):
        rows = all_rows(run.splits.rows[split])
        size = len(rows) * dataset.task.outputs * bytes_per_output
        if size > run.config.selection.predictions_mb * 2**20:
            run.progress.say(f"outputs of {split} are not stored: {size / 2**20:.0f} MB is over the limit")
            continue
        logits = test[split] if split in test else run.evaluator.outputs(predictor, rows)
        columns: dict[str, Any] = {
            "row": rows,
            "split": split,
            "domain": dataset.manifest["domain"].iloc[rows].astype(str).to_numpy(),
            "y": dataset.targets_M[torch.from_numpy(rows)].numpy(),
        }
        for output in range(dataset.task.outputs):
            columns[f"logit_{output}"] = logits[:, output].half().numpy()
        frames.append(pd.DataFrame(columns))
    if frames:
        pd.concat(frames).to_parquet(run.rundir.path / f"predictions-{step}.parquet", index=False)


def _adapted(run: Run, predictor: Predictor, rows: np.ndarray) -> torch.Tensor:
    config = run.config.tta
    method = registry.load("tta", config.name)
    hp = checked(method.hparams, config.options, "tta")
    seed = seed_hash(run.config.trial_seed, "tta")
    return run.evaluator.adapted(predictor, rows, method, hp, config, run.source, seed)
