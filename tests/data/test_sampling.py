"""The samplers: what a batch holds, and that it depends on the trial seed and t alone."""

from __future__ import annotations

import timeit

import numpy as np
import pytest
import torch

from dgharness.data.sampling import SAMPLERS, make_sampler
from dgharness.errors import UsageError

ROWS = [np.arange(100, 140), np.arange(10, 30), np.arange(200, 290)]  # 40, 20 and 90 rows
TARGETS_M = torch.arange(300) % 3
GROUP_M = torch.where(torch.arange(300) < 110, 0, 2)  # group 1 has no rows


def sampler(name, batch_size=8, seed=0, rows=ROWS, group_M=GROUP_M):
    return make_sampler(name, rows, TARGETS_M, group_M, batch_size, seed)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("batch_size", [8, "all"])
def test_the_same_step_draws_the_same_rows_in_any_order_of_asking(name, batch_size):
    one, other = sampler(name, batch_size), sampler(name, batch_size)
    forwards = [one.draw(t) for t in range(6)]
    backwards = [other.draw(t) for t in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


@pytest.mark.parametrize("name", ["by-domain", "by-group", "pooled", "balanced"])
def test_other_steps_and_seeds_draw_other_rows(name):
    assert not torch.equal(sampler(name).draw(0), sampler(name).draw(1))
    assert not torch.equal(sampler(name).draw(0), sampler(name, seed=1).draw(0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_is_a_matrix_of_training_rows(name):
    index_EB = sampler(name).draw(3)
    assert index_EB.dtype == torch.int64 and index_EB.dim() == 2
    assert np.isin(index_EB, np.concatenate(ROWS)).all()


def test_by_domain_gives_every_domain_a_row():
    index_EB = sampler("by-domain").draw(0)
    assert sampler("by-domain").rows == "domains" and index_EB.shape == (3, 8)
    assert all(np.isin(row, rows).all() for row, rows in zip(index_EB, ROWS, strict=True))


def test_by_domain_draws_evenly_and_with_replacement():
    index_EB = sampler("by-domain", 20_000).draw(0)
    counts = np.bincount(index_EB[0] - 100, minlength=40)
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, standard deviation 22


def test_all_takes_the_smallest_domain_in_order_and_fresh_subsets_of_the_others():
    first, second = (sampler("by-domain", "all").draw(t) for t in (0, 1))
    assert first.shape == (3, 20)
    assert first[1].tolist() == second[1].tolist() == ROWS[1].tolist()
    assert all(len(set(row.tolist())) == 20 for row in first)
    assert set(first[2].tolist()) != set(second[2].tolist())


def test_all_takes_everything_in_order_when_domains_are_equal():
    rows = [np.array([5, 3, 9]), np.array([1, 8, 2])]
    assert sampler("by-domain", "all", rows=rows).draw(7).tolist() == [[5, 3, 9], [1, 8, 2]]


def test_by_group_leaves_out_groups_without_rows_and_rows_without_group():
    group_M = GROUP_M.clone()
    group_M[200:250] = -1
    index_EB = sampler("by-group", 500, group_M=group_M).draw(0)
    assert sampler("by-group").rows == "groups" and index_EB.shape == (2, 500)
    assert [group_M[row].unique().tolist() for row in index_EB] == [[0], [2]]


@pytest.mark.parametrize("batch_size", [1, 8, 50, "all"])
def test_pooled_epochs_hold_every_row_exactly_once(batch_size):
    drawer = sampler("pooled", batch_size)
    per_step = 150 if batch_size == "all" else 3 * batch_size
    assert drawer.rows == "mixed" and drawer.draw(0).shape == (1, per_step)
    stream = torch.cat([drawer.draw(t)[0] for t in range(-(-450 // per_step))])[:450]
    for epoch in stream.split(150):
        assert sorted(epoch.tolist()) == sorted(np.concatenate(ROWS).tolist())
    assert not torch.equal(stream[:150], stream[150:300])


def test_pooled_batches_larger_than_the_data_span_epochs():
    index_EB = sampler("pooled", 100).draw(1)
    assert index_EB.shape == (1, 300)
    assert (np.bincount(index_EB[0], minlength=300)[np.concatenate(ROWS)] == 2).all()


def test_pooled_and_balanced_take_as_many_images_as_by_domain():
    assert {sampler(name).draw(0).numel() for name in ("by-domain", "pooled", "balanced")} == {24}


def test_balanced_makes_groups_equally_likely_and_classes_within_them():
    targets_M = torch.where(torch.arange(300) < 280, 0, 1)  # group 2: 90 + 30 rows, 10 of class 1
    drawer = make_sampler("balanced", ROWS, targets_M, GROUP_M, 4000, 0)
    index_B = drawer.draw(0)[0]
    assert drawer.rows == "mixed"
    assert (GROUP_M[index_B] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    in_group_2 = targets_M[index_B[GROUP_M[index_B] == 2]]
    assert in_group_2.float().mean() == pytest.approx(0.5, abs=0.03)


def test_full_is_everything_in_order_always():
    for t in (0, 5):
        assert sampler("full").draw(t).tolist() == [np.concatenate(ROWS).tolist()]


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="there is no sampler 'by-domian'; did you mean 'by-domain'"):
        sampler("by-domian")
    with pytest.raises(UsageError, match=r"train\.batch_size=0 must be at least 1"):
        sampler("by-domain", 0)
    with pytest.raises(UsageError, match="no known group"):
        sampler("balanced", group_M=torch.full((300,), -1))
    with pytest.raises(UsageError, match="training domain number 1 has no examples"):
        sampler("by-domain", rows=[ROWS[0], ROWS[0][:0]])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_costs_microseconds(name):
    drawer = sampler(name, 64)
    best = min(timeit.repeat(lambda: drawer.draw(3), number=50, repeat=5)) / 50
    assert best < 500e-6
