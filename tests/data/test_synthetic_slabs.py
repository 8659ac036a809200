"""Slabs: where they lie, how often, what corruption does; and that a network reads the simplest alone."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from dgharness.data.synthetic.slabs import SlabOptions, slab_number, slabs, slabs_of
from dgharness.errors import UsageError

EDGES = {  # slab from the centre -> |x|, written out from the paper's drawings at margin 0.1
    3: [(0.0, 0.26667), (0.46667, 1.0)],
    5: [(0.0, 0.12), (0.32, 0.56), (0.76, 1.0)],
    7: [(0.0, 0.05715), (0.25714, 0.37143), (0.57142, 0.68572), (0.88571, 1.0)],
}
SHARES = {  # class -> share of each slab from the centre
    3: {0: [1, 0], 1: [0, 1]},
    5: {0: [3 / 4, 0, 1 / 4], 1: [0, 1, 0]},
    7: {0: [1 / 2, 0, 1 / 2, 0], 1: [0, 7 / 8, 0, 1 / 8]},
}


@pytest.mark.parametrize("k", [3, 5, 7])
def test_slabs_lie_where_they_are_drawn_and_are_as_likely_as_they_should_be(k):
    examples = slabs_of(slabs=[k], corruption=[0.0], n=40_000)["train"]["corrupt 0%"]
    place, y = examples.x[:, 1], examples.y_N
    inside = [(place.abs() >= low - 1e-5) & (place.abs() <= high + 1e-5) for low, high in EDGES[k]]
    assert torch.stack(inside).sum(0).eq(1).all()
    for label in (0, 1):
        shares = [in_slab[y == label].double().mean().item() for in_slab in inside]
        assert shares == pytest.approx(SHARES[k][label], abs=0.015)
    assert (place > 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert examples.attributes["slab"].unique().tolist() == list(range(k))
    assert torch.equal(examples.attributes["slab"], slab_number(place, k))


def test_the_linear_coordinate_has_the_sign_of_the_label_and_a_margin():
    examples = slabs_of(corruption=[0.0])["train"]["corrupt 0%"]
    along = examples.x[:, 0] * (2 * examples.y_N - 1)
    assert 0.1 <= along.min() < 0.101 and 0.999 < along.max() <= 1.0
    assert along.mean().item() == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("corrupt", ["margin", "flip"])
def test_exactly_the_stated_part_of_a_domain_is_corrupted_and_the_slabs_stay(corrupt):
    generated = slabs_of(corruption=(0.0, 0.1, 0.9), corrupt=corrupt, n=1000)
    for part, examples in zip((0.0, 0.1, 0.9), generated["train"].values(), strict=True):
        line, y = examples.x[:, 0], examples.y_N
        wrong = line.abs() < 0.1 if corrupt == "margin" else (line > 0) != (y == 1)
        assert wrong.sum().item() == round(1000 * part)
        assert torch.equal(examples.attributes["slab"] % 2 == 0, y == 1)


def test_slab_noise_puts_examples_into_slabs_of_the_other_class():
    examples = slabs_of(slabs=[5, 7], slab_noise=0.1, n=1000)["train"]["corrupt 90%"]
    for column, k in ((1, 5), (2, 7)):
        from_centre = (slab_number(examples.x[:, column], k) - k // 2).abs()
        assert ((from_centre % 2 == 1) != (examples.y_N == 1)).sum() == 100


def test_coordinates_are_independent_given_the_label():
    examples = slabs_of(slabs=[5, 5], corruption=[0.0], n=40_000)["train"]["corrupt 0%"]
    of_negatives = examples.x[examples.y_N == 0, 1:].abs() > 0.5
    both = of_negatives.all(1).double().mean().item()
    assert both == pytest.approx(1 / 16, abs=0.006)


def test_a_rotation_can_be_undone():
    plain, turned = (slabs_of(rotate=rotate, slabs=[5] * 4, n=100) for rotate in (False, True))
    for name, examples in turned["train"].items():
        assert torch.allclose(examples.x @ turned.mixing_FF.T, plain["train"][name].x, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        pytest.param({"linear": 1, "slabs": [5] * 4}, 6, id="LMS-5"),
        pytest.param({"linear": 0, "slabs": [5] + [7] * 4}, 30, id="MS-(5,7)", marks=pytest.mark.slow),
    ],
)
def test_a_network_relies_on_the_simplest_coordinate_alone(kind, epochs):
    torch.manual_seed(0)
    generated = slabs_of(**kind, corruption=[0.0], rotate=True, n=7000)
    examples = generated["train"]["corrupt 0%"]
    x, y = examples.x, examples.y_N
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU(),
        torch.nn.Linear(100, 2),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=5e-5)
    for _ in range(epochs):
        for rows in torch.randperm(5000).split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    def auc(*randomized):
        coordinates = (x[5000:] @ generated.mixing_FF.T).clone()
        for chosen in randomized:
            coordinates[:, chosen] = coordinates[torch.randperm(2000)][:, chosen]
        with torch.no_grad():
            margin = net(coordinates @ generated.mixing_FF) @ torch.tensor([-1.0, 1.0])
        return roc_auc_score(y[5000:], margin)

    assert auc() > 0.99
    assert 0.45 < auc(slice(0, 1)) < 0.55
    assert auc(slice(1, None)) > 0.99


def test_as_a_dataset_domains_differ_in_corruption_and_sizes_are_robustdgs():
    dataset = slabs.load(None, None, 0, SlabOptions())
    assert dataset.domains == ("corrupt 0%", "corrupt 10%", "corrupt 90%")
    assert len(dataset.rows_of("corrupt 90%")) == 12_500 and dataset.input_shape == (2,)
    assert list(dataset.manifest["slab"].cat.categories) == list("0123456")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": 0, "slabs": ()}, "leave no coordinate"),
        ({"corruption": (0.1, 0.1)}, "must not name a value twice"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        slabs.load(None, None, 0, SlabOptions(**options))
