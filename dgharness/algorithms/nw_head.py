"""Predicts by likeness to a support of labelled examples, which in training comes from one domain at a time.

Paper: Wang, Nguyen and Sabuncu, "Learning Invariant Representations with a Nonparametric Nadaraya-Watson
    Head", NeurIPS 2023, arXiv:2309.13377.
Equation: p(y|x, S) = sum_{(x', y') in S} softmax_{x'}(-|f(x) - f(x')|) 1[y' = y];
    min_f mean over e of -log p(y|x, S_e), S_e a support from domain e with as many examples of each class
Agrees with: the authors' code (log of p + 1e-12, no square and no temperature) as far as this: the support of
    an update is drawn with replacement and is not augmented; queries whose class the drawn domain lacks are
    left out. The support of a predictor is fixed when it is made, inference=random too, so that no
    prediction depends on the batch; its examples are drawn, where the code takes the first ones. The
    unit sphere is an option here, the nearest-neighbour modes and the paper's explicit penalty are not.
    The model's own classifier takes no part and is frozen.
Trust: verified
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from dgharness.distances import full_precision
from dgharness.errors import UsageError
from dgharness.plugin import (
    Algorithm,
    Annotated,
    Choice,
    Descend,
    Hparams,
    Metrics,
    Needs,
    Setup,
    Source,
    Step,
    Structural,
    algorithm,
)
from dgharness.seeds import generator

# Shapes beyond those of dgharness.plugin: S examples of a support, Q queries of an update, L training rows.

Kernel = Literal["euclid", "hypersphere", "cosine"]


class NWHeadHparams(Hparams):
    kernel: Annotated[Kernel, Choice(("euclid", "hypersphere")), Structural] = "euclid"
    """Likeness: minus the distance, the same on the unit sphere, or the cosine."""
    shots: Annotated[PositiveInt, Choice((1, 2, 4, 8, 16)), Structural] = 1
    """Examples of each class in the support of an update, and under inference=random."""
    inference: Annotated[Literal["random", "full", "cluster", "ensemble"], Structural] = "full"
    """Support at test time: a few of each class, all, cluster centres, or all with one vote per domain."""
    most: Annotated[PositiveInt, Structural] = 100
    """Examples of each class and domain at test time, if the rarest class of the domain has that many."""
    clusters: Annotated[PositiveInt, Structural] = 3
    """Centres of each class under inference=cluster; 1 is the mean feature."""


class NWHead(Algorithm):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.model.classifier.requires_grad_(False)

    def update(self, step: Step, descend: Descend) -> Metrics:
        metrics: Metrics = {}
        support_x, label_S = self.draw_support(step)
        member_SC = F.one_hot(label_S, self.dims.outputs)
        target_Q = step.targets_EB.flatten()
        present_Q = member_SC.amax(0)[target_Q]

        def loss_fn() -> Tensor:
            z_ND = self.model.features(torch.cat([step.x, support_x]))
            z_QD, support_SD = z_ND.split([len(target_Q), len(label_S)])
            log_p_QC = (vote(likeness(z_QD, support_SD, self.hp.kernel), member_SC) + 1e-12).log()
            nll_Q = -log_p_QC.gather(1, target_Q[:, None]).squeeze(1)
            loss = (present_Q * nll_Q).sum() / present_Q.sum().clamp(min=1)
            if not metrics:
                metrics.update(loss=loss, risk=loss, queries=present_Q.to(loss).mean())
            return loss

        descend("model", loss_fn)
        return metrics

    def draw_support(self, step: Step) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a support of one domain: ``shots`` examples of every class that it has."""
        source = step.source
        if source is None:
            raise UsageError("nw-head draws its support from the training data; give Learner(source=...)")
        domain = int(torch.randint(len(source.counts_K), (1,), generator=step.generator("environment")))
        labels = source.columns["y"][source.columns["domain"] == domain].unique().tolist()
        draws = step.generator("support")
        drawn = [source.sample({"domain": domain, "y": y}, self.hp.shots, draws) for y in labels]
        return torch.cat([batch.x for batch in drawn]), torch.cat([b.targets_EB.flatten() for b in drawn])

    def predictor(self, source: Source | None) -> SupportPredictor:
        if source is None:
            raise UsageError(
                "nw-head predicts by likeness to training examples; ask for learner.predictor(source) with "
                "the training data and call its features and classify"
            )
        return SupportPredictor(self.model, self.hp, source, self.dims.outputs)


