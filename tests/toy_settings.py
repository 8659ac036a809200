"""Hyperparameters that bring a method into force within a few updates on a toy of three domains."""

from typing import Any

from dgharness import registry

# What the defaults would not show, or would not do, in ten updates.
TOY: dict[str, dict[str, Any]] = {
    "meta-dmoe": {
        "experts": 2,
        "expert_steps": 2,
        "aggregator_steps": 2,
        "student_steps": 2,
        "support": 4,
        "inner_lr": 0.1,
        "meta_lr_multiplier": 1.0,
    },
    "sparse-irm": {"horizon": 10, "anneal_steps": 3, "weight": 1.0},
    "iga": {"weight": 1.0},
    "ib-irm": {"irm_anneal_steps": 3, "ib_anneal_steps": 5, "irm_weight": 2.0, "ib_weight": 0.1},
    "irmx": {"anneal_steps": 3, "irm_weight": 2.0},
    "eqrm": {"burnin_steps": 3, "quantile_lr": 5e-3},
    "pair": {"pretrain_steps": 3},
    "support-alignment": {"ramp_steps": 3, "history": 20},
    "irm-games": {"warm_start": 3, "termination_acc": 0.0},
}


def toy(algorithm: str) -> dict[str, Any]:
    """Settings of an algorithm for a toy; those of a method that anneals put the step into the first ten."""
    fields = registry.load("algorithms", algorithm).hparams.model_fields
    annealed = {"anneal_steps": 5, "weight": 10.0} if "anneal_steps" in fields else {}
    return TOY.get(algorithm, annealed)
