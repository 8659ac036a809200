"""Evaluation-only suites: rows, splits and scores of corrupted datasets, CIFAR-C and ImageNet's kin."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision import datasets

sys.path.insert(0, str(Path(__file__).parent))
from layouts import suites as written

from dgharness.data.corruptions import CORRUPTIONS, corrupt
from dgharness.data.protocols import PROTOCOLS, default_targets
from dgharness.data.suites import Accuracy, CorruptionErrors
from dgharness.data.suites.cifar_c import CifarCOptions, cifar_10_c, cifar_100_c, shifted_and_flipped
from dgharness.data.suites.corrupted import CorruptedOptions, corrupted, with_corrupted_tests
from dgharness.data.suites.imagenet import (
    ImageNetOptions,
    ImageNetV2Options,
    imagenet_a,
    imagenet_r,
    imagenet_v2,
)
from dgharness.data.tasks import regression
from dgharness.errors import UsageError
from dgharness.seeds import generator

WNIDS = written.WNIDS


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def counts(dataset) -> dict[tuple[str, str], int]:
    """Rows by split and domain."""
    found = dataset.manifest.groupby(["split", "domain"], observed=True).size()
    return {(str(split), str(domain)): int(n) for (split, domain), n in found.items()}


def rows(dataset, split: str, domain: str) -> np.ndarray:
    manifest = dataset.manifest
    return np.flatnonzero((manifest["split"] == split) & (manifest["domain"] == domain))


# --- corrupted:DATASET -----------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path):
    """Loads corrupted:folder:PATH of two domains of ten images; options as ``--set data.`` takes them."""
    written.photographs(tmp_path)

    def load(seed: int = 0, name: str = f"folder:{tmp_path}/photos", **options):
        chosen = {"size": 16, "corruptions": ["fog", "shot-noise"], "severities": [2, 5], **options}
        return corrupted.load(name, None, seed, CorruptedOptions(**chosen))

    return load


def test_test_rows_stand_once_for_every_corruption_and_severity_and_once_as_they_are(photographs):
    dataset = photographs()
    assert dataset.name == "corrupted:photos" and dataset.defaults.protocol == "official"
    clean = {("train", domain): 6 for domain in ("art", "photo")}
    clean |= {(split, domain): 2 for split in ("val", "id_test") for domain in ("art", "photo")}
    tested = {("test", name): 4 for name in ("fog-2", "fog-5", "shot-noise-2", "shot-noise-5")}
    assert counts(dataset) == clean | tested
    test = dataset.manifest[dataset.manifest["split"] == "test"]
    assert test.groupby(["domain", "original_domain"], observed=True).size().tolist() == [2] * 8
    splits = PROTOCOLS["official"](dataset, default_targets("official", dataset), 0)
    assert splits.targets == ("fog-2", "fog-5", "shot-noise-2", "shot-noise-5")
    assert splits.train_domains == ("art", "photo")


def test_the_reader_corrupts_test_rows_and_no_others(photographs):
    dataset = photographs()
    inner, row_M = dataset.reader.reader, dataset.reader.row_M
    clean = np.flatnonzero(dataset.manifest["split"] != "test")
    assert torch.equal(dataset.reader(torch.from_numpy(clean)), inner(row_M[clean]))
    for corruption, severity in (("fog", 5), ("shot-noise", 2)):
        index = torch.from_numpy(rows(dataset, "test", f"{corruption}-{severity}"))
        assert torch.equal(
            dataset.reader(index), corrupt(inner(row_M[index]), row_M[index].tolist(), corruption, severity)
        )
    everything = torch.arange(len(dataset.manifest))
    mixed = torch.randperm(len(everything), generator=generator(0, "test"))
    assert torch.equal(dataset.reader(mixed), dataset.reader(everything)[mixed])
    assert torch.equal(dataset.reader.to(torch.device("cpu"))(mixed), dataset.reader(mixed))


def test_a_row_is_corrupted_alike_whichever_other_corruptions_are_chosen(photographs):
    few, many = photographs(corruptions="fog", severities=5), photographs()
    assert set(few.manifest["domain"].cat.categories) == {"art", "photo", "fog-5"}
    index = [torch.from_numpy(rows(dataset, "test", "fog-5")) for dataset in (few, many)]
    assert torch.equal(few.reader(index[0]), many.reader(index[1]))


def test_all_fifteen_corruptions_in_five_severities_are_the_default(photographs):
    dataset = photographs(corruptions=(), severities=(1, 2, 3, 4, 5))
    assert len([name for split, name in counts(dataset) if split == "test"]) == 15 * 5 == 5 * len(CORRUPTIONS)


def test_the_holdout_of_a_dataset_without_a_split_follows_the_trial_seed(photographs):
    first, again, other = photographs(), photographs(), photographs(seed=1)
    assert first.digest == again.digest
    assert not np.array_equal(first.reader.row_M, other.reader.row_M)
    assert counts(first) == counts(other)


def test_the_split_of_a_dataset_that_has_one_is_taken(photographs):
    plain = photographs().reader.reader
    inner = photographs(severities=1)
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical(["cat", "dog"] * 10),
            "domain": pd.Categorical(["art"] * 10 + ["photo"] * 10),
            "split": pd.Categorical(["train"] * 10 + ["val"] * 3 + ["unlabeled"] * 2 + [None] + ["test"] * 4),
        }
    )
    dataset = with_corrupted_tests(
        dataclasses.replace(inner, manifest=manifest, reader=plain),
        CorruptedOptions(corruptions="snow", severities=3),
    )
    assert counts(dataset) == {
        ("train", "art"): 10,
        ("val", "photo"): 3,
        ("unlabeled", "photo"): 2,
        ("id_test", "photo"): 4,
        ("test", "snow-3"): 4,
    }
    assert dataset.reader.row_M.tolist() == [*range(15), *range(16, 20), *range(16, 20)]


def test_labels_of_a_tensor_follow_their_rows(photographs):
    inner = photographs()
    values = torch.arange(len(inner.manifest), dtype=torch.float32)
    dataset = with_corrupted_tests(
        dataclasses.replace(inner, targets=values, task=regression()),
        CorruptedOptions(corruptions="fog", severities=1),
    )
    assert torch.equal(dataset.targets_M, dataset.reader.row_M.float())
    assert dataset.official is None


def test_the_errors_of_corruptions_are_means_over_severities(photographs):
    dataset = photographs()
    index = np.flatnonzero(dataset.manifest["split"] == "test")
    y_N, domain_N = dataset.targets_M[index], dataset.manifest["domain"].iloc[index].to_numpy()
    right = np.isin(domain_N, ["fog-2", "shot-noise-2"]) | (np.arange(len(index)) % 4 == 0)
    predicted_N = torch.where(torch.from_numpy(right), y_N, 1 - y_N)
    logits_NC = torch.nn.functional.one_hot(predicted_N, 2).float()
    found = dataset.official(logits_NC, index)
    assert found == pytest.approx(
        {"error_fog": 0.375, "error_shot-noise": 0.375, "mean_corruption_error": 0.375}
    )
    assert dataset.official_metric in found
    assert dataset.official(logits_NC[:4], np.arange(4)) == {}
    logits_NC[0] = torch.nan
    assert np.isnan(dataset.official(logits_NC, index)["error_fog"])


def test_options_of_the_dataset_itself_are_handed_on(photographs):
    assert photographs(size=24).input_shape == (3, 24, 24)
    with pytest.raises(UsageError, match=r"data.sise is not a setting here; did you mean 'size'"):
        photographs(sise=3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "corrupted needs a dataset"),
        ("folders:x", {}, "there is no dataset 'folders'; did you mean 'folder'"),
        ("colored-digits", {}, r"examples? of it is uint8 of shape \[2, 8, 8\]"),
        ("synthetic:slabs", {}, "cannot be corrupted"),
        ("colored-digits", {"corruptions": ["foog"]}, "cannot be corrupted"),
    ],
)
def test_what_cannot_be_corrupted_is_said(name, options, message):
    with pytest.raises(UsageError, match=message):
        corrupted.load(name, None, 0, CorruptedOptions(**options))


def test_an_unknown_corruption_is_said(photographs):
    with pytest.raises(
        UsageError, match=r"data.corruptions: there is no corruption 'foog'; did you mean 'fog'"
    ):
        photographs(corruptions="foog")
    with pytest.raises(ValueError, match="less than or equal to 5"):
        photographs(severities=[6])


# --- CIFAR-C ---------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    written.cifar_10(tmp_path)
    return tmp_path


def test_cifar_c_takes_its_severities_from_the_blocks_of_the_arrays(cifar):
    dataset = cifar_10_c.load(None, cifar, 0, CifarCOptions(corruptions=["jpeg-compression", "snow"]))
    found = counts(dataset)
    assert {split: n for (split, name), n in found.items() if name == "clean"} == {
        "train": 27,
        "val": 3,
        "id_test": 3,
    }
    assert found["test", "snow-5"] == 2 and len(found) == 3 + 10
    for name in ("jpeg_compression", "snow"):
        array = np.load(cifar / "CIFAR-10-C" / f"{name}.npy")
        for severity in (1, 4):
            index = rows(dataset, "test", f"{name.replace('_', '-')}-{severity}")
            x = dataset.reader(torch.from_numpy(index)).permute(0, 2, 3, 1)
            assert np.array_equal(x, array[2 * (severity - 1) : 2 * severity])
            assert dataset.targets_M[index].tolist() == [0, 1]


def test_cifar_cs_clean_images_are_those_of_the_binary_files(cifar):
    dataset = cifar_10_c.load(None, cifar, 0, CifarCOptions(corruptions="fog", severities=1))
    clean = np.flatnonzero(dataset.manifest["domain"] == "clean")
    files = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    content = np.concatenate(
        [np.fromfile(cifar / "cifar-10-batches-bin" / file, np.uint8).reshape(-1, 3073) for file in files]
    )
    assert dataset.targets_M[clean].tolist() == content[:, 0].tolist()
    assert np.array_equal(dataset.reader(torch.from_numpy(clean)).flatten(1), content[:, 1:])
    assert (dataset.manifest["split"].iloc[clean[-3:]] == "id_test").all()
    assert cifar_10_c.load(None, cifar, 7, CifarCOptions()).digest == (
        cifar_10_c.load(None, cifar, 0, CifarCOptions()).digest
    )


def test_cifar_100s_class_is_the_fine_label(tmp_path):
    written.cifar_100(tmp_path)
    dataset = cifar_100_c.load(None, tmp_path, 0, CifarCOptions())
    assert dataset.task.outputs == 100 and dataset.targets_M[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("outputs", "trained", "width"), [("subset", 10, 1), ("all", 30, 10)])
def test_a_subset_of_classes_is_what_is_trained_or_only_what_is_tested(cifar, outputs, trained, width):
    options = CifarCOptions(corruptions="fog", classes="class1", outputs=outputs)
    dataset = cifar_10_c.load(None, cifar, 0, options)
    split = dataset.manifest["split"]
    assert dataset.task.outputs == width
    assert split.isin(["train", "val"]).sum() == trained
    assert set(dataset.manifest["y"][split.isin(["test", "id_test"])]) == {"class1"}
    index = np.flatnonzero(split == "test")
    wrong_but_untested = torch.full((len(index), width), 0.0)
    wrong_but_untested[:, 0] = 9.0
    assert dataset.official(wrong_but_untested, index)["mean_corruption_error"] == 0


def test_the_pickled_version_is_read_only_with_its_published_md5(cifar, monkeypatch):
    (cifar / "cifar-10-batches-bin").rename(cifar / "elsewhere")
    with pytest.raises(UsageError, match="has neither cifar-10-batches-bin/ nor cifar-10-batches-py/"):
        cifar_10_c.load(None, cifar, 0, CifarCOptions())
    folder = cifar / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.RandomState(0)
    sums = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        entry = {"data": random.randint(0, 256, (4, 3072)).astype(np.uint8), "labels": [0, 1, 2, 3]}
        entry = {"label_names": [f"class{c}" for c in range(10)]} if name == "batches.meta" else entry
        (folder / name).write_bytes(pickle.dumps(entry))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="MD5 that was published, and other pickled files are not opened"):
        cifar_10_c.load(None, cifar, 0, CifarCOptions())
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    dataset = cifar_10_c.load(None, cifar, 0, CifarCOptions(corruptions="fog"))
    entry = pickle.loads((folder / "test_batch").read_bytes())
    x = dataset.reader(torch.from_numpy(rows(dataset, "id_test", "clean")))
    assert np.array_equal(x.flatten(1), entry["data"])
    assert dataset.targets_M[rows(dataset, "id_test", "clean")].tolist() == [0, 1, 2, 3]


def test_files_of_cifar_c_that_are_damaged_are_named(cifar):
    def load(**options):
        return cifar_10_c.load(None, cifar, 0, CifarCOptions(**options))

    arrays, binary = cifar / "CIFAR-10-C", cifar / "cifar-10-batches-bin"
    with pytest.raises(UsageError, match=r"there is no .*spatter.npy; expected: CIFAR-10-C/labels.npy"):
        load(corruptions=["spatter"])
    np.save(arrays / "fog.npy", np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(UsageError, match=r"fog.npy is uint8 of shape \[9, 32, 32, 3\]"):
        load()
    np.save(arrays / "fog.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(UsageError, match=r"fog.npy cannot be read as an array"):
        load()
    np.save(arrays / "labels.npy", np.array([0, 1, 12, 0, 1], np.uint8))
    with pytest.raises(UsageError, match=r"row 2 of .*labels.npy is outside the 10 classes"):
        load()
    np.save(arrays / "labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(UsageError, match=r"labels.npy has the shape \[7\]"):
        load()
    (binary / "test_batch.bin").write_bytes(b"0" * 5000)
    with pytest.raises(UsageError, match=r"test_batch.bin has 5000 bytes.*truncated"):
        load()
    (binary / "data_batch_3.bin").write_bytes(bytes([200]) + bytes(3072))
    with pytest.raises(UsageError, match=r"row 0 of .*data_batch_3.bin has the label 200"):
        load()
    (binary / "data_batch_2.bin").unlink()
    with pytest.raises(UsageError, match=r"there is no .*data_batch_2.bin; expected"):
        load()


def test_augmentation_shifts_by_up_to_four_pixels_and_flips():
    x = torch.arange(1, 1 + 3 * 64).reshape(1, 3, 8, 8).to(torch.uint8).expand(200, 3, 8, 8)
    y = shifted_and_flipped(x, generator(0, "augmentation"))
    padded = torch.nn.functional.pad(x[0], [4] * 4)
    wanted = {
        (down, across, flip): view.flip(-1) if flip else view
        for down in range(9)
        for across in range(9)
        for flip in (False, True)
        for view in [padded[:, down : down + 8, across : across + 8]]
    }
    seen = {place for image in y for place, view in wanted.items() if torch.equal(image, view)}
    assert all(any(torch.equal(image, view) for view in wanted.values()) for image in y)
    assert len(seen) > 100 and {flip for *_, flip in seen} == {False, True}


# --- ImageNet's kin --------------------------------------------------------------------------------

OPTIONS = {"size": 16}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    written.imagenet_r(tmp_path)
    return tmp_path


def test_a_suite_restricts_what_is_trained_to_its_own_classes(pictures):
    dataset = imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS))
    assert list(dataset.manifest["y"].cat.categories) == list(WNIDS[1:]) and dataset.task.outputs == 2
    assert counts(dataset) == {("train", "imagenet"): 6, ("val", "imagenet"): 4, ("test", "imagenet-r"): 4}
    assert default_targets("official", dataset) == ("imagenet-r",)


def test_with_all_outputs_the_official_accuracy_is_among_the_classes_of_the_suite(pictures):
    dataset = imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, outputs="all"))
    assert list(dataset.manifest["y"].cat.categories) == list(WNIDS)
    assert counts(dataset)["train", "imagenet"] == 9
    index = rows(dataset, "test", "imagenet-r")
    logits_NC = torch.tensor([9.0, 2.0, 1.0]).repeat(len(index), 1)  # the first class is not in the suite
    assert dataset.official(logits_NC, index) == {"acc": 0.5}
    assert dataset.official_metric == "acc"


def test_classes_can_be_chosen_by_name(pictures):
    dataset = imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, classes=WNIDS[2]))
    assert counts(dataset) == {("train", "imagenet"): 3, ("val", "imagenet"): 2, ("test", "imagenet-r"): 2}
    with pytest.raises(UsageError, match=r"data.classes: there is no class 'n0'"):
        imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, classes=["n0"], train=False))


def test_without_imagenet_a_suite_can_be_scored_and_not_trained_on(pictures):
    (pictures / "imagenet").rename(pictures / "elsewhere")
    with pytest.raises(UsageError, match=r"there is no folder .*imagenet/train.*data.train=false"):
        imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS))
    dataset = imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, train=False))
    assert counts(dataset) == {("test", "imagenet-r"): 4} and dataset.task.outputs == 2
    with pytest.raises(UsageError, match="no row of train and none of val"):
        default_targets("official", dataset)
    with pytest.raises(UsageError, match=r"needs ImageNet's list of classes: put imagenet_class_index.json"):
        imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, train=False, outputs="all"))


@pytest.mark.parametrize("file", ["imagenet_class_index.json", "LOC_synset_mapping.txt"])
def test_the_list_of_classes_is_read_from_a_file(pictures, file):
    names = [*WNIDS, "n09999999"]
    content = {
        "imagenet_class_index.json": json.dumps({str(n): [name, "thing"] for n, name in enumerate(names)}),
        "LOC_synset_mapping.txt": "".join(f"{name} thing, other thing\n" for name in names),
    }[file]
    (pictures / "imagenet" / file).write_text(content)
    dataset = imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, outputs="all", train=False))
    assert list(dataset.manifest["y"].cat.categories) == names
    (pictures / "imagenet" / file).write_text("[1]" if file.endswith("json") else "n1 thing")
    with pytest.raises(UsageError, match=r"is not a list of classes|which is not among ImageNet's 1"):
        imagenet_r.load(None, pictures, 0, ImageNetOptions(**OPTIONS, train=False))


def test_the_folders_of_imagenet_v2_are_positions_in_the_list_of_classes(tmp_path):
    written.imagenet_v2(tmp_path)
    dataset = imagenet_v2.load(None, tmp_path, 0, ImageNetV2Options(**OPTIONS))
    test = dataset.manifest[dataset.manifest["split"] == "test"]
    assert list(test["y"]) == [name for name in WNIDS for _ in range(2)]
    assert [path.split("/")[1] for path in test["path"]] == ["0", "0", "1", "1", "2", "2"]
    assert set(test["domain"]) == {"matched-frequency"}
    with pytest.raises(UsageError, match=r"there is no folder .*imagenetv2-threshold0.7-format-val"):
        imagenet_v2.load(None, tmp_path, 0, ImageNetV2Options(**OPTIONS, variant="threshold-0.7"))
    (tmp_path / "imagenet" / "train" / "n00000001").mkdir()
    with pytest.raises(UsageError, match=r"has 3 numbered folders.*has 4 names"):
        imagenet_v2.load(None, tmp_path, 0, ImageNetV2Options(**OPTIONS))
    (tmp_path / "imagenet").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="are numbers, which only ImageNet's list of classes explains"):
        imagenet_v2.load(None, tmp_path, 0, ImageNetV2Options(**OPTIONS))


def test_missing_folders_of_imagenet_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no folder .*imagenet-a; put imagenet-a/<class>/<image>"):
        imagenet_a.load(None, tmp_path, 0, ImageNetOptions(**OPTIONS))
    written.imagenet_a(tmp_path)
    (tmp_path / "imagenet" / "val" / WNIDS[0]).rename(tmp_path / "imagenet" / "val" / "n00000000")
    with pytest.raises(UsageError, match=f"there is no folder .*val/{WNIDS[0]}"):
        imagenet_a.load(None, tmp_path, 0, ImageNetOptions(**OPTIONS))


# --- scores ----------------------------------------------------------------------------------------


def test_an_output_that_is_not_a_number_makes_the_accuracy_none():
    accuracy = Accuracy(torch.tensor([0, 1]), torch.tensor([True, True]))
    assert accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])) == {"acc": 0.5}
    assert np.isnan(accuracy(torch.tensor([[torch.nan, 0.0]]), np.array([1]))["acc"])


def test_corruption_errors_weigh_corruptions_and_not_images():
    domain_M = torch.tensor([0, 1, 1, 1, 2, 3])
    errors = CorruptionErrors(
        torch.zeros(6, dtype=torch.long),
        torch.ones(2, dtype=torch.bool),
        domain_M,
        {1: "fog", 2: "fog", 3: "snow"},
    )
    right = torch.tensor([0, 1, 1, 0, 0, 1]).bool()
    logits_NC = torch.stack([right, ~right], 1).float()
    assert errors(logits_NC, np.arange(6)) == pytest.approx(
        {"error_fog": (1 / 3 + 1) / 2, "error_snow": 0.0, "mean_corruption_error": 1 / 3}
    )
