"""Why a rule has no result on some runs, in a sentence."""

from __future__ import annotations

from dgharness.selection.rule import Choice, Rule, RunRecord


def unscored(rule: Rule, choice: Choice) -> str:
    """Why the chosen checkpoint has no result: the target is scored only where a run's own rules choose."""
    if any(key.startswith("test/") for key in choice.evaluation.metrics):
        return ""
    run, step = choice.run, choice.evaluation.step
    prepared = f": it was prepared for {', '.join(run.rules)}" if run.rules else ""
    return (
        f"{rule.name} chooses step {step} of run {run.run_id}, where the target was not scored{prepared}; "
        f"runs with {rule.name} in selection.rules are, and last needs none"
    )


def no_choice(rule: Rule, where: str) -> str:
    """No checkpoint of these runs has a score."""
    if rule.pairs:
        return f"{rule.name} finds no step that all runs on pairs of targets share in {where}"
    lacking = {
        "test_holdout": ": no labelled target examples were held back for an oracle",
        "classes": ": it goes by classes, and validation has none, or one alone; name another rule",
    }
    return f"{rule.name} finds no metric to go by in {where}{lacking.get(rule.needs, '')}"


def no_pairs(rule: Rule, label: str, anyone: bool) -> str:
    """No run held out a training domain together with the target; ``anyone``: not so of every row."""
    return f"{rule.name} needs runs on pairs of targets; there are none" + (f" of {label}" if anyone else "")


def no_held_out(rule: Rule, run: RunRecord) -> str:
    """The validation domains are trained on, or nobody knows."""
    return (
        f"{rule.name} goes by a validation split whose domains are not trained on, and run {run.run_id} "
        f"under {run.protocol} says of none that it has one"
    )
