"""Predictions to try metrics on: few examples and levels, so that scores tie and slices lack classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dgharness.predictions import Predictions

N = 300
DOMAINS, GROUPS = ("a", "b", "only class 0", "not here"), ("g0", "g1", "g2", "empty")


def predictions(task: str = "classification", outputs: int = 3, n: int = N, **changes: Any) -> Predictions:
    """Random ones, with ties; the domain ``only class 0`` and the group ``empty`` are as they are called."""
    draw = torch.Generator().manual_seed(7)
    domain_N = torch.randint(3, (n,), generator=draw)
    group_N = torch.randint(-1, 3, (n,), generator=draw)
    outputs_NC = torch.randint(-4, 5, (n, outputs), generator=draw).float() / 2
    judged: dict[str, Any] = {}
    if task == "classification":
        targets = torch.randint(outputs, (n,), generator=draw).where(domain_N != 2, 0)
    elif task == "regression":
        targets = outputs_NC[:, 0] + torch.randint(-2, 3, (n,), generator=draw)
        targets[::10] = torch.nan
    else:
        targets = (torch.rand(n, outputs, generator=draw) < 0.4).float()
        targets = targets.masked_fill(torch.rand(n, outputs, generator=draw) < 0.2, torch.nan)
        right_NC = ((outputs_NC > 0) == (targets > 0.5)).double().masked_fill(targets.isnan(), torch.nan)
        judged = {"right_N": right_NC.nanmean(1), "loss_N": torch.rand(n, generator=draw)}
    given: dict[str, Any] = {
        "task": task,
        "row_N": torch.arange(n),
        "split_N": np.repeat("test", n),
        "outputs_NC": outputs_NC,
        "targets": targets,
        "domain_N": domain_N,
        "domains": DOMAINS,
        "group": group_N,
        "groups": GROUPS,
        "classes": tuple(f"c{k}" for k in range(outputs)) if task == "classification" else (),
        "train_count_G": torch.tensor([50, 30, 20, 0]),
    }
    return Predictions(**{**given, **judged, **changes})
