"""Learns to adapt to a domain by one step towards what experts of other domains make of a few examples.

Paper: Zhong et al., "Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts",
    NeurIPS 2022, arXiv:2210.03885.
Equation: theta'(phi) = theta - a grad_theta mean (f_theta(x_S) - A_phi({E_m(x_S)}, m not of the domain))^2;
    min_{theta, w, phi} R_Q(h_w . f_theta'(phi)), S and Q the support and query examples of one domain
Agrees with: the authors' code (n3il666/Meta-DMoE) in networks, losses, masking and the order of the stages:
    experts, aggregator, student, meta. In the last one everything stands in evaluation mode, the head w is
    not adapted, and the gradient goes through the inner step. It differs where the harness has one way for
    all methods: a minibatch holds several domains, whose outer losses are averaged (there it is one domain);
    all experts train side by side; the sampler is the same in every stage and draws with replacement;
    checkpoints are chosen by the adapted student on validation parts of the training domains (there on
    further domains), and not after every stage. Rates do not decay and moments are not reset within a
    stage. As there, weight decay is for experts and the student's own stage. Attention has 16 heads where
    16 divides the number of features, else their largest common divisor.
Trust: verified

Shapes: those of plugin.py, with M experts, and S support and Q query examples of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from dgharness.distances import full_precision
from dgharness.errors import NotApplicable
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Choice,
    Descend,
    Hparams,
    IntLogUniform,
    LogUniform,
    MakeOptimizer,
    Metrics,
    Needs,
    NonNegativeInt,
    Setup,
    Source,
    Stage,
    Step,
    Structural,
    algorithm,
)
from dgharness.seeds import generator

HEADS, DROPOUT = 16, 0.1


class MetaDMoEHparams(Hparams):
    experts: Annotated[int, Field(ge=2), IntLogUniform(2, 11), Structural] = 5
    """Experts, each for a cluster of training domains; there are at most as many as domains."""
    support: Annotated[PositiveInt, Choice((8, 16, 32, 64)), Structural] = 16
    """Examples of a row, at most all but one, that the student adapts to; at test time, of the domain."""
    inner_lr: Annotated[NonNegativeFloat, LogUniform(10**-4.5, 10**-2.5)] = 1e-3
    """Rate of the inner step; the loss is a mean over features, so that wider ones need a larger rate."""
    expert_steps: Annotated[NonNegativeInt, Structural] = 1000
    """Updates of the first stage, in which every expert trains on the domains of its cluster."""
    aggregator_steps: Annotated[NonNegativeInt, Structural] = 500
    """Updates of the second stage, in which the aggregator and a head of its own train on all domains."""
    student_steps: Annotated[NonNegativeInt, Structural] = 1000
    """Updates of the third stage, in which the student trains on all domains; the rest is meta-training."""
    aggregator_lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-3, 1.0)] = 0.1
    """Learning rate of the aggregator in its own stage, relative to that of experts and student."""
    meta_lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-2, 1.0)] = 0.1
    """Learning rate of the student in meta-training, relative to that before it."""
    meta_aggregator_lr_multiplier: Annotated[PositiveFloat, LogUniform(1e-2, 1.0)] = 0.1
    """Learning rate of the aggregator in meta-training, relative to the student's there."""


def stages(hp: MetaDMoEHparams) -> list[Stage]:
    return [
        Stage("experts", hp.expert_steps),
        Stage("aggregator", hp.aggregator_steps),
        Stage("student", hp.student_steps),
        Stage("meta"),
    ]


def stage_at(hp: MetaDMoEHparams, t: int) -> str:
    """The stage of the update after ``t`` updates."""
    *before, last = stages(hp)
    for stage in before:
        if t < (stage.steps or 0):
            return stage.name
        t -= stage.steps or 0
    return last.name


def clusters(domains: int, experts: int) -> Tensor:
    """The expert [K] of each domain: the domains in a shuffled order, cut into contiguous parts.

    >>> clusters(7, 3).bincount()
    tensor([3, 2, 2])
    """
    order_K = torch.randperm(domains, generator=generator(0, "meta-dmoe/clusters"))
    expert_K = torch.empty_like(order_K)
    expert_K[order_K] = torch.arange(domains) * experts // domains
    return expert_K


# --- networks --------------------------------------------------------------------------------------


