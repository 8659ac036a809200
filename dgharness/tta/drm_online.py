"""Retrains drm's heads, or all of it, batch by batch on the target, with labels that the heads predict.

Paper: Zhang et al., "Domain-Specific Risk Minimization for Domain Generalization", KDD 2023,
    arXiv:2208.08661 (online retraining).
Equation: min sum_i mean { CE(h_i(f(x)), y_i(x)) : c_i(x) >= beta } over the K + 1 heads, by steps of Adam at
    alpha times training's lr; y_i and c_i are the arg-max and maximum of p_i(x) (own) or of one p(x) for all
Agrees with: the authors' AdaNPC code (DRM and DRMFull): a head without a confident example is left as it is,
    moments included, and a batch is predicted with the mixture of before the last step. Confidence is a
    plain probability (their code takes the softmax of mixed probabilities, so that at beta = 0.75 none is
    confident). The mixture is drm's own; with selection=entropy theirs, but for weights that sum to 1 over
    the heads that are mixed. BatchNorm keeps training's statistics, and Adam has no weight decay.
Trust: verified

Shapes: N examples of a batch, C classes, D features, H = K + 1 heads, the pooled one last.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from dgharness.errors import UsageError
from dgharness.plugin import Annotated, Choice, Hparams, Needs, Source, Structural, tta_method

Label = Literal["own", "last", "uniform", "drm"]


class DRMOnlineHparams(Hparams):
    update: Annotated[Literal["heads", "all"], Structural] = "heads"
    """What is retrained: the heads alone (the paper's DRM), or all that predicts (DRMFull)."""
    lr_multiplier: Annotated[NonNegativeFloat, Choice((0.1, 1.0, 10.0))] = 1.0
    """Learning rate relative to training's (alpha); at 0 nothing is retrained."""
    training_lr: PositiveFloat = 1e-3
    """Learning rate of training; a run puts in its own."""
    steps: Annotated[PositiveInt, Choice((1, 3)), Structural] = 1
    """Updates on each batch."""
    threshold: Annotated[float, Choice((0.1, 0.25, 0.75, 1.1))] = 0.75
    """Least confidence of an example that is learned from (beta); above 1 there is none."""
    pseudo_label: Annotated[Label, Choice(("own", "last", "uniform", "drm")), Structural] = "drm"
    """Who labels an example: every head for itself, the last (pooled) one, the heads' plain mean, or drm's
    mixture."""
    gamma: Annotated[float | None, Choice((-1.0, 0.0, 0.5, 1.0, 5.0))] = None
    """Sharpness of the mixture's weights; unset keeps the one that drm was trained with."""


class DRMOnline:
    def __init__(self, predictor: Any, hp: DRMOnlineHparams, source: Source | None, seed: int) -> None:
        if not (hasattr(predictor, "separate_heads") and hasattr(predictor, "mix")):
            raise UsageError(
                f"drm-online retrains the heads of drm, and {type(predictor).__name__} has none; "
                "train with --algorithm drm, or choose another TTA method"
            )
        self.predictor, self.hp = predictor.eval().requires_grad_(False), hp
        self.heads = predictor.separate_heads()
        trained = [*self.heads.parameters(), *(predictor.model.parameters() if hp.update == "all" else ())]
        trained = list(dict.fromkeys(trained))  # the model has the pooled head too
        for parameter in trained:
            parameter.requires_grad_()
        self.optimizer = torch.optim.Adam(trained, lr=hp.lr_multiplier * hp.training_lr)

    @torch.enable_grad()
    def __call__(self, x: Any) -> Tensor:
        z_ND = self.predictor.features(x)
        for step in range(self.hp.steps):
            if step and self.hp.update == "all":
                z_ND = self.predictor.features(x)
            # Apart until each has its loss: a head without one has no gradient then, where a stack of all
            # would give it a gradient of 0, and Adam would move it by its momentum.
            by_head = [head(z_ND) for head in self.heads]
            logits_HNC = torch.stack(by_head).detach()
            logits_HNC = logits_HNC.to(torch.promote_types(logits_HNC.dtype, torch.float32))
            log_p_NC = self.predictor.mix(logits_HNC, z_ND.detach(), self.hp.gamma)
            p_HNC = self._labelling(logits_HNC.softmax(-1), log_p_NC.exp())
            self._update(by_head, *p_HNC.max(-1))
        return log_p_NC

    def _update(self, by_head: list[Tensor], confidence_HN: Tensor, label_HN: Tensor) -> None:
        kept_HN = confidence_HN >= self.hp.threshold
        losses = [
            F.cross_entropy(logits_NC[kept_N], label_N[kept_N])
            for logits_NC, label_N, kept_N in zip(by_head, label_HN, kept_HN, strict=True)
            if kept_N.any()
        ]
        if losses:
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            self.optimizer.step()

    def _labelling(self, p_HNC: Tensor, mixed_NC: Tensor) -> Tensor:
        """The probabilities [H, N, C] that every head's labels are read from."""
        match self.hp.pseudo_label:
            case "own":
                return p_HNC
            case "last":
                return p_HNC[-1].expand_as(p_HNC)
            case "uniform":
                return p_HNC.mean(0).expand_as(p_HNC)
            case "drm":
                return mixed_NC.expand_as(p_HNC)


drm_online = tta_method(DRMOnlineHparams, needs=Needs(tasks=("classification",)))(DRMOnline)
