"""folder:PATH: the listing and its complaints, the reader, preparation."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from torchvision.transforms.functional import normalize

from dgharness.data.folder import folder
from dgharness.data.images import MEAN, STD, ImageOptions, standardise
from dgharness.data.protocols import leave_one_domain_out
from dgharness.errors import UsageError


@pytest.fixture
def load(tmp_path: Path):
    def run(path: Path | str | None, **options):
        chosen = ImageOptions(**{"size": 16, "cache_dir": tmp_path / "cache", **options})
        return folder.load(str(path) if path else None, None, 0, chosen)

    return run


def test_domains_classes_and_files_are_sorted(photos, load):
    dataset = load(photos)
    assert dataset.name == "photos" and dataset.domains == ("art", "sketch")
    assert list(dataset.manifest["y"].cat.categories) == ["cat", "dog"]
    assert list(dataset.manifest["path"]) == sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.png")
    )
    assert dataset.targets_M.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert (dataset.profile, dataset.defaults.model, dataset.defaults.eval_every) == (
        "large",
        "resnet50",
        300,
    )


def test_the_reader_gives_the_images_of_the_rows(photos, load):
    dataset = load(photos)
    rows = torch.tensor([7, 0, 7])
    x = dataset.reader(rows)
    assert x.dtype == torch.uint8 and x.shape == (3, 3, 16, 16)
    for pixels, path in zip(x, dataset.manifest["path"].iloc[rows.numpy()], strict=True):
        color = torch.tensor(Image.open(photos / path).getpixel((0, 0)), dtype=torch.uint8)
        assert torch.equal(pixels, color[:, None, None].expand_as(pixels))


def test_the_reader_can_go_to_another_process_and_stays_where_it_is(photos, load):
    reader = load(photos).reader
    rows = torch.arange(12)
    assert torch.equal(pickle.loads(pickle.dumps(reader))(rows), reader(rows))
    assert len(pickle.dumps(reader)) < 2000
    assert reader.to(torch.device("cpu")) is reader


def test_standardise_is_torchvisions_normalize_of_the_unit_range():
    x = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    torch.testing.assert_close(standardise(x), normalize(x / 255, MEAN, STD), atol=2e-6, rtol=0)
    torch.testing.assert_close(standardise(x.float()), standardise(x), atol=0, rtol=0)


def test_augmentation_can_be_switched_off(photos, load):
    assert load(photos).augment is not None and load(photos, augment=False).augment is None


def test_the_digest_follows_names_and_replaced_files_but_not_the_place(photos, load, tmp_path):
    first = load(photos).digest
    assert load(shutil.copytree(photos, tmp_path / "copy")).digest == first
    (photos / "art" / "cat" / "00.png").rename(photos / "art" / "cat" / "renamed.png")
    renamed = load(photos).digest
    Image.effect_noise((30, 30), 9).convert("RGB").save(photos / "art" / "cat" / "renamed.png")
    assert len({first, renamed, load(photos).digest}) == 3


def test_hidden_and_foreign_files_are_no_images(photos, load):
    (photos / ".git").mkdir()
    (photos / "README.txt").touch()
    (photos / "art" / "cat" / "Thumbs.db").touch()
    (photos / "art" / "cat" / "._00.png").touch()
    assert len(load(photos).manifest) == 12


def test_what_is_left_out_of_a_class_is_counted(photos, load, caplog):
    (photos / "art" / "cat" / "kittens").mkdir()
    Image.new("RGB", (5, 5)).save(photos / "art" / "cat" / "kittens" / "00.png")
    (photos / "art" / "cat" / "a.HEIC").touch()
    (photos / "sketch" / "dog" / "b.heic").touch()
    assert len(load(photos).manifest) == 12
    assert "2 .heic files, 1 folders" in caplog.text


def test_a_class_of_other_files_alone_is_told_what_they_are(photos, load):
    for path in (photos / "art" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UsageError, match=r"art/cat holds no images but 3 \.heic files; add some"):
        load(photos)


def test_a_link_to_nowhere_is_named(photos, load):
    (photos / "art" / "cat" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(UsageError, match=r"art/cat/link\.png' is not there .*; mend the link or remove it"):
        load(photos)


def test_skipped_images_leave_the_manifest_and_the_rows_stay_aligned(photos, load, caplog):
    (photos / "art" / "cat" / "01.png").write_bytes(b"no image")
    dataset = load(photos, skip_unreadable=True)
    assert "1 unreadable images" in caplog.text
    assert len(dataset.manifest) == 11 and "art/cat/01.png" not in set(dataset.manifest["path"])
    assert dataset.reader(torch.arange(11))[:, 0, 0, 0].tolist() == [0, *range(40, 240, 20)]


def test_a_class_of_nothing_but_skipped_images_is_named(photos, load):
    for path in (photos / "art" / "cat").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UsageError, match="art/cat holds no readable image"):
        load(photos, skip_unreadable=True)


def test_a_corrupt_image_is_named(photos, load):
    (photos / "sketch" / "dog" / "09.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"1 of 12 images .*sketch/dog/09\.png"):
        load(photos)


def test_no_path_is_named(load):
    with pytest.raises(UsageError, match="folder needs a path, as in folder:PATH"):
        load(None)


def test_a_missing_folder_is_named(load, tmp_path):
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_folder_without_domains_is_named(load, tmp_path):
    with pytest.raises(UsageError, match="holds no domain folders"):
        load(tmp_path)


def test_an_empty_domain_is_named(photos, load):
    (photos / "cartoon").mkdir()
    with pytest.raises(UsageError, match=r"domain 'cartoon' of .* is empty"):
        load(photos)


def test_an_empty_class_is_named(photos, load):
    for path in (photos / "art" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="art/dog holds no images"):
        load(photos)


def test_differing_classes_are_named_by_domain(photos, load):
    (photos / "sketch" / "dog").rename(photos / "sketch" / "dogs")
    with pytest.raises(UsageError, match="'art' has no 'dogs'; 'sketch' has no 'dog'; every domain needs"):
        load(photos)


def test_real_pacs_has_four_domains_of_seven_classes(real_data, tmp_path):
    options = ImageOptions(cache_dir=tmp_path)
    dataset = folder.load(str(real_data / "PACS"), None, 0, options)
    assert dataset.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert (dataset.task.outputs, dataset.input_shape) == (7, (3, 224, 224))
    rows = torch.arange(0, len(dataset.manifest), 20)
    paths = [real_data / "PACS" / dataset.manifest["path"].iloc[row] for row in rows.tolist()]
    evaluation = Compose([Resize((224, 224)), ToTensor(), Normalize(MEAN, STD)])  # DomainBed's
    expected = torch.stack([evaluation(Image.open(path)) for path in paths])
    torch.testing.assert_close(dataset.prepare(dataset.reader(rows)), expected, atol=1e-5, rtol=0)
    splits = leave_one_domain_out(dataset, ["sketch"], 0)
    assert np.concatenate(list(splits.rows["train"].values())).max() < dataset.rows_of("sketch")[0]


def test_without_a_cache_the_images_are_the_same_and_nothing_is_kept(photos: Path, tmp_path: Path):
    kept = folder.load(str(photos), None, 0, ImageOptions(size=8, cache_dir=tmp_path / "cache"))
    read = folder.load(str(photos), None, 0, ImageOptions(size=8, cache=False, cache_dir=tmp_path / "none"))
    index_N = torch.tensor([3, 0, 3, 11])
    assert torch.equal(read.reader(index_N), kept.reader(index_N))
    assert read.digest == kept.digest and not (tmp_path / "none").exists()


def test_without_a_cache_an_unreadable_image_is_named_when_it_is_drawn(photos: Path):
    (photos / "art" / "cat" / "00.png").write_bytes(b"no image")
    dataset = folder.load(str(photos), None, 0, ImageOptions(size=8, cache=False))
    dataset.reader(torch.tensor([1]))
    with pytest.raises(UsageError, match=r"art/cat/00\.png cannot be read"):
        dataset.reader(torch.tensor([0, 1]))
