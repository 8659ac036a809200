"""Takes one step towards the experts on a few unlabelled target examples, and predicts with what came of it.

Paper: Zhong et al., "Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts",
    NeurIPS 2022, arXiv:2210.03885.
Equation: theta' = theta - a grad_theta mean (f_theta(x_S) - A_phi({E_m(x_S)}, all m))^2 with the first batch
    of the domain for x_S; then h_w(f_theta'(x)) for every x of it
Agrees with: the authors' code: all experts, one step from the meta-learned weights for every domain, taken
    once and on its first batch, which is scored along with the rest. The harness scores the rest alone, too.
Trust: verified
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from dgharness.errors import UsageError
from dgharness.plugin import Annotated, Hparams, Source, Structural, tta_method


class MetaDMoEHparams(Hparams):
    support: Annotated[PositiveInt | None, Structural] = None
    """Examples to adapt to, from the first batch alone; unset, as many as in meta-training."""


class MetaDMoE:
    """``support`` is how many of the first examples it has adapted to."""

    def __init__(self, predictor: Any, hp: MetaDMoEHparams, source: Source | None, seed: int) -> None:
        if not hasattr(predictor, "distill"):
            raise UsageError(
                f"the TTA method meta-dmoe needs the experts of the algorithm meta-dmoe, and "
                f"{type(predictor).__name__} has none; set algorithm=meta-dmoe or choose another TTA method"
            )
        self.predictor, self.wanted, self.support = predictor, hp.support, 0

    def __call__(self, x: Any) -> Tensor:
        if not self.support:
            self.support = self.predictor.distill(x, self.wanted)
        with torch.no_grad():
            return self.predictor.classify(self.predictor.features(x))


meta_dmoe = tta_method(MetaDMoEHparams)(MetaDMoE)
