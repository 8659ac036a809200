"""The cache of decoded images: built once by however many processes, whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from cache_workers import die_while_decoding, listing, load_and_note_the_build
from PIL import Image

from dgharness.data import image_cache
from dgharness.data.image_cache import cache_key, decode, decoded, default_cache_dir
from dgharness.errors import UsageError

SPAWN = multiprocessing.get_context("spawn")


def test_pixels_are_squashed_to_a_square_as_pillow_does(photos: Path, tmp_path: Path):
    files = listing(photos)
    done = decoded(photos, files, 16, tmp_path / "cache")
    pixels = np.load(done.file)
    assert pixels.shape == (12, 3, 16, 16) and pixels.dtype == np.uint8 and not done.unreadable
    for row, file in enumerate(files):
        image = Image.open(photos / file.path).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(pixels[row].transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_three_channels(tmp_path: Path, mode):
    path = tmp_path / "photos" / "a.tif"
    path.parent.mkdir()
    Image.new(mode, (5, 7)).save(path)
    file = image_cache.ImageFile("a.tif", path.stat().st_size, 0)
    assert np.load(decoded(path.parent, [file], 4, tmp_path / "cache").file).shape == (1, 3, 4, 4)


RAMP = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)


def stored(folder: Path, name: str, pixels: np.ndarray) -> image_cache.ImageFile:
    folder.mkdir(exist_ok=True)
    if name.endswith(".pgm"):  # of 10 bits
        header = b"P5 %d %d 1023\n" % pixels.shape[::-1]
        (folder / name).write_bytes(header + (pixels >> 6).astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(folder / name)
    return image_cache.ImageFile(name, (folder / name).stat().st_size, 0)


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif", "ramp.pgm"])
def test_gray_of_sixteen_bits_keeps_its_shades(tmp_path: Path, name):
    pixels = decode(tmp_path / stored(tmp_path, name, RAMP).path, 4, "squash")
    plain = decode(tmp_path / stored(tmp_path, "plain.png", (RAMP >> 8).astype(np.uint8)).path, 4, "squash")
    np.testing.assert_allclose(pixels.astype(int), plain.astype(int), atol=name == "ramp.pgm")
    assert pixels.min() < 10 and pixels.max() > 245


def test_gray_of_twelve_bits_is_as_bright(tmp_path: Path):
    file = tmp_path / stored(tmp_path, "ramp.tif", RAMP >> 4).path
    whole = file.read_bytes()
    entry = whole.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # 16 bits per sample
    packed = (RAMP >> 4).reshape(-1, 2).astype(int)
    high, low = packed[:, 0], packed[:, 1]
    rows = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=1).astype(np.uint8).tobytes()
    start = whole.index((RAMP >> 4).tobytes())
    file.write_bytes(
        whole[: entry + 8] + b"\x0c" + whole[entry + 9 : start] + rows.ljust(24, b"\0") + whole[start + 24 :]
    )
    plain = decode(tmp_path / stored(tmp_path, "plain.png", (RAMP >> 8).astype(np.uint8)).path, 4, "squash")
    assert np.array_equal(decode(file, 4, "squash"), plain)


@pytest.mark.parametrize(
    ("pixels", "kind"), [(RAMP.astype(np.int32), "whole numbers"), (RAMP.astype(np.float32), "fractions")]
)
def test_pixels_that_are_numbers_are_refused(tmp_path: Path, pixels, kind):
    file = stored(tmp_path / "photos", "a.tif", pixels)
    with pytest.raises(UsageError, match=rf"a\.tif \(its pixels are {kind}.*; save it with 8 or 16 bits\)"):
        decoded(tmp_path / "photos", [file], 4, tmp_path / "cache")


def test_a_second_load_decodes_nothing(photos: Path, tmp_path: Path, monkeypatch):
    first = decoded(photos, listing(photos), 16, tmp_path / "cache")
    monkeypatch.setattr(image_cache, "_build", lambda *arguments: pytest.fail("it decoded again"))
    assert decoded(photos, listing(photos), 16, tmp_path / "cache") == first


def test_a_changed_file_another_file_and_another_size_make_another_cache(photos: Path):
    keys = {cache_key(photos, listing(photos), size) for size in (16, 32)}
    changed = photos / "art" / "cat" / "00.png"
    os.utime(changed, ns=(1, 1))
    keys.add(cache_key(photos, listing(photos), 16))
    changed.rename(changed.with_name("renamed.png"))
    keys.add(cache_key(photos, listing(photos), 16))
    assert len(keys) == 4


def test_three_processes_at_once_build_it_once(photos: Path, tmp_path: Path):
    barrier = SPAWN.Barrier(3)
    arguments = (photos, tmp_path / "cache", tmp_path / "notes", barrier)
    processes = [SPAWN.Process(target=load_and_note_the_build, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "notes").read_text().splitlines()) == 1


def test_a_killed_builder_leaves_nothing_that_the_next_one_trusts(photos: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    process = SPAWN.Process(target=die_while_decoding, args=(photos, cache))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".partial"]
    pixels = np.load(decoded(photos, listing(photos), 16, cache).file)
    clean = np.load(decoded(photos, listing(photos), 16, tmp_path / "clean").file)
    assert np.array_equal(pixels, clean)
    assert not list(cache.glob("*.partial"))


def test_unreadable_images_are_named_and_counted_and_leave_no_cache(photos: Path, tmp_path: Path):
    for number in range(5):
        (photos / "art" / "cat" / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(UsageError) as caught:
        decoded(photos, listing(photos), 16, tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith(f"5 of 17 images in {photos} cannot be read: art/cat/bad0.png (Unidentified")
    assert "art/cat/bad2.png" in message and "bad3" not in message and "and 2 more" in message
    assert "data.skip_unreadable=true" in message
    assert not list((tmp_path / "cache").glob("*.npy")) + list((tmp_path / "cache").glob("*.partial"))


def test_a_truncated_image_is_unreadable(photos: Path, tmp_path: Path):
    path = photos / "art" / "cat" / "00.png"
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UsageError, match=r"1 of 12 images .* art/cat/00\.png \(OSError.*truncated"):
        decoded(photos, listing(photos), 16, tmp_path / "cache")


def test_skipped_images_are_remembered_but_not_trusted_by_who_does_not_skip(photos: Path, tmp_path: Path):
    (photos / "art" / "cat" / "05.png").write_bytes(b"no image")
    files = listing(photos)
    position = [file.path for file in files].index("art/cat/05.png")
    for _ in range(2):
        done = decoded(photos, files, 16, tmp_path / "cache", skip_unreadable=True)
        assert list(done.unreadable) == [position]
    with pytest.raises(UsageError, match="1 of 13 images"):
        decoded(photos, files, 16, tmp_path / "cache")


def test_a_place_that_cannot_be_written_is_named(photos: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"image cache cannot be written to .*file.*data\.cache_dir=DIR"):
        decoded(photos, listing(photos), 16, tmp_path / "file")


def test_a_full_disk_is_a_sentence_and_not_a_half_cache(photos: Path, tmp_path: Path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        decoded(photos, listing(photos), 16, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_the_default_place_follows_the_users_cache_directory(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".dgharness-cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / ".dgharness-cache"
