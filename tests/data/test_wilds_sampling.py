"""Rows of a batch drawn from many domains or groups, and the loaders of WILDS draw for draw."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dgharness.data.sampling import Sampler, make_sampler
from dgharness.data.wilds.compat import import_wilds
from dgharness.data.wilds_sampling import group_batches, uniform_epoch
from dgharness.errors import UsageError

ROWS = [np.arange(100, 140), np.arange(10, 30), np.arange(200, 290)]  # 40, 20 and 90 rows
M = 300
TARGETS_M = torch.arange(M) % 3
GROUP_M = torch.arange(M) % 7 - 1  # six groups, and some rows of none
DRAWN = ["by-domain", "by-group", "wilds-group"]
EVERY = [*DRAWN, "wilds-uniform"]


def sampler(name: str, batch_size: Any = 4, seed: int = 0, rows: int | None = 2) -> Sampler:
    return make_sampler(name, ROWS, TARGETS_M, GROUP_M, batch_size, seed, rows)


# --- rows of a batch -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_a_batch_has_as_many_rows_as_asked_for_each_of_another_domain_or_group(name: str) -> None:
    one = sampler(name)
    domain_M = torch.full((M,), -1)
    for number, rows in enumerate(ROWS):
        domain_M[rows] = number
    column_M = domain_M if name == "by-domain" else GROUP_M
    for t in range(20):
        index_EB = one.draw(t)
        assert index_EB.shape == (2, 4)
        (first,), (second,) = (column_M[row].unique().tolist() for row in index_EB)
        assert first != second and min(first, second) >= 0


@pytest.mark.parametrize("name", DRAWN)
def test_every_domain_or_group_is_as_likely_as_the_others(name: str) -> None:
    one = sampler(name, batch_size=1)
    groups = [GROUP_M[one.draw(t)].flatten() for t in range(600)]
    if name == "by-domain":
        domains = torch.cat(
            [torch.bucketize(one.draw(t).flatten(), torch.tensor([90, 190])) for t in range(600)]
        )
        counts = torch.bincount(domains)
        assert counts.tolist() == pytest.approx([400] * 3, abs=60)
    else:
        assert torch.bincount(torch.cat(groups)).tolist() == pytest.approx([200] * 6, abs=60)


@pytest.mark.parametrize("batch_size", [4, "all"])
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_depends_on_the_seed_and_the_step_alone(name: str, batch_size: Any) -> None:
    """Across the ends of epochs too, and whatever was asked for before: a resume needs only t."""
    steps = range(60) if batch_size == 4 else range(12)
    forwards = [sampler(name, batch_size).draw(t) for t in steps]
    one = sampler(name, batch_size)
    backwards = [one.draw(t) for t in reversed(steps)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not all(torch.equal(a, sampler(name, batch_size, seed=1).draw(t)) for t, a in enumerate(forwards))


@pytest.mark.parametrize("name", ["by-domain", "by-group"])
def test_to_ask_for_all_of_them_is_to_ask_for_none_in_particular(name: str) -> None:
    everything = len(ROWS) if name == "by-domain" else 6
    named, unnamed = sampler(name, rows=everything), sampler(name, rows=None)
    assert named.rows == unnamed.rows == name.removeprefix("by-") + "s"
    assert all(torch.equal(named.draw(t), unnamed.draw(t)) for t in range(5))


@pytest.mark.parametrize("name", DRAWN)
def test_all_takes_as_many_of_each_as_the_smallest_has(name: str) -> None:
    smallest = 20 if name == "by-domain" else int(torch.bincount(GROUP_M[np.concatenate(ROWS)] + 1)[1:].min())
    index_EB = sampler(name, "all").draw(1)
    assert index_EB.shape == (2, smallest)
    if name != "wilds-group":  # which draws from a small group with replacement
        assert all(len(set(row.tolist())) == smallest for row in index_EB)


@pytest.mark.parametrize("name", ["pooled", "balanced", "wilds-uniform"])
def test_where_there_is_one_row_it_has_the_examples_of_all(name: str) -> None:
    assert sampler(name, 4, rows=5).draw(0).shape == (1, 20)
    assert sampler(name, 4, rows=None).draw(0).shape == (1, 12)  # as by-domain takes of three domains


@pytest.mark.parametrize(("name", "available"), [("by-domain", 3), ("by-group", 6), ("wilds-group", 6)])
def test_more_rows_than_there_are_domains_or_groups_are_refused(name: str, available: int) -> None:
    with pytest.raises(UsageError, match=rf"train\.rows=7 asks for more .* there are {available}"):
        sampler(name, rows=7)


def test_more_examples_in_a_batch_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match=r"wilds-group needs 200 training examples .* there are 1\d\d"):
        sampler("wilds-group", 100)


# --- as WILDS draws --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaders() -> Any:
    import_wilds()
    return importlib.import_module("wilds.common.data_loaders")


@pytest.fixture
def global_numpy() -> Iterator[None]:
    """WILDS draws from numpy's global generator, which is left here as it was found."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("seed", [0, 7])
