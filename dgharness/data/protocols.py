"""How the rows of a dataset are split into training, validation and test.

A protocol is a function ``(dataset, targets, trial_seed, holdout) -> Splits``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from dgharness.data.dataset import Dataset
from dgharness.data.temporal import future, past
from dgharness.errors import UsageError
from dgharness.seeds import seed_hash

Rows = Mapping[str, np.ndarray]  # domain -> manifest rows


@dataclass(frozen=True, eq=False)
class Splits:
    """Manifest rows by split and domain.

    ``train`` and ``val`` hold the training domains; ``test`` and ``test_holdout`` the targets, the latter
    for the oracle alone, where the protocol sets such a part aside. ``id_val`` and ``id_test``, where a
    dataset has them, are further examples of the training domains, and ``unlabeled`` examples of any domain
    whose labels nobody sees.
    """

    rows: Mapping[str, Rows]

    @property
    def train_domains(self) -> tuple[str, ...]:
        return tuple(self.rows["train"])

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.rows["test"])

    @property
    def validates_on_held_out(self) -> bool:
        """Whether none of the validation domains is trained on."""
        return self.rows["val"].keys().isdisjoint(self.rows["train"])

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 (16 digits) of every split: its domains and their rows in order."""
        return {split: _digest(rows) for split, rows in self.rows.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 digits) over all splits."""
        return hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:16]


def leave_one_domain_out(
    dataset: Dataset, targets: Sequence[str], trial_seed: int, holdout: float = 0.2
) -> Splits:
    """Train on all domains but the targets; keep the part ``holdout`` of every domain apart.

    The rows and their order are those of DomainBed for the same sizes and trial seed (``scripts/train.py``
    and ``split_dataset`` in ``lib/misc.py``). Targets are taken in the dataset's order; a domain all of whose
    rows are unlabeled takes no part.
    """
    _check_targets(dataset, targets, holdout)
    if len(dataset.domains) == 1:
        raise UsageError(
            f"the dataset {dataset.name} has the single domain {dataset.domains[0]!r}; "
            "leave-one-domain-out needs two or more"
        )
    labeled = [name for name in dataset.domains if _is_labeled(dataset, name)]
    if not set(labeled) - set(targets):
        raise UsageError(
            f"no domain of {dataset.name} is left for training; name fewer targets than {', '.join(labeled)}"
        )
    rows: dict[str, dict[str, np.ndarray]] = {"train": {}, "val": {}, "test": {}, "test_holdout": {}}
    for name in labeled:
        apart, kept = _apart(dataset, name, trial_seed, holdout)
        if name in targets:
            # DomainBed splits a target once more, to take no example out of it for adaptation.
            _, kept = _split(kept, 0, seed_hash(trial_seed, dataset.domain_number(name)))
            rows["test"][name], rows["test_holdout"][name] = kept, apart
        else:
            rows["train"][name], rows["val"][name] = kept, apart
    return Splits(rows)


def official(dataset: Dataset, targets: Sequence[str], trial_seed: int, holdout: float = 0.2) -> Splits:
    """The dataset's own split, its manifest column ``split``, as it stands.

    A domain may lie in several splits; rows of unknown split are left out. The targets are the domains of
    ``test``. Every test row is reported, so that nothing is held back for an oracle.
    """
    rows = _official_rows(dataset)
    if set(targets) != set(rows["test"]):
        raise UsageError(
            f"{dataset.name} is tested on {', '.join(rows['test'])} by its official split, and the target "
            f"given is {', '.join(targets) or 'none'}; leave the target out"
        )
    return Splits(rows)


def subpopulation(dataset: Dataset, targets: Sequence[str], trial_seed: int, holdout: float = 0.2) -> Splits:
    """The dataset's own split; what is asked is how the worst of its groups fares, not a new domain."""
    return official(dataset, targets, trial_seed, holdout)


def temporal(dataset: Dataset, targets: Sequence[str], trial_seed: int, holdout: float = 0.2) -> Splits:
    """Train on all domains that lie before the earliest target in time; test on the whole of every target.

    The part ``holdout`` of every past domain is kept apart for validation. Domains that come later and are
    no targets are left out, and nothing of the future is held back for an oracle. Needs a manifest column
    ``time`` (see ``dgharness.data.temporal``).
    """
    _check_targets(dataset, targets, holdout)
    rows: dict[str, dict[str, np.ndarray]] = {"train": {}, "val": {}, "test": {}}
    for name in filter(partial(_is_labeled, dataset), past(dataset, targets)):
        rows["val"][name], rows["train"][name] = _apart(dataset, name, trial_seed, holdout)
    for name in sorted(targets, key=dataset.domain_number):
        rows["test"][name] = _labeled(dataset, dataset.rows_of(name))
    return Splits(rows)


