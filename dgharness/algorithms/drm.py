"""Gives every training domain a linear head of its own beside the pooled one, and mixes them per example.

Paper: Zhang et al., "Domain-Specific Risk Minimization for Domain Generalization", KDD 2023,
    arXiv:2208.08661.
Equation: min (1/K) sum_d 1/2 [ R_d(h_d . f) + R_d(h_0 . f) ]; p(y|x) = sum_i w_i(x) p_i(y|x),
    w_i proportional to H(p_i(x))^-gamma (entropy) or |f(x) - mu_i|^-gamma (prototype), H an entropy
Agrees with: the training loss of the authors' AdaNPC code; where a minibatch holds fewer than K domains, the
    mean is over those. Heads are weighted per example and not per batch, so that no prediction depends on its
    neighbours, and the weights sum to 1 over the heads that are mixed (the code normalises over K+1 heads
    and sums K). Retraining the heads on target data would be a test-time method and is not part of this.
Trust: verified
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.plugin import (
    Annotated,
    Choice,
    Dims,
    Hparams,
    Metrics,
    Needs,
    Source,
    Step,
    Structural,
    objective,
)
from dgharness.seeds import generator


class DRMHparams(Hparams):
    selection: Annotated[Literal["uniform", "entropy", "prototype"], Structural] = "entropy"
    """How heads are weighted at test time: alike, by confidence, or by closeness to their domain's mean."""
    gamma: Annotated[float, Choice((-1.0, 0.0, 0.5, 1.0, 5.0))] = 1.0
    """Sharpness of the weights; 0 weights all heads alike, anything negative takes the best one alone."""
    prototype_samples: Annotated[int, Structural] = 512
    """Training examples behind the mean feature of a domain."""


class DRM(nn.Module):
    def __init__(self, dims: Dims, hp: DRMHparams) -> None:
        super().__init__()
        self.sizes_KC = (dims.domains, dims.outputs)
        # One wide layer starts as K layers would: the bound of the draw depends on D alone.
        self.heads = nn.Linear(dims.features, dims.domains * dims.outputs)

    def forward(self, step: Step, hp: DRMHparams) -> tuple[Tensor, Metrics]:
        logits_EBKC = self.heads(step.features_EBD).unflatten(-1, self.sizes_KC)
        own_EBC = logits_EBKC.take_along_dim(step.domain_EB[..., None, None], 2).squeeze(2)
        own, pooled = step.loss(own_EBC, step.targets_EB).mean(), step.risks_E.mean()
        return (own + pooled) / 2, {"risk": pooled, "own_head_risk": own}

    def predictor(self, model: Any, hp: DRMHparams, source: Source | None) -> HeadMixture:
        prototype_KD = None
        if hp.selection == "prototype":
            prototype_KD = prototypes(model, self.sizes_KC[0], hp.prototype_samples, source)
        return HeadMixture(model, self, hp, prototype_KD)


class HeadMixture(nn.Module):
    """Predicts with all heads; its logits are the logarithm of the mixed probabilities."""

    prototype_KD: Tensor | None

    def __init__(self, model: Any, drm: DRM, hp: DRMHparams, prototype_KD: Tensor | None) -> None:
        super().__init__()
        self.model, self.drm, self.hp = model, drm, hp
        self.head_names = (*(f"domain {k}" for k in range(drm.sizes_KC[0])), "pooled")
        self.register_buffer("prototype_KD", prototype_KD)

    def features(self, x: Any) -> Tensor:
        return self.model.features(x)

    def heads(self, z_ND: Tensor) -> Tensor:
        """Logits [H, N, C] of every head, H = K + 1, the pooled head last."""
        logits_KNC = self.drm.heads(z_ND).unflatten(-1, self.drm.sizes_KC).movedim(1, 0)
        logits_HNC = torch.cat([logits_KNC, self.model.classify(z_ND)[None]])
        return logits_HNC.to(torch.promote_types(logits_HNC.dtype, torch.float32))

    def classify(self, z_ND: Tensor) -> Tensor:
        log_p_HNC = self.heads(z_ND).log_softmax(-1)
        if self.hp.selection == "entropy":
            unfit_HN = -(log_p_HNC.exp() * log_p_HNC).sum(-1)
        elif self.prototype_KD is not None:
            log_p_HNC = log_p_HNC[:-1]  # the pooled head has no domain, hence no prototype
            unfit_HN = torch.cdist(self.prototype_KD, z_ND, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            unfit_HN = torch.ones_like(log_p_HNC[..., 0])
        weight_HN1 = inverse_power(unfit_HN, self.hp.gamma)[..., None]
        return (log_p_HNC + weight_HN1.log()).logsumexp(0)

    def forward(self, x: Any) -> Tensor:
        return self.classify(self.features(x))


def inverse_power(unfit_HN: Tensor, gamma: float) -> Tensor:
    """Weights proportional to unfit^-gamma that sum to 1 over the heads; the least alone if gamma < 0.

    >>> inverse_power(torch.tensor([[1.0], [3.0]]), 1.0).flatten()
    tensor([0.7500, 0.2500])
    >>> inverse_power(torch.tensor([[1.0], [3.0]]), -1.0).flatten()
    tensor([1., 0.])
    """
    soft_HN = (-gamma * unfit_HN.clamp(min=torch.finfo(unfit_HN.dtype).tiny).log()).softmax(0)
    least_HN = (unfit_HN == unfit_HN.amin(0)).to(unfit_HN.dtype)
    hard = torch.as_tensor(gamma < 0, device=unfit_HN.device)
    return torch.where(hard, least_HN / least_HN.sum(0), soft_HN)


@torch.no_grad()
def prototypes(model: Any, domains: int, samples: int, source: Source | None) -> Tensor:
    """Mean feature [K, D] of every training domain, from examples drawn 64 at a time."""
    if source is None:
        raise UsageError("drm with selection=prototype predicts from training data; set selection=entropy")
    draw = generator(0, "drm/prototypes")
    sizes = [min(64, samples - start) for start in range(0, samples, 64)]
    return torch.stack(
        [
            torch.cat([model.features(source.sample({"domain": k}, n, draw).x) for n in sizes]).mean(0)
            for k in range(domains)
        ]
    )


drm = objective(DRMHparams, needs=Needs(tasks=("classification",)))(DRM)
