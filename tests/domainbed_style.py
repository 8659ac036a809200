"""Algorithm classes as they are written for DomainBed and for its forks; nothing here knows of dgharness."""

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import autograd, nn


class Algorithm(nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()
        self.input_shape, self.num_classes, self.num_domains = input_shape, num_classes, num_domains
        self.hparams = hparams

    def predict(self, x):
        raise NotImplementedError


class ERM(Algorithm):
    """The mean risk, as DomainBed computes it."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        width = int(np.prod(input_shape))
        self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.Tanh())
        self.classifier = nn.Linear(6, num_classes)
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self.new_optimizer()

    def new_optimizer(self):
        return torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def update(self, minibatches, unlabeled=None):
        all_x = torch.cat([x for x, y in minibatches])
        all_y = torch.cat([y for x, y in minibatches])
        loss = F.cross_entropy(self.predict(all_x), all_y)
        self.descend(loss)
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class IRM(ERM):
    """A penalty that sets in at an update, with a new optimizer there."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))

    def penalty(self, logits, y):
        scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
        even = F.cross_entropy(logits[::2] * scale, y[::2])
        odd = F.cross_entropy(logits[1::2] * scale, y[1::2])
        slopes = [autograd.grad(loss, [scale], create_graph=True)[0] for loss in (even, odd)]
        return slopes[0] * slopes[1]

    def update(self, minibatches, unlabeled=None):
        annealed = self.update_count >= self.hparams["irm_penalty_anneal_iters"]
        weight = self.hparams["irm_lambda"] if annealed else 1.0
        nll = torch.stack([F.cross_entropy(self.network(x), y) for x, y in minibatches]).mean()
        penalty = torch.stack([self.penalty(self.network(x), y) for x, y in minibatches]).mean()
        if self.update_count == self.hparams["irm_penalty_anneal_iters"]:
            self.optimizer = self.new_optimizer()
        self.descend(nll + weight * penalty)
        self.update_count += 1
        return {"loss": (nll + weight * penalty).item(), "nll": nll.item(), "penalty": penalty}


class MovingAverage:
    def __init__(self, rate):
        self.rate, self.values, self.updates = rate, {}, 0

    def update(self, name, value):
        before = self.values.get(name, torch.zeros_like(value))
        self.values[name] = (1 - self.rate) * before + self.rate * value.detach()
        self.updates += 1
        return self.values[name]


class Hoarder(ERM):
    """Keeps state in every place where classes keep it, and draws from every generator."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("q", torch.Tensor())
        self.steps, self.name, self.parts = 0, "hoarder", [self.featurizer, self.classifier]
        self.averages = [MovingAverage(0.1) for _ in range(num_domains)]
        self.recent = deque(maxlen=3)
        self.means = [torch.zeros(num_classes), torch.zeros(num_classes)]
        self.first_mean = self.means[0]
        self.extra = [nn.Linear(num_classes, num_classes)]  # which no state_dict sees
        self.extra_opt = torch.optim.SGD(self.extra[0].parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.extra_opt, lambda t: 0.9**t)
        self.inner_state = None

    def update(self, minibatches, unlabeled=None):
        if not len(self.q):
            self.q = torch.ones(len(minibatches))
        loss = torch.zeros(())
        for number, (x, y) in enumerate(minibatches):
            noise = torch.randn(()) + np.random.randn() + random.random()
            logits = self.predict(x)
            risk = F.cross_entropy(logits + 0.01 * noise * self.extra[0](logits), y)
            self.q[number] *= float(risk.detach().exp() ** 0.01)
            loss = loss + self.q[number] / self.q.sum() * risk
            smooth = self.averages[number].update("mean", logits.mean(0))
            loss = loss + 0.01 * (logits.mean(0) - smooth).square().sum() / (1 + self.steps)
        self.means[0].add_(logits.detach().mean(0))
        loss = loss + 0.01 * (logits * self.first_mean).mean()
        self.recent.append(loss.item())
        loss = loss * (1 + 0.01 * float(np.mean(self.recent)))
        self.extra_opt.zero_grad()
        self.descend(loss)
        self.extra_opt.step()
        self.scheduler.step()
        self.inner_state = self.optimizer.state_dict()
        self.steps += 1
        return {"loss": loss.item(), "a/b": np.float64(1.0), "note": "not a number", "many": torch.ones(3)}


class ListsERM(Algorithm):
    """The dialect of SWAD, MIRO and others: one list of inputs, one of labels, and more by keyword."""

    def __init__(self, input_shape, num_classes, num_domains, hparams, **kwargs):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        width = int(np.prod(input_shape))
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, num_classes))
        made = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[hparams["optimizer"]]
        self.optimizer = made(self.network.parameters(), lr=hparams.lr, weight_decay=hparams.weight_decay)
        self.ld = hparams.ld

    def update(self, x, y, **kwargs):
        logits, all_y = self.network(torch.cat(x)), torch.cat(y)
        loss = F.cross_entropy(logits, all_y) + self.ld * kwargs["step"] * logits.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)


class OwnModes(ERM):
    """Overrides both modes without their argument, as TRM does."""

    def train(self):
        self.mode = "train"
        return super().train()

    def eval(self):
        self.mode = "eval"
        return super().train(False)


class LateOptimizer(ERM):
    """Makes an optimizer when it first needs it."""

    late = None

    def update(self, minibatches, unlabeled=None):
        self.late = self.late or torch.optim.SGD(self.classifier.parameters(), lr=0.1, momentum=0.9)
        return super().update(minibatches)


class NoPredict(nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__()

    def update(self, minibatches, unlabeled=None):
        return {}


class OtherUpdate(ERM):
    def update(self, images, labels, domains):
        return {}


class OtherInit(ERM):
    def __init__(self, network):
        nn.Module.__init__(self)


def not_a_class():
    pass