class Aggregator(nn.Module):
    """A_phi: one pre-norm transformer block over the experts' features, and their mean.

    There is no positional code, so that the order of the experts does not matter.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(features), nn.LayerNorm(features)])
        heads = math.gcd(HEADS, features)
        self.attention = nn.MultiheadAttention(features, heads, dropout=DROPOUT, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(features, 2 * features),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(2 * features, features),
            nn.Dropout(DROPOUT),
        )
        self.head = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, outputs))

    def forward(self, tokens_NMD: Tensor, keep_NM: Tensor) -> Tensor:
        """Features [N, D] out of those tokens of each example that are kept; the others are as if absent."""
        z = self.norms[0](tokens_NMD)
        attended_NMD, _ = self.attention(z, z, z, key_padding_mask=~keep_NM, need_weights=False)
        tokens_NMD = tokens_NMD + attended_NMD
        tokens_NMD = tokens_NMD + self.mlp(self.norms[1](tokens_NMD))
        return tokens_NMD.mul(keep_NM[..., None]).sum(1) / keep_NM.sum(1, keepdim=True)


class Mixture(nn.Module):
    """The teacher: frozen experts, and the aggregator of their features."""

    def __init__(self, experts: list[nn.Module], aggregator: Aggregator) -> None:
        super().__init__()
        self.experts, self.aggregator = nn.ModuleList(experts), aggregator

    def forward(self, x: Any, without_N: Tensor | None = None) -> Tensor:
        """Features [N, D] of all experts together, or of all but one for each example."""
        experts: Any = self.experts.eval()
        with torch.no_grad():
            tokens_NMD = torch.stack([expert.features(x) for expert in experts], dim=1)
        keep_NM = torch.ones_like(tokens_NMD[..., 0]).bool()
        if without_N is not None:
            keep_NM = torch.arange(len(experts), device=without_N.device) != without_N[:, None]
        aggregated_ND: Tensor = self.aggregator(tokens_NMD, keep_NM)
        return aggregated_ND


# --- the inner step --------------------------------------------------------------------------------


@full_precision
def distance(z_SD: Tensor, taught_SD: Tensor) -> Tensor:
    """Mean square of the difference, over examples and features."""
    return (z_SD - taught_SD).square().mean()


def inner_step(
    encoder: nn.Module, theta: Mapping[str, Tensor], x_S: Any, taught_SD: Tensor, rate: float
) -> tuple[dict[str, Tensor], Tensor]:
    """theta' after one step towards the teacher, a function of theta and of what is taught; the distance."""
    apart = distance(functional_call(encoder, dict(theta), (x_S,)), taught_SD)
    slopes = torch.autograd.grad(apart, list(theta.values()), create_graph=True, materialize_grads=True)
    moved = {name: value - rate * slope for (name, value), slope in zip(theta.items(), slopes, strict=True)}
    return moved, apart


def take(x: Any, index: Tensor | slice) -> Any:
    """Some examples of a batch, whatever the model takes."""
    return {name: take(value, index) for name, value in x.items()} if isinstance(x, Mapping) else x[index]


# --- training --------------------------------------------------------------------------------------


