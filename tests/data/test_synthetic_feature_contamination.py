"""Feature contamination: cores and backgrounds as stated, and a network that learns the background."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dgharness.data.protocols import official
from dgharness.data.synthetic.feature_contamination import (
    NEGATIVE,
    POSITIVE,
    FeatureContaminationOptions,
    contaminated,
    feature_contamination,
)
from dgharness.errors import UsageError


@pytest.mark.parametrize("nonlinear", [True, False])
def test_the_core_tells_the_class_and_the_background_the_split(nonlinear):
    generated = contaminated(nonlinear=nonlinear)
    for split, name, sign in (("train", POSITIVE, 1), ("val", POSITIVE, 1), ("test", NEGATIVE, -1)):
        examples = generated[split][name]
        coordinates = examples.x @ generated.mixing_FF.T
        core, background = coordinates[:, :32], sign * coordinates[:, 32:]
        assert examples.y_N.bincount().tolist() == [500, 500]
        if nonlinear:
            assert torch.allclose(core.norm(dim=1), 2.0 - examples.y_N, atol=1e-4)
        else:
            assert torch.equal(core.sum(1) > 0, examples.y_N == 1) and core.abs().max() <= 1 + 1e-4
        assert background.min() > -1e-4 and background.max() < 1 + 1e-4
        assert background.mean().item() == pytest.approx(0.5, abs=0.01)
        of_each = [background[examples.y_N == y].mean().item() for y in (0, 1)]
        assert of_each[0] == pytest.approx(of_each[1], abs=0.01)


def test_the_test_has_the_training_cores_and_the_validation_part_fresh_ones():
    generated = contaminated(n=50)
    core = {
        split: (examples.x @ generated.mixing_FF.T)[:, :32]
        for split, by_name in generated.splits.items()
        for examples in by_name.values()
    }
    assert torch.allclose(core["train"], core["test"], atol=1e-5)
    assert not torch.allclose(core["train"], core["val"], atol=0.1)


def test_the_embedding_keeps_lengths():
    rows = contaminated(n=4).mixing_FF
    assert rows.shape == (64, 256) and torch.allclose(rows @ rows.T, torch.eye(64), atol=1e-5)


def test_a_network_learns_the_background_and_fails_when_it_changes():
    torch.manual_seed(0)
    generated = contaminated(n=400, core_dim=16, background_dim=16, input_dim=64)
    (train,), (test,) = generated["train"].values(), generated["test"].values()
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))

    def background_norm():
        return (net[0].weight @ generated.mixing_FF.T)[:, 16:].norm(dim=1).mean().item()

    def loss(examples):
        return F.softplus(-(2.0 * examples.y_N - 1) * net(examples.x).squeeze(1)).mean()

    before = background_norm()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(train).backward()
        optimizer.step()
    assert background_norm() > 2 * before
    assert loss(test) > 10 * loss(train)


def test_as_a_dataset_it_has_one_training_domain_and_another_target():
    dataset = feature_contamination.load(None, None, 0, FeatureContaminationOptions(n=30))
    splits = official(dataset, [NEGATIVE], 0)
    assert (splits.train_domains, splits.targets) == ((POSITIVE,), (NEGATIVE,))
    with pytest.raises(UsageError, match=r"data\.input_dim=10 cannot hold 32 core and 32 background"):
        contaminated(input_dim=10)
