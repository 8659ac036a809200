"""Replaces the linear classifier by class prototypes, refined with the confident examples of the target.

Paper: Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization",
    NeurIPS 2021.
Equation: S_k starts as {w_k}; an example z joins S_k for its predicted class k, of which the M of lowest
    entropy stay; c_k = sum of z/|z| over S_k, and the score of class k is z . c_k / |c_k|
Agrees with: the authors' T3A: an example joins before it is scored, a classifier row counts for the class
    that the classifier itself gives it, and a class without support scores 0. keep=-1 keeps every support,
    where their code then drops one of each class. The scores are not calibrated logits.
Trust: verified
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.plugin import Annotated, Choice, Hparams, Needs, Source, Structural, tta_method


class T3AHparams(Hparams):
    keep: Annotated[int, Choice((1, 5, 20, 50, 100, -1)), Structural] = 20
    """Supports kept per class, those of lowest entropy; -1 keeps all."""


class T3A:
    def __init__(self, predictor: Any, hp: T3AHparams, source: Source | None, seed: int) -> None:
        classifier = getattr(predictor, "classifier", None)
        if not isinstance(classifier, nn.Linear):
            raise UsageError(
                f"t3a needs a predictor with one linear classifier, and {type(predictor).__name__} has "
                "none; choose another TTA method or a model with a linear head"
            )
        if hp.keep < 1 and hp.keep != -1:
            raise UsageError(f"t3a.keep={hp.keep} would keep no support; give at least 1, or -1 for all")
        self.predictor, self.keep = predictor, hp.keep
        weight_CD = classifier.weight.detach()
        self.support_SD = weight_CD[:0]
        self.label_S = torch.zeros(0, dtype=torch.long, device=weight_CD.device)
        self.entropy_S = weight_CD[:0, 0]
        self._add(weight_CD)

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        z_ND = self.predictor.features(x).to(self.support_SD.dtype)
        with torch.autocast(z_ND.device.type, enabled=False):  # in bfloat16 many scores would tie
            return self._score(z_ND)

    def _score(self, z_ND: Tensor) -> Tensor:
        self._add(z_ND)
        member_SC = F.one_hot(self.label_S, self.classes).to(z_ND.dtype)
        prototype_CD = member_SC.mT @ F.normalize(self.support_SD, dim=1)
        return z_ND @ F.normalize(prototype_CD, dim=1).mT

    @property
    def classes(self) -> int:
        return self.predictor.classifier.out_features

    @torch.no_grad()
    def _add(self, z_ND: Tensor) -> None:
        log_p_NC = self.predictor.classifier(z_ND).to(z_ND.dtype).log_softmax(-1)
        self.support_SD = torch.cat([self.support_SD, z_ND])
        self.label_S = torch.cat([self.label_S, log_p_NC.argmax(-1)])
        self.entropy_S = torch.cat([self.entropy_S, -(log_p_NC.exp() * log_p_NC).sum(-1)])
        if self.keep > 0:
            self._forget()

    def _forget(self) -> None:
        order_S = self.entropy_S.argsort(stable=True)
        member_SC = F.one_hot(self.label_S[order_S], self.classes)
        rank_S = (member_SC.cumsum(0) * member_SC).sum(1)  # 1 is the surest of its class
        kept_S = order_S[rank_S <= self.keep]
        self.support_SD, self.label_S = self.support_SD[kept_S], self.label_S[kept_S]
        self.entropy_S = self.entropy_S[kept_S]


t3a = tta_method(T3AHparams, needs=Needs(linear_classifier=True, tasks=("classification",)))(T3A)
