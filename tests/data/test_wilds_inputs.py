"""What the datasets of WILDS give to a model, labeled and unlabeled: bit for bit what the package reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import wilds_images
from layouts.wilds_images import LAYOUTS
from torchvision import transforms
from wilds_twice import FIT, GROUP_BY, IMAGES, NAMES, cache_here, grouper, ours, root, row_of, theirs

from dgharness.config import compose
from dgharness.data.wilds.compat import import_wilds
from dgharness.data.wilds.image_sets import standardise_each, turn_and_flip
from dgharness.errors import UsageError
from dgharness.registry import load as registered
from dgharness.training.learner import Learner
from dgharness.training.prepare import prepare
from dgharness.training.progress import Progress
from dgharness.training.run import train

__all__ = ["cache_here", "root"]  # fixtures

# --- inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*IMAGES, "poverty"])
def test_every_input_is_bit_for_bit_what_the_package_reads(name: str, root: Path):
    dataset, source = ours(name, root), theirs(name, root)
    rows = np.arange(len(dataset.manifest))[:200]
    read = dataset.reader(torch.from_numpy(rows))
    for x, row in zip(read, row_of(dataset)[rows], strict=True):
        expected = FIT[name](source.get_input(int(row)))
        if name in IMAGES:
            expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        assert x.dtype == expected.dtype and torch.equal(x, expected)


def test_a_stop_is_the_vector_that_the_package_makes_of_it(root: Path):
    dataset, source = ours("sqf", root), theirs("sqf", root)
    read = dataset.reader(torch.arange(len(source)))
    assert torch.equal(read, torch.stack([source.get_input(row) for row in range(len(source))]))
    assert read.isfinite().all() and read[:, :4].abs().max() > 1


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("camelyon17", 96),
        ("iwildcam", 448),
        ("fmow", 224),
        ("rxrx1", 256),
        ("domainnet", 224),
        ("celebA", 178),
        ("waterbirds", 224),
        ("bdd100k", 720),
    ],
)
def test_images_have_the_size_of_the_benchmark_unless_another_is_asked_for(name: str, side: int):
    assert registered("datasets", f"wilds:{name}").options().size == side


def test_an_image_of_rxrx1_is_standardised_by_itself(root: Path):
    dataset, source = ours("rxrx1", root), theirs("rxrx1", root)
    raw = np.array(source.get_input(0)).astype(np.float64)
    expected = (raw - raw.mean((0, 1))) / raw.std((0, 1), ddof=1)
    found = dataset.prepare(dataset.reader(torch.tensor([0])))[0].permute(1, 2, 0)
    assert np.allclose(found, expected, atol=1e-5)
    assert (standardise_each(torch.full((1, 3, 4, 4), 7, dtype=torch.uint8)) == 0).all()


def test_images_of_rxrx1_are_turned_and_mirrored_in_training_alone(root: Path):
    assert ours("rxrx1", root).augment is turn_and_flip
    assert ours("rxrx1", root, "augment=false").augment is ours("fmow", root).augment is None
    x = torch.arange(12).reshape(1, 3, 2, 2).expand(400, 3, 2, 2)
    turned = turn_and_flip(x, torch.Generator().manual_seed(0))
    ways = [torch.rot90(x[0], k, (1, 2)) for k in range(4)]
    ways += [way.flip(2) for way in ways]
    counts = [(turned == way).flatten(1).all(1).sum().item() for way in ways]
    assert sum(counts) == 400 and min(counts) > 25


def test_lights_at_night_can_be_left_out(root: Path):
    dark, lit = ours("poverty", root, "no_nl=true"), ours("poverty", root)
    x, rows = lit.reader(torch.arange(3)), torch.arange(3)
    assert (dark.reader(rows)[:, 7] == 0).all() and (x[:, 7] != 0).any()
    assert torch.equal(dark.reader(rows)[:, :7], x[:, :7])
    source = theirs("poverty", root, no_nl=True)
    assert torch.equal(dark.reader(rows), torch.stack([source.get_input(r) for r in row_of(dark)[:3]]))


def test_folds_hold_out_other_countries(root: Path):
    held_out = {}
    for fold in "ABCDE":
        manifest = ours("poverty", root, f"fold={fold}").manifest
        held_out[fold] = frozenset(manifest.loc[manifest["split"] == "test", "country"])
    assert len(set(held_out.values())) == 5 and "angola" in held_out["A"] and "togo" in held_out["D"]
    assert frozenset().union(*held_out.values()) == set(wilds_images.COUNTRIES)


def test_domainnet_trains_and_tests_on_the_domains_that_are_named(root: Path):
    dataset = ours("domainnet", root, "source_domain=clipart", "target_domain=real", "sentry=true")
    by_split = dataset.manifest.groupby("split", observed=True)["domain"].unique()
    assert by_split["train"].tolist() == by_split["id_test"].tolist() == ["clipart"]
    assert by_split["val"].tolist() == by_split["test"].tolist() == ["real"]
    assert dataset.task.outputs == 40 and ours("domainnet", root).task.outputs == 345


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_and_grouped_loaders_of_the_package_run_and_give_what_we_read(name: str, root: Path):
    from wilds.common.data_loaders import get_train_loader

    dataset, source = ours(name, root), theirs(name, root)
    steps = [FIT[name], *([transforms.ToTensor()] if name in IMAGES else [])]
    subset = source.get_subset("train", transform=transforms.Compose(steps))
    by_group = {"grouper": grouper(source, GROUP_BY[name]), "n_groups_per_batch": 1}
    for loader in (
        get_train_loader("standard", subset, batch_size=4),
        get_train_loader("group", subset, batch_size=4, **by_group),
    ):
        drawn = next(iter(loader.batch_sampler))
        x, y, _ = loader.collate_fn([subset[int(position)] for position in drawn])
        rows = torch.from_numpy(np.searchsorted(row_of(dataset), subset.indices[np.asarray(drawn)]))
        read = dataset.reader(rows)
        assert torch.equal(read.float() / 255 if name in IMAGES else read, x)
        assert torch.equal(dataset.targets_M[rows].float(), y.float().reshape(dataset.targets_M[rows].shape))


# --- unlabeled examples -----------------------------------------------------------------------------


@pytest.fixture
def any_number(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The class of Camelyon17's unlabeled patches without its three checks for the complete numbers."""
    import_wilds()
    from wilds.datasets.unlabeled import camelyon17_unlabeled_dataset as module

    tree = ast.parse(Path(module.__file__).read_text())
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert len(checks) == 3
    for node in checks:
        node.test = ast.copy_location(ast.Constant(True), node.test)
    scope = dict(vars(module))
    exec(compile(tree, module.__file__, "exec"), scope)
    monkeypatch.setattr(module, "Camelyon17UnlabeledDataset", scope["Camelyon17UnlabeledDataset"])


