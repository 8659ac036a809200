"""From indices to batches, and the training data at large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dgharness.data.groups import grouping
from dgharness.data.protocols import leave_one_domain_out
from dgharness.data.source import TrainingSource, batches, make_batch
from dgharness.seeds import generator

CPU = torch.device("cpu")


@pytest.fixture
def dataset(table):
    return table(a=30, b=20, c=40)


@pytest.fixture
def source(dataset):
    splits = leave_one_domain_out(dataset, ["b"], 0)
    groups = grouping(dataset.manifest, ["y", "colour"])
    return TrainingSource(dataset, splits, groups.group_M, CPU, splits.train_domains)


def batch_of(dataset, index_EB, augment_generator=None):
    domain_M = torch.where(dataset.domain_M == 0, 0, -1)
    group_M = dataset.targets_M + 10
    return make_batch(dataset, dataset.reader, index_EB, domain_M, group_M, 7, CPU, augment_generator)


def test_a_batch_holds_what_the_manifest_says_of_its_rows(dataset):
    index_EB = torch.tensor([[3, 0, 31], [30, 89, 3]])
    batch = batch_of(dataset, index_EB)
    assert torch.equal(batch.x[:, 0], index_EB.flatten() + 0.5)  # prepared, flat, row by row
    assert torch.equal(batch.targets_EB, index_EB % 3)
    assert batch.domain_EB.tolist() == [[0, 0, -1], [-1, -1, 0]]
    assert torch.equal(batch.group_EB, index_EB % 3 + 10)
    assert torch.equal(batch.index_EB, index_EB) and batch.t == 7
    torch.testing.assert_close(batch.attributes["time"], index_EB / 10)
    assert torch.equal(batch.attributes["colour"], index_EB % 2)
    assert set(batch.attributes) == {"time", "colour"}


def test_only_a_given_generator_augments_and_before_preparing(dataset):
    noisy = replace(dataset, augment=lambda x, generator: x * 100, prepare=lambda x: x + 0.5)
    index_EB = torch.tensor([[1, 2]])
    assert batch_of(noisy, index_EB).x[:, 0].tolist() == [1.5, 2.5]
    assert batch_of(noisy, index_EB, generator(0, "augmentation")).x[:, 0].tolist() == [100.5, 200.5]
    assert batch_of(dataset, index_EB, generator(0, "augmentation")).x[:, 0].tolist() == [1.5, 2.5]


def test_evaluation_sees_every_row_once_in_order_prepared_and_not_augmented(dataset):
    noisy = replace(dataset, augment=lambda x, generator: x * 100, prepare=lambda x: x + 0.5)
    rows = np.array([5, 1, 88, 40, 2])
    parts = list(batches(noisy, noisy.reader, rows, 2, CPU))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert (torch.cat(parts)[:, 0] - 0.5).tolist() == rows.tolist()


def test_inputs_made_of_several_parts_are_moved_part_by_part(dataset):
    class Tokens:
        def __call__(self, index_N):
            return {"ids": index_N[:, None], "names": ["x"] * len(index_N)}

        def to(self, device):
            return self

    tokens = replace(dataset, reader=Tokens(), prepare=lambda x: x)
    [x] = batches(tokens, tokens.reader, np.array([4, 2]), 8, CPU)
    assert x["ids"].tolist() == [[4], [2]] and x["names"] == ["x", "x"]


def test_columns_describe_the_training_rows_domain_by_domain(source, dataset):
    index = source.columns["index"]
    rows = source.splits.rows["train"]
    assert index.tolist() == [*rows["a"], *rows["c"]]
    assert source.counts_K.tolist() == [24, 32] and (source.num_domains, source.num_groups) == (2, 6)
    assert source.columns["domain"].tolist() == [0] * 24 + [1] * 32
    assert torch.equal(source.columns["y"], index % 3)
    assert torch.equal(source.columns["group"], index % 3 * 2 + dataset.attributes_M["colour"][index])
    assert set(source.columns) == {"y", "domain", "group", "index", "time", "colour"}


def test_a_sample_fits_the_conditions_and_repeats_with_its_generator(source):
    batch = source.sample({"domain": 1, "y": 2}, 300, generator(0, "test"))
    assert batch.targets_EB.shape == (1, 300)
    assert (batch.domain_EB == 1).all() and (batch.targets_EB == 2).all()
    assert set(batch.index_EB[0].tolist()) == {
        row for row in source.splits.rows["train"]["c"].tolist() if row % 3 == 2
    }
    again = source.sample({"domain": 1, "y": 2}, 300, generator(0, "test"))
    assert torch.equal(batch.index_EB, again.index_EB)


def test_a_sample_that_cannot_be_drawn_says_why(source):
    with pytest.raises(ValueError, match="no training example has y=2, domain=9"):
        source.sample({"y": 2, "domain": 9}, 1, generator(0, "test"))
    with pytest.raises(ValueError, match="there is no column 'colr'; did you mean 'colour'"):
        source.sample({"colr": 1}, 1, generator(0, "test"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_hold_every_example_of_a_split_once_in_order(source, split):
    parts = list(source.batches(split, 10))
    index = torch.cat([part.index_EB[0] for part in parts])
    assert index.tolist() == [row for rows in source.splits.rows[split].values() for row in rows]
    assert all(part.index_EB.shape[0] == 1 for part in parts)
    assert torch.equal(torch.cat([part.x for part in parts])[:, 0], index + 0.5)


def test_rows_by_domain_are_the_splits_own(source):
    for split in ("train", "val"):
        rows = source.rows_by_domain(split)
        assert [part.tolist() for part in rows] == [
            part.tolist() for part in source.splits.rows[split].values()
        ]


def test_annotated_domains_replace_the_manifests_in_training_only(source):
    found = torch.arange(56) % 3
    annotated = source.annotated({"domain": found})
    assert (annotated.num_domains, annotated.counts_K.tolist()) == (3, [19, 19, 18])
    assert torch.equal(annotated.columns["domain"], found)
    assert torch.equal(annotated.columns["group"], source.columns["group"])
    rows = annotated.rows_by_domain("train")
    assert [part.tolist() for part in rows] == [source.index_L[found == k].tolist() for k in range(3)]
    [val] = annotated.batches("val", 100)
    assert (val.domain_EB == -1).all()
    assert source.num_domains == 2 and source.counts_K.tolist() == [24, 32]


def test_annotated_groups_replace_the_manifests_in_training_only(source):
    found = torch.arange(56) % 2
    annotated = source.annotated({"group": found})
    assert torch.equal(annotated.columns["group"], found) and annotated.num_groups == 2
    assert torch.equal(annotated.columns["domain"], source.columns["domain"])
    [val] = annotated.batches("val", 100)
    assert (val.group_EB == -1).all() and (val.domain_EB >= 0).all()


def test_an_annotator_may_not_touch_anything_else(source):
    with pytest.raises(ValueError, match="may replace domain or group, not 'y'"):
        source.annotated({"y": torch.zeros(56)})
