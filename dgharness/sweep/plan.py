"""What a sweep will run, worked out before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from dgharness import registry
from dgharness.config import ProtocolConfig, RunConfig, compose, merge
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import OWN_SPLIT
from dgharness.data.temporal import future, streaming
from dgharness.errors import NotApplicable, UsageError
from dgharness.names import few
from dgharness.training.prepare import Prepared, forget_own_files, load_dataset, prepare


@dataclass(frozen=True)
class Job:
    """One planned run; ``not_applicable`` says why it cannot be, and then it is not run."""

    config: RunConfig
    config_hash: str
    name: str
    experiment: str
    not_applicable: str = ""

    @property
    def cell(self) -> tuple[str, tuple[str, ...], int, int]:
        """What identifies the run in a table: algorithm, targets, hyperparameter seed, trial seed."""
        config = self.config
        return config.algorithm, config.protocol.targets, config.hparams_seed, config.trial_seed

    @property
    def entry(self) -> dict[str, Any]:
        """What a report needs to know of a planned run."""
        algorithm, targets, hparams_seed, trial_seed = self.cell
        return {
            "algorithm": algorithm,
            "targets": list(few(targets)),
            "hparams_seed": hparams_seed,
            "trial_seed": trial_seed,
            "config_hash": self.config_hash,
            "not_applicable": self.not_applicable,
        }


def plan(
    algorithms: Sequence[str],
    *,
    targets: Sequence[str] = (),
    hparams_seeds: int = 1,
    trials: int = 3,
    **layers: Any,
) -> list[Job]:
    """Algorithms x targets x hyperparameter seeds x trial seeds; ``layers`` are those of ``compose``.

    ``algorithms`` may be names, patterns or ``all``. Without targets each domain is held out in turn, or
    those of the dataset's official split together.
    Under the protocol temporal one run is tested on the whole future, or with ``protocol.horizon`` there is a
    run for each cut (``data.temporal.streaming``).
    Pairs of targets are planned only when a rule asks for them, each unordered pair once. What leaves a
    method too few training domains is kept as not applicable, with the reason; where nothing is left to run
    that is a UsageError.
    """
    base = _compose(layers, {})
    for plugin in base.plugins:
        registry.add_plugin(plugin)
    names = expand(algorithms)
    _refuse_what_is_swept(base, names)
    rules = [registry.load("selection", name) for name in base.selection.rules]
    forget_own_files(base.data)
    dataset = load_dataset(base.data, base.execution.data_root, 0)
    protocol = base.protocol.name or dataset.defaults.protocol
    held_out = _held_out(base.protocol, protocol, dataset, targets, any(rule.pairs for rule in rules))
    # Where they chose the targets they have done their work; beside others they are a mistake, and stay.
    done = {"cut": None, "horizon": None} if protocol == "temporal" and not targets else {}
    jobs = []
    for trial_seed in range(trials):
        for hparams_seed in range(hparams_seeds):
            for name in names:
                for held in held_out:
                    swept = {
                        "algorithm": name,
                        "protocol": {"targets": list(held), **done},
                        "hparams_seed": hparams_seed,
                        "trial_seed": trial_seed,
                    }
                    try:
                        jobs.append(_job(_compose(layers, swept)))
                    except UsageError as error:
                        raise (UsageError(f"{name}: {error}") if len(names) > 1 else error) from None
    if all(job.not_applicable for job in jobs):
        reasons = dict.fromkeys(job.not_applicable for job in jobs)
        raise UsageError(f"nothing of this sweep can run: {'; '.join(reasons)}")
    return jobs


def _held_out(
    given: ProtocolConfig, protocol: str, dataset: Dataset, targets: Sequence[str], pairs: bool
) -> list[tuple[str, ...]]:
    """The targets of each run of one algorithm, draw and trial."""
    if protocol in OWN_SPLIT:
        return [tuple(targets)]  # the split says what is held out; its other targets are refused
    if protocol == "temporal":
        if targets:
            return [tuple(targets)]
        if given.horizon:
            return streaming(dataset, given.horizon, given.cut)
        return [future(dataset, given.cut)]
    singles = dict.fromkeys(targets or dataset.domains)
    held_out: list[tuple[str, ...]] = [(target,) for target in singles]
    if pairs:
        held_out += [pair for pair in combinations(dataset.domains, 2) if set(singles) & set(pair)]
    return held_out


def _refuse_what_is_swept(base: RunConfig, names: Sequence[str]) -> None:
    """A sweep sets some settings itself; another value for them would be ignored in silence."""
    default = RunConfig()
    for key, value, allowed, flag in (
        ("algorithm", [registry.canonical("algorithms", base.algorithm)], ([default.algorithm], names), "-a"),
        ("protocol.targets", base.protocol.targets, ((),), "--target"),
        ("hparams_seed", base.hparams_seed, (0,), "--hparams N"),
        ("trial_seed", base.trial_seed, (0,), "--trials N"),
    ):
        if value not in allowed:
            raise UsageError(f"a sweep sets {key} itself; leave {key} out and use {flag}")


def expand(algorithms: Sequence[str]) -> list[str]:
    """Names, patterns and ``all`` as canonical names, in the order given, each once.

    ``all`` is every algorithm but those reconstructed from incomplete sources.
    """
    found: list[str] = []
    for name in algorithms:
        if name == "all" or any(character in name for character in "*?["):
            entries = registry.entries("algorithms", pattern="*" if name == "all" else name)
            matched = [entry.name for entry in entries if entry.status == "ok"]
            if not matched:
                raise UsageError(f"no algorithm matches {name!r}; see dgharness algorithms")
            found += matched
        else:
            found.append(registry.canonical("algorithms", name))
    if not found:
        raise UsageError("no algorithm named; name some with -a, as in -a erm,irmv1, or all")
    return list(dict.fromkeys(found))


def _compose(layers: dict[str, Any], flags: dict[str, Any]) -> RunConfig:
    return compose(**{**layers, "flags": merge(merge({}, layers.get("flags", {})), flags)})


def _job(config: RunConfig) -> Job:
    try:
        prepared: Prepared = prepare(config)
    except NotApplicable as error:
        return Job(config, "", "", "", not_applicable=str(error))
    return Job(prepared.config, prepared.config_hash, prepared.name, prepared.experiment)
