"""leave-one-domain-out: DomainBed's split lists, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dgharness.data.colored_digits import colored_digits
from dgharness.data.coloring import ColoringOptions
from dgharness.data.protocols import PROTOCOLS, leave_one_domain_out
from dgharness.errors import UsageError


def domainbed_seed(*arguments):
    return int(hashlib.md5(str(arguments).encode("utf-8")).hexdigest(), 16) % (2**31)


def domainbed_keys(n, size, seed):
    """The two key lists of DomainBed's split of ``size`` examples, ``n`` of them first."""
    keys = list(range(size))
    np.random.RandomState(seed).shuffle(keys)
    return keys[:n], keys[n:]


def domainbed_split(size, number, trial_seed, is_target):
    """(in, out) positions of domain ``number``, written out as DomainBed's training script goes."""
    out, inner = domainbed_keys(int(size * 0.2), size, domainbed_seed(trial_seed, number))
    if is_target:
        _, again = domainbed_keys(0, len(inner), domainbed_seed(trial_seed, number))
        inner = [inner[key] for key in again]
    return inner, out


@pytest.mark.parametrize("trial_seed", [0, 1, 2])
@pytest.mark.parametrize("targets", [["c"], ["a", "d"]])
def test_the_splits_are_domainbeds_lists(table, trial_seed, targets):
    sizes = {"a": 57, "b": 101, "c": 40, "d": 23}
    dataset = table(**sizes)
    splits = leave_one_domain_out(dataset, targets, trial_seed)
    for number, (name, size) in enumerate(sizes.items()):
        inner, out = domainbed_split(size, number, trial_seed, name in targets)
        first_row = dataset.rows_of(name)[0]
        kept, apart = ("test", "test_holdout") if name in targets else ("train", "val")
        assert (splits.rows[kept][name] - first_row).tolist() == inner
        assert (splits.rows[apart][name] - first_row).tolist() == out


def test_domainbeds_lists_hold_at_the_sizes_of_a_real_run():
    dataset = colored_digits.load(None, None, 0, ColoringOptions())
    splits = leave_one_domain_out(dataset, ["-90%"], 5)
    inner, out = domainbed_split(599, 0, 5, False)
    assert splits.rows["train"]["+90%"].tolist() == inner
    assert splits.rows["val"]["+90%"].tolist() == out
    assert (splits.rows["test"]["-90%"] - 1198).tolist() == domainbed_split(599, 2, 5, True)[0]


def test_every_row_is_in_exactly_one_split(table):
    splits = leave_one_domain_out(table(a=31, b=22, c=50), ["b"], 0)
    rows = np.concatenate([part for split in splits.rows.values() for part in split.values()])
    assert sorted(rows) == list(range(103))
    assert (splits.train_domains, splits.targets) == (("a", "c"), ("b",))


def test_the_order_in_which_targets_are_named_does_not_matter(table):
    dataset = table(a=30, b=30, c=30)
    one, other = (leave_one_domain_out(dataset, names, 0) for names in (["c", "a"], ["a", "c"]))
    assert one.targets == ("a", "c") and one.digest == other.digest


def test_the_digests_tell_seeds_targets_and_splits_apart(table):
    dataset = table(a=30, b=30, c=30)
    splits = [leave_one_domain_out(dataset, [name], seed) for name in "bc" for seed in (0, 1)]
    assert len({each.digest for each in splits}) == 4
    assert len(splits[0].digests) == len(set(splits[0].digests.values())) == 4
    assert all(len(digest) == 16 for digest in [splits[0].digest, *splits[0].digests.values()])
    assert splits[0].digests["test"] != splits[1].digests["test"]


def test_another_holdout_keeps_another_part_apart(table):
    splits = leave_one_domain_out(table(a=40, b=40), ["b"], 0, holdout=0.5)
    assert len(splits.rows["train"]["a"]) == len(splits.rows["test_holdout"]["b"]) == 20


@pytest.mark.parametrize(
    ("targets", "holdout", "message"),
    [
        (["sketchh"], 0.2, "table has no domain 'sketchh'; did you mean 'sketch'"),
        (["art", "sketch"], 0.2, "no domain of table is left for training"),
        (["art", "art"], 0.2, "a target is named twice: art, art"),
        ([], 0.2, "no target named; hold out at least one of art, sketch"),
        (["art"], 1.0, r"protocol\.holdout=1\.0 must lie between 0 and 1"),
        (["art"], 0.1, "domain 'sketch' of table has 9 examples, too few"),
    ],
)
def test_mistakes_are_named(table, targets, holdout, message):
    with pytest.raises(UsageError, match=message):
        leave_one_domain_out(table(art=30, sketch=9), targets, 0, holdout)


def test_the_protocol_is_found_by_name():
    assert PROTOCOLS["leave-one-domain-out"] is leave_one_domain_out