def test_group_batches_are_those_of_wilds_index_by_index(
    loaders: Any, global_numpy: None, uniform: bool, distinct: bool, seed: int
) -> None:
    """Groups of 1 to 200 examples, so that some are drawn from with replacement, and numbers with gaps."""
    sizes = [1, 5, 8, 9, 40, 200]
    group_L = np.random.RandomState(1).permutation(np.repeat([9, 2, 30, 4, 5, 11], sizes))
    theirs = loaders.GroupSampler(
        torch.from_numpy(group_L),
        batch_size=32,
        n_groups_per_batch=4,
        uniform_over_groups=uniform,
        distinct_groups=distinct,
    )
    np.random.seed(seed)
    expected = list(theirs)
    ours = list(group_batches(group_L, 4, 8, seed, uniform=uniform, distinct=distinct))
    assert len(ours) == len(theirs) == 263 // 32
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_uniform_epoch_is_that_of_wilds_index_by_index(loaders: Any) -> None:
    group_L = torch.from_numpy(np.random.RandomState(0).permutation(np.repeat([0, 1, 2, 5], [3, 50, 7, 400])))

    class Examples(torch.utils.data.Dataset):
        metadata_array = group_L
        collate = None

        def __len__(self) -> int:
            return len(group_L)

    class Grouper:
        def metadata_to_group(self, metadata: Any, return_counts: bool) -> tuple[torch.Tensor, torch.Tensor]:
            utils = importlib.import_module("wilds.common.utils")
            return metadata, utils.get_counts(metadata, 6)

    loader = loaders.get_train_loader("standard", Examples(), 16, uniform_over_groups=True, grouper=Grouper())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = list(loader.sampler)
    assert uniform_epoch(group_L, 3).tolist() == expected


def test_the_first_epoch_is_that_of_wilds_under_the_trials_seed_and_the_next_another(
    loaders: Any, global_numpy: None
) -> None:
    rows = np.sort(np.concatenate(ROWS))
    rows = rows[GROUP_M[rows].numpy() >= 0]
    theirs = loaders.GroupSampler(GROUP_M[rows], 8, 2, uniform_over_groups=True, distinct_groups=True)
    np.random.seed(5)
    expected = [rows[batch] for batch in theirs]
    one = sampler("wilds-group", 4, seed=5)
    epoch = len(theirs)
    assert [one.draw(t).flatten().tolist() for t in range(epoch)] == [batch.tolist() for batch in expected]
    assert not torch.equal(one.draw(epoch), one.draw(0))


def test_the_uniform_sampler_goes_through_its_epochs_without_a_gap() -> None:
    rows = np.sort(np.concatenate(ROWS))
    rows_L = torch.from_numpy(rows[GROUP_M[rows].numpy() >= 0])
    one = sampler("wilds-uniform", 4, seed=5)
    stream = torch.cat([one.draw(t)[0] for t in range(60)])
    assert torch.equal(stream[: len(rows_L)], rows_L[uniform_epoch(GROUP_M[rows_L], 5)])
    assert not torch.equal(stream[len(rows_L) : 2 * len(rows_L)], stream[: len(rows_L)])


def test_the_uniform_sampler_makes_every_group_as_likely_as_the_others() -> None:
    group_M = torch.where(torch.arange(M) < 110, 0, 1)  # 30 of 150 rows
    one = make_sampler("wilds-uniform", ROWS, TARGETS_M, group_M, 100, 0, 1)
    share = torch.cat([group_M[one.draw(t)] for t in range(30)]).float().mean()
    assert share == pytest.approx(0.5, abs=0.04)