class MetaDMoE(Algorithm):
    expert_K: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        dims, hp = setup.dims, setup.hp
        if dims.domains < 2:
            raise NotApplicable("meta-dmoe cannot run here: it needs at least 2 training domains")
        encoder = setup.model.featurizer.named_parameters()
        self.adapted = tuple(name for name, parameter in encoder if parameter.requires_grad)
        if not self.adapted:
            raise NotApplicable("meta-dmoe cannot run here: it needs a featurizer with parameters that train")
        experts = min(hp.experts, dims.domains)
        self.register_buffer("expert_K", clusters(dims.domains, experts))
        self.teacher = Mixture(
            [setup.new_model() for _ in range(experts)], Aggregator(dims.features, dims.outputs)
        )

    def optimizers(self, make: MakeOptimizer) -> dict[str, torch.optim.Optimizer]:
        """One per stage; in the last one, aggregator and student step together, each at its own rate."""
        hp = self.hp
        student = [*self.model.named_parameters(prefix="model")]
        aggregator = [*self.teacher.aggregator.named_parameters(prefix="teacher.aggregator")]
        experts = [pair for each in self.teacher.experts for pair in each.named_parameters(prefix="model")]
        taught, teaching = hp.meta_lr_multiplier, hp.meta_lr_multiplier * hp.meta_aggregator_lr_multiplier
        meta = make(student, lr_multiplier=taught, weight_decay=0.0)
        for group in make(aggregator, lr_multiplier=teaching, weight_decay=0.0).param_groups:
            meta.add_param_group(group)
        return {
            "experts": make(experts),
            "aggregator": make(aggregator, lr_multiplier=hp.aggregator_lr_multiplier, weight_decay=0.0),
            "student": make(student),
            "meta": meta,
        }

    def update(self, step: Step, descend: Descend) -> Metrics:
        stage = stage_at(self.hp, step.t)
        objective = {
            "experts": self.expert_risk,
            "aggregator": self.aggregator_risk,
            "student": self.student_risk,
            "meta": self.query_risk,
        }[stage]
        metrics: Metrics = {}

        def loss_fn() -> Tensor:
            loss, terms = objective(step.fresh())
            if not metrics:
                metrics.update(terms)
            return loss

        descend(stage, loss_fn)
        return metrics

    def expert_risk(self, step: Step) -> tuple[Tensor, Metrics]:
        """Each expert's risk on the examples of its own domains."""
        expert_N, targets_N = self.expert_K[step.domain_EB.flatten()], step.targets_EB.flatten(0, 1)
        risks = []
        for number, expert in enumerate(self.teacher.experts):
            own = (expert_N == number).nonzero().flatten()
            if len(own):
                risks.append(step.loss(expert(take(step.x, own)), targets_N[own]).mean())
        loss = torch.stack(risks).sum()
        return loss, {"expert_risk": loss / len(risks)}

    def aggregator_risk(self, step: Step) -> tuple[Tensor, Metrics]:
        """Risk of the aggregator's own head with the features of all experts."""
        logits_NC = self.teacher.aggregator.head(self.teacher(step.x))
        loss = step.loss(logits_NC.unflatten(0, step.domain_EB.shape), step.targets_EB).mean()
        return loss, {"aggregator_risk": loss}

    def student_risk(self, step: Step) -> tuple[Tensor, Metrics]:
        risk = step.risks_E.mean()
        return risk, {"risk": risk, "risks_E": step.risks_E}

    def query_risk(self, step: Step) -> tuple[Tensor, Metrics]:
        """Risk of each row's query examples with the student adapted to its support examples."""
        self.eval()  # BatchNorm and dropout stand still, as at test time
        rows, size = step.domain_EB.shape
        support = min(self.hp.support, size - 1)
        index_EB = torch.arange(rows * size, device=step.domain_EB.device).view(rows, size)
        index_ES, index_EQ = index_EB[:, :support], index_EB[:, support:]
        if support:
            expert_ES = self.expert_K[step.domain_EB[:, :support]]
            taught_ND = self.teacher(take(step.x, index_ES.flatten()), without_N=expert_ES.flatten())
            taught_ESD = taught_ND.unflatten(0, index_ES.shape)
        encoder = self.model.featurizer
        own = dict(encoder.named_parameters())
        theta = {name: own[name] for name in self.adapted}
        risks, distances = [], []
        for row in range(rows):
            adapted = theta
            if support:
                x_S = take(step.x, index_ES[row])
                adapted, apart = inner_step(encoder, theta, x_S, taught_ESD[row], self.hp.inner_lr)
                distances.append(apart)
            z_QD = functional_call(encoder, adapted, (take(step.x, index_EQ[row]),))
            risks.append(step.loss(self.model.classify(z_QD), step.targets_EB[row, support:]).mean())
        risks_E = torch.stack(risks)
        metrics = {"risk": risks_E.mean(), "risks_E": risks_E}
        if distances:
            metrics["distance"] = torch.stack(distances).mean()
        return metrics["risk"], metrics

    def predictor(self, source: Source | None) -> AdaptableStudent:
        return AdaptableStudent(self.model, self.teacher, self.adapted, self.hp)


# --- test time -------------------------------------------------------------------------------------


class AdaptableStudent(nn.Module):
    """The student as meta-training left it, with what it needs to adapt; ``distill`` changes it in place."""

    def __init__(self, model: Any, teacher: Mixture, adapted: tuple[str, ...], hp: MetaDMoEHparams) -> None:
        super().__init__()
        self.model, self.teacher, self.adapted, self.hp = model, teacher, adapted, hp

    @property
    def classifier(self) -> nn.Module:
        return self.model.classifier

    def features(self, x: Any) -> Tensor:
        return self.model.features(x)

    def classify(self, z: Tensor) -> Tensor:
        return self.model.classify(z)

    def distill(self, x: Any, support: int | None = None) -> int:
        """One inner step towards all experts on the first examples of ``x``; gives how many those were."""
        x_S = take(x, slice(self.hp.support if support is None else support))
        encoder = self.eval().model.featurizer
        own = dict(encoder.named_parameters())
        with torch.no_grad():
            taught_SD = self.teacher(x_S)
        with torch.enable_grad():  # on copies that ask for gradients: an average of weights does not
            theta = {name: own[name].detach().requires_grad_() for name in self.adapted}
            adapted, _ = inner_step(encoder, theta, x_S, taught_SD, self.hp.inner_lr)
        with torch.no_grad():
            for name, value in adapted.items():
                own[name].copy_(value)
        return len(taught_SD)


meta_dmoe = algorithm(MetaDMoEHparams, needs=Needs(min_domains=2), stages=stages, tta="meta-dmoe")(MetaDMoE)