def default_targets(
    protocol: str, dataset: Dataset, cut: float | None = None, horizon: int | None = None
) -> tuple[str, ...]:
    """The domains held out where none is named: the future, those of the dataset's own split, or its last."""
    if protocol == "temporal":
        return future(dataset, cut, horizon)
    if protocol in OWN_SPLIT:
        return tuple(_official_rows(dataset)["test"])
    return dataset.defaults.targets or dataset.domains[-1:]


PROTOCOLS: dict[str, Callable[[Dataset, Sequence[str], int, float], Splits]] = {
    "leave-one-domain-out": leave_one_domain_out,
    "official": official,
    "subpopulation": subpopulation,
    "temporal": temporal,
}

OWN_SPLIT = ("official", "subpopulation")
OFFICIAL = ("train", "val", "test", "id_val", "id_test", "unlabeled")


def _official_rows(dataset: Dataset) -> dict[str, Rows]:
    """Rows by split and domain, both in their own order and neither empty."""
    if "split" not in dataset.manifest:
        raise UsageError(
            f"{dataset.name} has no split of its own (a manifest column named split); "
            "use --set protocol.name=leave-one-domain-out"
        )
    split_M = dataset.manifest["split"].astype("category")
    if unknown := set(split_M.cat.categories) - set(OFFICIAL):
        raise UsageError(
            f"the column split of {dataset.name} holds {sorted(map(str, unknown))[0]!r}; "
            f"the protocol official knows {', '.join(OFFICIAL)}"
        )
    domains = {name: dataset.rows_of(name) for name in dataset.domains}
    found: dict[str, Rows] = {}
    for split in OFFICIAL:
        chosen_M = (split_M == split).to_numpy()
        by_domain = {name: of_domain[chosen_M[of_domain]] for name, of_domain in domains.items()}
        found[split] = {name: of_domain for name, of_domain in by_domain.items() if len(of_domain)}
    if missing := [split for split in ("train", "val", "test") if not found[split]]:
        raise UsageError(
            f"the column split of {dataset.name} has no row of {' and none of '.join(missing)}; "
            "the protocol official needs train, val and test; give it some, or leave the column unused with "
            "--set protocol.name=leave-one-domain-out"
        )
    return {split: by_domain for split, by_domain in found.items() if by_domain}


def _check_targets(dataset: Dataset, targets: Sequence[str], holdout: float) -> None:
    if not targets:
        raise UsageError(f"no target named; hold out at least one of {', '.join(dataset.domains)}")
    if not 0 < holdout < 1:
        raise UsageError(f"protocol.holdout={holdout} must lie between 0 and 1")
    if len({dataset.domain_number(name) for name in targets}) < len(targets):
        raise UsageError(f"a target is named twice: {', '.join(targets)}; name each domain once")
    if bare := [name for name in targets if not _is_labeled(dataset, name)]:
        raise UsageError(
            f"the target {bare[0]!r} of {dataset.name} has no labels to be tested on; name another"
        )


def _apart(dataset: Dataset, name: str, trial_seed: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """DomainBed's two parts of a domain's labelled rows: ``holdout`` of them, and the others."""
    of_domain = _labeled(dataset, dataset.rows_of(name))
    seed = seed_hash(trial_seed, dataset.domain_number(name))
    apart, kept = _split(of_domain, int(len(of_domain) * holdout), seed)
    if not len(apart):
        examples = "1 example" if len(of_domain) == 1 else f"{len(of_domain)} examples"
        raise UsageError(
            f"domain {name!r} of {dataset.name} has {examples}, too few to keep the part {holdout} of it "
            f"apart; add examples{' or raise protocol.holdout' if len(of_domain) > 1 else ''}"
        )
    return apart, kept


def _is_labeled(dataset: Dataset, name: str) -> bool:
    """Can a domain be trained or tested on? One without any example counts, so that it is found out."""
    rows = dataset.rows_of(name)
    return not len(rows) or len(_labeled(dataset, rows)) > 0


def _all_unlabeled(dataset: Dataset, name: str) -> bool:
    rows = dataset.rows_of(name)
    return len(rows) > 0 and not len(_labeled(dataset, rows))


def _labeled(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    if "split" not in dataset.manifest:
        return rows
    return rows[(dataset.manifest["split"].iloc[rows] != "unlabeled").to_numpy()]


def _split(rows: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.arange(len(rows))
    np.random.RandomState(seed).shuffle(order)
    return rows[order[:n]], rows[order[n:]]


def _digest(rows: Rows) -> str:
    sha = hashlib.sha256()
    for domain, of_domain in rows.items():
        sha.update(f"{domain}\0{len(of_domain)}\0".encode())
        sha.update(np.ascontiguousarray(of_domain, dtype="<i8").tobytes())
    return sha.hexdigest()[:16]
