"""The parts of a run from its prepared configuration: networks, learner, samplers, evaluator."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import numpy as np
import torch

from dgharness import registry
from dgharness.data.groups import metric_groups
from dgharness.data.protocols import Splits
from dgharness.data.sampling import Sampler, make_sampler
from dgharness.data.source import TrainingSource
from dgharness.errors import UsageError
from dgharness.models.model import build_model
from dgharness.plugin import Dims
from dgharness.seeds import seed_hash, seeded
from dgharness.training.checks import check_model, check_source
from dgharness.training.evaluation import Evaluator, all_rows
from dgharness.training.learner import Learner
from dgharness.training.loop import Run
from dgharness.training.prepare import Prepared
from dgharness.training.progress import Progress
from dgharness.training.signals import StopFlag


def build(prepared: Prepared, progress: Progress) -> Run:
    """The parts of a run, on their device, not yet attached to a directory."""
    config, dataset, splits = prepared.config, prepared.dataset, prepared.splits
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device = pick_device(config.execution.device)

    def network(copy: int) -> tuple[torch.nn.Module, int]:
        model, features = build_model(
            prepared.model,
            dataset.input_shape,
            dataset.task.outputs,
            prepared.options.model,
            config.trial_seed,
            copy,
        )
        return model.to(device), features

    model, features = network(0)
    check_model(config.algorithm, prepared.algorithm.needs, model)
    if config.tta.name != "none":
        check_model(config.tta.name, registry.load("tta", config.tta.name).needs, model)
    # Methods see as validation data what they may train on; selection has the other half to itself.
    seen = Splits({**splits.rows, "val": splits.rows.get("val_train", splits.rows["val"])})
    source = TrainingSource(
        dataset, seen, prepared.train_grouping.group_M, device, domain_names=splits.train_domains
    )
    group_names = prepared.train_grouping.names
    if config.annotator.name != "none":
        copies = count(-1, -1)  # apart from the networks of the algorithm, which count upwards
        seed = seed_hash(config.trial_seed, "annotator")
        with seeded(seed, "annotator"):
            found = dict(
                registry.load("annotators", config.annotator.name).annotate(
                    source, lambda: network(next(copies))[0], prepared.options.annotator, seed
                )
            )
        if "domain" in found and config.data.train_groups == ("domain",):
            found.setdefault("group", found["domain"])
        source = source.annotated(found)
        if "group" in found:
            group_names = tuple(map(str, range(source.num_groups)))
        check_source(config.algorithm, prepared.algorithm.needs, source)
    learner = Learner(
        prepared.algorithm,
        model,
        Dims(
            dataset.task.outputs,
            features,
            source.num_domains,
            source.num_groups,
            len(dataset.manifest),
            tuple(dataset.input_shape),
        ),
        prepared.options.hp,
        config.optimizer,
        config.trial_seed,
        steps=config.train.steps or 0,
        loss=dataset.task.loss,
        averaging=config.averaging,
        precision=config.train.precision,
        new_model=lambda number: network(number)[0],
        views=dataset.views,
        source=source,
        batch_size=config.train.batch_size,
    )
    if config.tta.name != "none":  # whether the method can use this predictor is known only here
        registry.load("tta", config.tta.name).factory(
            copy.deepcopy(learner.predictor(source)), prepared.options.tta, source, config.trial_seed
        )
    samplers: dict[tuple[str, str], Sampler] = {
        (name, stage.split): make_sampler(
            name,
            source.rows_by_domain(stage.split),
            source.targets_M,
            source.group_M,
            config.train.batch_size or 1,
            config.trial_seed,
            config.train.rows,
        )
        for stage in learner.stages
        for name in [stage.sampler or config.train.sampler]
    }
    if prepared.uses_unlabeled:
        samplers["pooled", "unlabeled"] = unlabeled_sampler(prepared, source)
    groups = metric_groups(dataset.manifest, config.data.groups)
    evaluator = Evaluator(
        dataset,
        source.reader,
        groups,
        device,
        config.selection.min_group_size,
        config.train.precision,
        groups.counts(torch.from_numpy(all_rows(splits.rows["train"]))),
    )
    unattached: Any = None
    return Run(
        config=config,
        learner=learner,
        source=source,
        splits=splits,
        samplers=samplers,
        evaluator=evaluator,
        row_names={
            "domains": source.domain_names,
            "groups": tuple(group_names[g] for g in source.columns["group"].unique().tolist() if g >= 0),
        },
        rules=prepared.rules,
        rundir=unattached,
        tracker=unattached,
        stop=StopFlag(),
        progress=progress,
    )


def unlabeled_sampler(prepared: Prepared, source: TrainingSource) -> Sampler:
    """One row of unlabeled examples, as many at a time as there are labeled ones, in shuffled epochs."""
    config, apart = prepared.config, prepared.splits.rows["unlabeled"]
    rows = [np.concatenate(list(apart.values()))]
    size = config.train.batch_size or 1
    total = size if size == "all" else size * (config.train.rows or source.num_domains)
    seed = seed_hash(config.trial_seed, "unlabeled")
    return make_sampler("pooled", rows, source.targets_M, source.group_M, total, seed)


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device {name!r} is not available ({str(error).splitlines()[0]}); "
            "use --set execution.device=cpu or auto"
        ) from None
    return device