class SupportPredictor(nn.Module):
    """Votes of a support whose features are computed here, once; gives the logarithm of probabilities."""

    support_SD: Tensor
    member_SC: Tensor
    voter_S: Tensor

    def __init__(self, model: Any, hp: NWHeadHparams, source: Source, outputs: int) -> None:
        super().__init__()
        self.model, self.kernel = model, hp.kernel
        z_SD, label_S, domain_S = encoded(model, source, hp.most)
        voter_S = domain_S if hp.inference == "ensemble" else torch.zeros_like(domain_S)
        if hp.inference == "random":
            chosen_S = balanced(label_S, voter_S, hp.shots, generator(0, "nw-head/random"))
            z_SD, label_S, voter_S = z_SD[chosen_S], label_S[chosen_S], voter_S[chosen_S]
        elif hp.inference == "cluster":
            z_SD, label_S = centres(z_SD, label_S, hp.clusters)
            voter_S = torch.zeros_like(label_S)
        self.register_buffer("support_SD", z_SD)
        self.register_buffer("member_SC", F.one_hot(label_S, outputs))
        self.register_buffer("voter_S", voter_S)

    def features(self, x: Any) -> Tensor:
        return self.model.features(x)

    def classify(self, z_ND: Tensor) -> Tensor:
        likeness_NS = likeness(z_ND, self.support_SD, self.kernel)
        voters = [self.voter_S == voter for voter in self.voter_S.unique()]
        votes = [vote(likeness_NS[:, own_S], self.member_SC[own_S]) for own_S in voters]
        return (torch.stack(votes).mean(0) + 1e-12).log()

    def forward(self, x: Any) -> Tensor:
        return self.classify(self.features(x))


@full_precision
def likeness(z_ND: Tensor, support_SD: Tensor, kernel: Kernel) -> Tensor:
    """How like each support every example is, [N, S].

    >>> likeness(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0], [6.0, 8.0]]), "euclid")
    tensor([[-4., -5.]])
    >>> likeness(torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0], [6.0, 8.0]]), "cosine")
    tensor([[0.6000, 1.0000]])
    """
    support_SD = support_SD.to(z_ND)
    if kernel != "euclid":
        z_ND, support_SD = F.normalize(z_ND, dim=-1), F.normalize(support_SD, dim=-1)
    if kernel == "cosine":
        return z_ND @ support_SD.mT
    return -torch.cdist(z_ND, support_SD, compute_mode="donot_use_mm_for_euclid_dist")


@full_precision
def vote(likeness_NS: Tensor, member_SC: Tensor) -> Tensor:
    """Probabilities [N, C]: the softmax over the support, summed by class."""
    return likeness_NS.softmax(-1) @ member_SC.to(likeness_NS)


def balanced(label_L: Tensor, domain_L: Tensor, most: int, draws: torch.Generator) -> Tensor:
    """Positions [S] of as many examples of every class that a domain has, drawn without replacement.

    >>> label_L, domain_L = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 0, 0, 1])
    >>> chosen_S = balanced(label_L, domain_L, 9, torch.Generator())
    >>> label_L[chosen_S], domain_L[chosen_S]
    (tensor([0, 0, 1, 1, 1]), tensor([0, 0, 0, 0, 1]))
    """
    chosen = []
    for domain in domain_L.unique():
        held = label_L[domain_L == domain].unique()
        classes = [((domain_L == domain) & (label_L == label)).nonzero().flatten() for label in held]
        size = min(most, *(len(rows) for rows in classes))
        chosen += [
            rows[torch.randperm(len(rows), generator=draws)[:size].to(rows.device)] for rows in classes
        ]
    return torch.cat(chosen)


@torch.no_grad()
def encoded(model: Any, source: Source, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [S, D], labels and domains of a balanced part of the training data, in its own order."""
    columns = source.columns
    chosen_S = balanced(columns["y"], columns["domain"], most, generator(0, "nw-head/support"))
    row_S = columns["index"][chosen_S]
    z, label, domain = [], [], []
    for batch in source.batches("train", 256):
        keep_B = torch.isin(batch.index_EB[0], row_S)
        if keep_B.any():
            z.append(model.features(batch.x[keep_B]))
            label.append(batch.targets_EB[0, keep_B])
            domain.append(batch.domain_EB[0, keep_B])
    return torch.cat(z), torch.cat(label), torch.cat(domain)


def centres(z_SD: Tensor, label_S: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The centres of k-means in every class, and their labels."""
    from sklearn.cluster import KMeans

    centre, label = [], []
    for own in label_S.unique():
        z_BD = z_SD[label_S == own]
        means = KMeans(min(clusters, len(z_BD)), n_init="auto", random_state=0).fit(
            z_BD.double().cpu().numpy()
        )
        centre.append(torch.from_numpy(means.cluster_centers_).to(z_SD))
        label.append(own.expand(len(centre[-1])))
    return torch.cat(centre), torch.cat(label)


nw_head = algorithm(NWHeadHparams, needs=Needs(tasks=("classification",), one_tensor=True))(NWHead)
