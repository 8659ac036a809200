"""DomainBed's datasets: its folders, domain order and arrangements, apart from WILDS' own splits."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts.domainbed import FOLDERS, LAYOUTS, SPAWRIOUS, write_camelyon, write_images, write_spawrious

from dgharness import registry
from dgharness.config import RunConfig, compose
from dgharness.data.augmentation import augment
from dgharness.data.check import findings
from dgharness.data.dataset import Dataset
from dgharness.data.domainbed.spawrious import IMAGES, Folder, many_to_many, one_to_one
from dgharness.data.images import ImageOptions
from dgharness.data.protocols import default_targets, leave_one_domain_out
from dgharness.errors import UsageError
from dgharness.training.prepare import prepare


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(name: str, root: Path | None, **options: Any) -> Dataset:
    spec = registry.load("datasets", f"domainbed:{name}")
    return spec.load(None, root, 0, ImageOptions(size=8, **options))


# --- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_domains_and_classes_are_numbered_by_the_names_of_their_folders(name, tmp_path):
    _, domains, classes, images = FOLDERS[name]
    LAYOUTS[f"domainbed:{name}"].write(tmp_path)
    dataset = load(name, tmp_path)
    assert dataset.name == f"domainbed:{name}"
    assert dataset.domains == tuple(sorted(domains))
    assert list(dataset.manifest["y"].cat.categories) == [f"class_{label:03}" for label in range(classes)]
    assert len(dataset.manifest) == len(domains) * classes * images
    assert (dataset.defaults.steps, dataset.defaults.sampler) == (5000, "by-domain")
    assert dataset.defaults.eval_every == (1000 if name == "DomainNet" else 300)


def test_location_100_comes_before_location_38_as_text_is_sorted(tmp_path):
    LAYOUTS["domainbed:TerraIncognita"].write(tmp_path)
    assert load("TerraIncognita", tmp_path).domains[:2] == ("location_100", "location_38")


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("PACS", 9_991),
        ("VLCS", 10_729),
        ("OfficeHome", 15_588),
        ("TerraIncognita", 24_330),
        ("DomainNet", 586_575),
        ("WILDSCamelyon", 455_954),
        ("SpawriousO2O_hard", 4 * 4 * IMAGES),
    ],
)
def test_the_counts_of_the_complete_dataset_add_up_to_its_published_size(name, total):
    assert sum(registry.load("datasets", f"domainbed:{name}").counts.values()) == total


@pytest.mark.parametrize("name", ["PACS", "VLCS", "SpawriousO2O_easy", "SpawriousM2M_hard"])
def test_the_counts_of_the_classes_add_up_to_those_of_the_domains(name):
    spec = registry.load("datasets", f"domainbed:{name}")
    assert {domain: sum(of.values()) for domain, of in spec.class_counts.items()} == spec.counts


def test_without_the_folder_the_message_says_what_belongs_where(tmp_path):
    with pytest.raises(UsageError, match=r"VLCS needs the folder .*VLCS with one folder each for Caltech101"):
        load("VLCS", tmp_path)


def test_the_data_root_may_be_an_environment_variable(tmp_path, monkeypatch):
    LAYOUTS["domainbed:PACS"].write(tmp_path)
    monkeypatch.setenv("DGHARNESS_DATA", str(tmp_path))
    assert len(load("PACS", None).manifest) == 56


def test_a_domain_too_few_or_too_many_would_renumber_the_others(tmp_path):
    LAYOUTS["domainbed:PACS"].write(tmp_path)
    extra = tmp_path / "PACS" / "splits"
    shutil.copytree(tmp_path / "PACS" / "photo", extra)
    with pytest.raises(UsageError, match=r"holds the folder 'splits', which is no domain of domainbed:PACS"):
        load("PACS", tmp_path)
    shutil.rmtree(extra)
    shutil.rmtree(tmp_path / "PACS" / "photo")
    with pytest.raises(UsageError, match=r"has no folder 'photo', a domain of domainbed:PACS"):
        load("PACS", tmp_path)


def test_a_selection_of_the_classes_does_not_bear_the_name(tmp_path):
    LAYOUTS["domainbed:PACS"].write(tmp_path)
    for domain in FOLDERS["PACS"][1]:
        shutil.rmtree(tmp_path / "PACS" / domain / "class_006")
    with pytest.raises(UsageError, match=r"have 6 classes, and those of domainbed:PACS have 7"):
        load("PACS", tmp_path)


def test_the_sample_of_pacs(real_data):
    dataset = load("PACS", real_data)
    assert dataset.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert list(dataset.manifest["y"].cat.categories) == sorted(
        ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    )


# --- Spawrious -------------------------------------------------------------------------------------


def places(folders: list[Folder], domain: str) -> dict[tuple[str, str], int | None]:
    return {(f.breed, f.location): f.limit for f in folders if f.domain == domain}


def test_one_to_one_ties_a_breed_to_a_place_97_times_in_100_and_87_times():
    folders = one_to_one(["a", "b", "c", "d"], ["c", "d", "a", "b"], "common")
    for domain, half, own in (("SC_group_1", 0, 3072), ("SC_group_2", 1, 2756)):
        limits = places(folders, domain)
        assert limits["bulldog", "a"] == limits["corgi", "d"] == own
        assert limits["dachshund", "common"] == 3168 - own
        assert {folder.half for folder in folders if folder.domain == domain} == {half}
    tested = [folder for folder in folders if folder.domain == "Test"]
    assert {(folder.breed, folder.location) for folder in tested} == {
        ("bulldog", "c"),
        ("dachshund", "d"),
        ("labrador", "a"),
        ("corgi", "b"),
    }
    assert Counter(folder.half for folder in tested) == {0: 4, 1: 4}


def test_many_to_many_swaps_the_places_within_a_pair_of_breeds():
    folders = many_to_many(["a", "b", "c", "d"], ["c", "d", "a", "b"])
    first, second = places(folders, "SC_group_1"), places(folders, "SC_group_2")
    assert set(first) == {("bulldog", "a"), ("dachshund", "b"), ("labrador", "c"), ("corgi", "d")}
    assert set(second) == {("bulldog", "b"), ("dachshund", "a"), ("labrador", "d"), ("corgi", "c")}
    tested = places(folders, "Test")
    assert len(tested) == 8 and {("bulldog", "c"), ("bulldog", "d"), ("corgi", "a"), ("corgi", "b")} < set(
        tested
    )
    assert {folder.half for folder in folders} == {0}


@pytest.mark.parametrize("name", SPAWRIOUS)
def test_no_breed_is_tested_where_it_was_trained(name, tmp_path):
    write_spawrious(tmp_path)
    dataset = load(name, tmp_path)
    assert dataset.domains == ("Test", "SC_group_1", "SC_group_2")
    seen = {
        (domain == "Test", breed, place)
        for domain, breed, place in dataset.manifest[["domain", "y", "location"]].itertuples(index=False)
    }
    tested = {(breed, place) for test, breed, place in seen if test}
    trained = {(breed, place) for test, breed, place in seen if not test}
    assert tested and not tested & trained
    assert dataset.manifest["path"].is_unique
    spec = registry.load("datasets", f"domainbed:{name}")
    kinds = [finding.kind for finding in findings(dataset, absent=spec.absent_groups)]
    assert "groups of metrics without examples" not in kinds and spec.absent_groups
    counts = spec.counts
    assert counts == {"Test": 25_344, "SC_group_1": 12_672, "SC_group_2": 12_672}


def test_test_is_held_out_where_no_target_is_named(tmp_path):
    write_spawrious(tmp_path)
    dataset = load("SpawriousO2O_easy", tmp_path)
    targets = default_targets("leave-one-domain-out", dataset)
    assert targets == ("Test",)
    assert leave_one_domain_out(dataset, targets, 0).train_domains == ("SC_group_1", "SC_group_2")


def test_the_first_images_by_name_are_taken_whatever_the_order_on_disk(tmp_path):
    write_spawrious(tmp_path)
    names = [f"beach_{number:03}.png" for number in range(100)]
    folder = tmp_path / "spawrious224" / "0" / "beach" / "corgi"
    shutil.rmtree(folder)
    write_images(folder / name for name in random.Random(0).sample(names, 100))
    manifest = load("SpawriousO2O_easy", tmp_path).manifest
    common = manifest[(manifest["location"] == "beach") & (manifest["y"] == "corgi")]
    taken = common[common["domain"] == "SC_group_1"]["path"]
    assert taken.tolist() == [f"0/beach/corgi/{name}" for name in names[:96]]


def test_a_place_without_images_is_named(tmp_path):
    write_spawrious(tmp_path)
    shutil.rmtree(tmp_path / "spawrious224" / "1" / "snow" / "corgi")
    with pytest.raises(UsageError, match=r"O2O_medium needs images in .*1/snow/corgi, and there are none"):
        load("SpawriousO2O_medium", tmp_path)
    assert len(load("SpawriousM2M_hard", tmp_path).manifest) == 48


def test_images_are_recoloured_and_not_cropped(tmp_path):
    write_spawrious(tmp_path)
    change = load("SpawriousM2M_easy", tmp_path).augment
    assert change is not None
    framed = torch.full((16, 3, 12, 12), 40, dtype=torch.uint8)
    framed[:, :, [0, -1], :] = framed[:, :, :, [0, -1]] = 200
    inner = torch.zeros(12, 12, dtype=torch.bool)
    inner[1:-1, 1:-1] = True

    def frame_is_whole(x: torch.Tensor) -> torch.Tensor:
        luma = x.float().mean(1)
        return luma[:, ~inner].amin(1) > luma[:, inner].amax(1) + 10

    changed = change(framed, torch.Generator().manual_seed(0))
    assert frame_is_whole(changed).all() and not torch.equal(changed, framed.float())
    assert not frame_is_whole(augment(framed, torch.Generator().manual_seed(0))).all()


# --- WILDS' data, split as DomainBed does ----------------------------------------------------------


def config_of(name: str, root: Path) -> RunConfig:
    small = ["data.size=8", "model.name=mlp", "model.width=8", "train.steps=5"]
    return compose(sets=[f"data.name={name}", f"execution.data_root={root}", *small])


def test_the_two_splits_of_camelyon17_never_share_a_column(tmp_path):
    write_camelyon(tmp_path)
    official = prepare(config_of("wilds:camelyon17", tmp_path))
    ours = prepare(config_of("domainbed:WILDSCamelyon", tmp_path))
    assert (official.dataset.name, ours.dataset.name) == ("wilds:camelyon17", "domainbed:WILDSCamelyon")
    assert official.experiment == "wilds:camelyon17/official"
    assert ours.experiment == "domainbed:WILDSCamelyon/leave-one-domain-out"
    assert official.dataset.digest != ours.dataset.digest
    assert official.config_hash != ours.config_hash and official.splits.digest != ours.splits.digest


def test_every_hospital_is_a_domain_with_its_examples_of_all_official_splits(tmp_path):
    write_camelyon(tmp_path)
    dataset = load("WILDSCamelyon", tmp_path)
    assert dataset.domains == tuple(f"hospital_{number}" for number in range(5))
    assert "split" not in dataset.manifest and dataset.official is None
    splits = leave_one_domain_out(dataset, ["hospital_4"], 0)
    assert len(splits.rows["test"]["hospital_4"]) + len(splits.rows["test_holdout"]["hospital_4"]) == 12
    assert len(splits.train_domains) == 4


def test_regions_are_domains_with_all_that_is_not_sequestered(tmp_path):
    LAYOUTS["domainbed:WILDSFMoW"].write(tmp_path)
    dataset = load("WILDSFMoW", tmp_path)
    assert dataset.domains == ("Asia", "Europe", "Africa", "Americas", "Oceania", "Other")
    assert len(dataset.manifest) == 60
    assert dataset.manifest["path"].iloc[10] == "images/rgb_img_11.png"  # 10 is sequestered
    assert dataset.task.outputs == 62