@pytest.mark.usefixtures("any_number")
@pytest.mark.parametrize(
    ("name", "split", "domains"),
    [
        ("camelyon17", "train", ["0", "3", "4"]),
        ("camelyon17", "val", ["1"]),
        ("camelyon17", "test", ["2"]),
        ("iwildcam", "extra", ["1", "7", "8"]),
        ("fmow", "train", ["2003", "2012"]),
        ("fmow", "val", ["2014"]),
        ("fmow", "test", ["2016", "2017"]),
        ("domainnet", "test", ["sketch"]),
        ("domainnet", "extra", ["clipart"]),
        ("poverty", "test", ["angola", "cote_d_ivoire", "ethiopia", "mali", "rwanda"]),
    ],
)
def test_unlabeled_examples_come_last_and_without_labels(
    name: str, split: str, domains: list[str], root: Path
):
    labeled, dataset = ours(name, root), ours(name, root, f"unlabeled={split}")
    source = theirs(name, root, unlabeled=True)
    subset = source.get_subset(f"{split}_unlabeled")
    further = dataset.manifest.iloc[len(labeled.manifest) :]
    assert len(further) == len(subset) and (further["split"] == "unlabeled").all()
    assert further["y"].isna().all() and sorted(set(further["domain"])) == domains
    assert dataset.domains[: len(labeled.domains)] == labeled.domains
    of_labeled = dataset.targets_M[: len(labeled.manifest)]
    assert torch.equal(of_labeled, labeled.targets_M)
    assert not dataset.targets_M[len(labeled.manifest) :].nan_to_num(-1).ge(0).any()
    rows = torch.from_numpy(further.index.to_numpy(copy=True))
    for x, position in zip(dataset.reader(rows), range(len(subset)), strict=True):
        expected = FIT[name](subset[position][0])
        if name in IMAGES:
            expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        assert torch.equal(x, expected)


def test_labeled_and_unlabeled_rows_may_be_read_together(root: Path):
    dataset = ours("fmow", root, "unlabeled=test")
    last = len(dataset.manifest) - 1
    both = dataset.reader(torch.tensor([last, 0, last - 1, 1]))
    apart = [dataset.reader(torch.tensor([row]))[0] for row in (last, 0, last - 1, 1)]
    assert torch.equal(both, torch.stack(apart))


@pytest.mark.usefixtures("any_number")
def test_an_algorithm_that_uses_unlabeled_examples_trains_on_those_of_camelyon17(
    root: Path, tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
):
    config = compose(
        sets=[
            *LAYOUTS["wilds:camelyon17"].sets,
            "algorithm=nci",
            "data.name=wilds:camelyon17",
            "data.unlabeled=test",
            f"execution.data_root={root}",
            f"execution.output={tmp_path / 'runs'}",
            f"execution.tracking_uri={mlflow_store}",
            "execution.device=cpu",
            "train.steps=3",
            "train.eval_every=3",
        ]
    )
    seen = []  # shapes of the labeled and the unlabeled images of every update
    step = Learner.step

    def watched(learner: Learner, x: Any, *args: Any, **given: Any) -> Any:
        seen.append((x.shape, given["unlabeled"].shape))
        return step(learner, x, *args, **given)

    monkeypatch.setattr(Learner, "step", watched)
    splits = prepare(config).splits
    assert splits.rows["unlabeled"]["2"].size == 4 and set(splits.rows["test"]) == {"2"}
    result = train(config, progress=Progress(say=lambda text: None))
    assert result.status == "FINISHED"
    assert len(seen) == 3 and all(labeled == unlabeled for labeled, unlabeled in seen)
    assert 0 <= result.chosen["last"].metrics["test/official/acc_avg"] <= 1


def test_camelyon17_refuses_a_part_of_its_unlabeled_patches(tmp_path: Path):
    wilds_images.camelyon17(tmp_path)
    wilds_images.camelyon17_unlabeled(tmp_path)
    with pytest.raises(UsageError, match=r"found it otherwise than.*600_030"):
        ours("camelyon17", tmp_path, "unlabeled=test")


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("iwildcam", "test", "no unlabeled examples 'test'; data.unlabeled may be extra"),
        ("rxrx1", "test", "Unlabeled data is not available for rxrx1"),
    ],
)
def test_unlabeled_examples_that_do_not_exist_are_refused(name: str, split: str, said: str, root: Path):
    with pytest.raises(UsageError, match=said):
        ours(name, root, f"unlabeled={split}")
