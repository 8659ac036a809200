"""Gives every training domain a linear head of its own beside the pooled one, and mixes them per example.

Paper: Zhang et al., "Domain-Specific Risk Minimization for Domain Generalization", KDD 2023,
    arXiv:2208.08661.
Equation: min (1/K) sum_d 1/2 [ R_d(h_d . f) + R_d(h_0 . f) ]; p(y|x) = sum_i w_i(x) p_i(y|x),
    w_i proportional to H(p_i(x))^-gamma or |f(x) - mu_i|^-gamma, or p(domain i | f(x)); H an entropy
Agrees with: the training loss of the authors' AdaNPC code; where a minibatch holds fewer than K domains, the
    mean is over those. Heads are weighted per example and not per batch, so that no prediction depends on its
    neighbours, and the weights sum to 1 over the heads that are mixed (the code normalises over K+1 heads
    and sums K). The nearest prototype by cosine is the most similar one (the code takes the least).
    The discriminator learns in the same objective, from detached features: what it learns changes
    nothing else, unless clipping or SAM measures one gradient over all. Retraining on target data is the
    test-time method drm-online.
Trust: verified

Shapes: as in ``dgharness.plugin``, and H heads, K or K + 1 with the pooled one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
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

WIDTH = 256  # of the discriminator's hidden layers


class DRMHparams(Hparams):
    selection: Annotated[
        Literal["uniform", "entropy", "prototype", "cosine", "discriminator"], Structural
    ] = "entropy"
    """How heads are weighted at test time: alike, by their certainty, by the distance to their domain's mean
    feature (Euclidean or of the cosine), or by a network that tells domains apart."""
    gamma: Annotated[float, Choice((-1.0, 0.0, 0.5, 1.0, 5.0))] = 1.0
    """Sharpness of the weights (not the discriminator's); 0 weights all heads alike, anything negative takes
    the best one alone."""
    prototype_samples: Annotated[int, Structural] = 512
    """Training examples behind the mean feature of a domain."""


class DRM(nn.Module):
    def __init__(self, dims: Dims, hp: DRMHparams) -> None:
        super().__init__()
        self.sizes_KC = (dims.domains, dims.outputs)
        # One wide layer starts as K layers would: the bound of the draw depends on D alone.
        self.heads = nn.Linear(dims.features, dims.domains * dims.outputs)
        self.discriminator = discriminator(dims) if hp.selection == "discriminator" else None

    def forward(self, step: Step, hp: DRMHparams) -> tuple[Tensor, Metrics]:
        logits_EBKC = self.heads(step.features_EBD).unflatten(-1, self.sizes_KC)
        own_EBC = logits_EBKC.take_along_dim(step.domain_EB[..., None, None], 2).squeeze(2)
        own, pooled = step.loss(own_EBC, step.targets_EB).mean(), step.risks_E.mean()
        loss, metrics = (own + pooled) / 2, {"risk": pooled, "own_head_risk": own}
        if self.discriminator is not None:
            guess_NK = self.discriminator(step.features_EBD.detach().flatten(0, 1))
            metrics["domain_risk"] = F.cross_entropy(guess_NK, step.domain_EB.flatten())
            loss = loss + metrics["domain_risk"]
        return loss, metrics

    def predictor(self, model: Any, hp: DRMHparams, source: Source | None) -> HeadMixture:
        prototype_KD = None
        if hp.selection in ("prototype", "cosine"):
            if source is None:
                raise UsageError(
                    f"drm with selection={hp.selection} predicts from training data; set selection=entropy"
                )
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

    def separate_heads(self) -> nn.ModuleList:
        """Every head as a layer of its own, in order: copies of the domains', and the pooled one itself."""
        (K, C), wide = self.drm.sizes_KC, self.drm.heads
        like = {"device": wide.weight.device, "dtype": wide.weight.dtype}
        own = [nn.utils.skip_init(nn.Linear, wide.in_features, C, **like) for _ in range(K)]
        for k, head in enumerate(own):
            rows = slice(k * C, (k + 1) * C)
            head.load_state_dict({name: p[rows] for name, p in wide.named_parameters()})
        return nn.ModuleList([*own, self.model.classifier])

    def classify(self, z_ND: Tensor) -> Tensor:
        return self.mix(self.heads(z_ND), z_ND)

    def mix(self, logits_HNC: Tensor, z_ND: Tensor, gamma: float | None = None) -> Tensor:
        """Logarithm [N, C] of the weighted mean of the heads' probabilities; ``gamma`` replaces the own."""
        log_p_HNC = logits_HNC.log_softmax(-1)
        weight_HN = self.weights(log_p_HNC, z_ND, self.hp.gamma if gamma is None else gamma)
        # The pooled head comes last, and has no domain to be close to.
        return (log_p_HNC[: len(weight_HN)] + weight_HN[..., None].log()).logsumexp(0)

    def weights(self, log_p_HNC: Tensor, z_ND: Tensor, gamma: float) -> Tensor:
        """Weights [H, N] of the heads that are mixed: all K + 1, or the K that belong to a domain."""
        if self.drm.discriminator is not None:
            return self.drm.discriminator(z_ND).to(log_p_HNC.dtype).softmax(-1).mT
        if self.hp.selection == "entropy":
            unfit_HN = -(log_p_HNC.exp() * log_p_HNC).sum(-1)
        elif self.prototype_KD is None:
            unfit_HN = torch.ones_like(log_p_HNC[..., 0])
        else:
            mu_KD, z_ND = self.prototype_KD, z_ND.to(log_p_HNC.dtype)
            if self.hp.selection == "cosine":
                mu_KD, z_ND = F.normalize(mu_KD), F.normalize(z_ND)
            unfit_HN = torch.cdist(mu_KD, z_ND, compute_mode="donot_use_mm_for_euclid_dist")
            if self.hp.selection == "cosine":  # 1 - cosine, without its cancellation
                unfit_HN = unfit_HN.square() / 2
        return inverse_power(unfit_HN, gamma)

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


def discriminator(dims: Dims) -> nn.Module:
    """Features to logits of the K domains: DomainBed's network of three layers."""
    return nn.Sequential(
        nn.Linear(dims.features, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, dims.domains),
    )


@torch.no_grad()
def prototypes(model: Any, domains: int, samples: int, source: Source) -> Tensor:
    """Mean feature [K, D] of every training domain, from examples drawn 64 at a time."""
    draw = generator(0, "drm/prototypes")
    sizes = [min(64, samples - start) for start in range(0, samples, 64)]
    return torch.stack(
        [
            torch.cat([model.features(source.sample({"domain": k}, n, draw).x) for n in sizes]).mean(0)
            for k in range(domains)
        ]
    )


drm = objective(DRMHparams, needs=Needs(tasks=("classification",)))(DRM)
