"""Images decoded once into a file on disk, which every later run maps into memory.

Without torch, so that a process that only builds the cache starts quickly.

Shapes: M images, H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE as BITS_PER_SAMPLE
from PIL.TiffImagePlugin import TiffImageFile

from dgharness.errors import UsageError

FORMAT = 2  # raise it when the same files would be decoded to other pixels
CHUNK = 256  # images decoded before they are written: bounds the memory when the disk is slow
Fit = Literal["squash", "crop", "squash-crop", "centre"]
THREADS = min(8, os.cpu_count() or 1)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """An image as the directory listing shows it; ``path`` is relative to the folder, with slashes."""

    path: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Decoded:
    """Where the pixels lie, as an .npy of [M, 3, size, size] uint8, and what could not be decoded."""

    file: Path
    unreadable: dict[int, str]  # position among the images -> reason; its pixels are zeros


def default_cache_dir() -> Path:
    """``.dgharness-cache`` under the user's cache directory, as XDG_CACHE_HOME says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / ".dgharness-cache"


def cache_key(folder: Path, images: Sequence[ImageFile], size: int, fit: Fit = "squash") -> str:
    """SHA-256 (16 digits) of the listing: place, relative paths, sizes and modification times.

    The listing and not the contents, because reading 600,000 images at every start would take longer than
    the cache saves; a copy with new times costs one more decoding and never a wrong pixel.
    """
    rows = [[image.path, image.bytes, image.mtime_ns] for image in images]
    how = [FORMAT, size, str(folder.resolve()), rows] + ([] if fit == "squash" else [fit])
    listing = json.dumps(how)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def decoded(
    folder: Path,
    images: Sequence[ImageFile],
    size: int,
    cache_dir: Path,
    skip_unreadable: bool = False,
    fit: Fit = "squash",
) -> Decoded:
    """The decoded images, built first if they are not there.

    Of several processes one builds and the rest wait; a dead builder leaves a lock that the system has
    released and a partial file that the next builder overwrites. Unreadable images and a cache directory
    that cannot be written are a UsageError.
    """
    file = cache_dir / f"{folder.resolve().name}-{cache_key(folder, images, size, fit)}-{size}.npy"
    with _told_as_usage(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        if not _usable(file, skip_unreadable):
            with FileLock(file.with_suffix(".lock")):
                if not _usable(file, skip_unreadable):
                    _build(file, folder, images, size, skip_unreadable, fit)
        return Decoded(file, _read_unreadable(file))


def _usable(file: Path, skip_unreadable: bool) -> bool:
    # What could not be read may have been mended, so only those who skip it trust such a cache.
    whole = file.is_file() and _list_of(file).is_file()
    return whole and (skip_unreadable or not _read_unreadable(file))


def _build(
    file: Path, folder: Path, images: Sequence[ImageFile], size: int, skip_unreadable: bool, fit: Fit
) -> None:
    log.info("decoding %d images of %s into %s, once", len(images), folder, file)
    partial = file.with_suffix(".partial")
    unreadable: dict[int, str] = {}
    with open(partial, "wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), 3, size, size)}
        np.lib.format.write_array_header_1_0(out, header)
        for position, pixels in enumerate(_decode_all(folder, images, size, fit)):
            if isinstance(pixels, str):
                unreadable[position] = pixels
                pixels = np.zeros((3, size, size), dtype=np.uint8)
            out.write(pixels.tobytes())
        out.flush()
        os.fsync(out.fileno())
    if unreadable and not skip_unreadable:
        partial.unlink()
        raise UsageError(_unreadable_sentence(folder, images, unreadable))
    # The list comes first: whoever sees the pixels must also see which of them are none.
    _list_of(file).write_text(json.dumps(unreadable))
    os.replace(partial, file)


def _decode_all(folder: Path, images: Sequence[ImageFile], size: int, fit: Fit) -> Iterator[np.ndarray | str]:
    Image.init()  # here and not in the threads, which would race
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(images), CHUNK):
            paths = [folder / image.path for image in images[start : start + CHUNK]]
            yield from pool.map(decode, paths, [size] * len(paths), [fit] * len(paths))


def decode(path: Path, size: int, fit: Fit) -> np.ndarray | str:
    """[3, size, size] uint8, squashed to a square as DomainBed does in evaluation, or cropped; or why not."""
    try:
        with Image.open(path) as image:
            pixels = _fitted(_eight_bits(image).convert("RGB"), size, fit)
        return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))
    except UsageError as error:
        return str(error)
    except Exception as error:  # damaged files raise almost anything; the reason is kept and shown
        return f"{type(error).__name__}: {error}"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits (or of 12, in TIFF) by its upper eight; Pillow would make white of nearly all of it.

    Pixels that are numbers have no white and no black that a file would tell of, so that they are refused.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "whole numbers of more than 16 bits or with a sign" if image.mode == "I" else "fractions"
        raise UsageError(f"its pixels are {kind}; save it with 8 or 16 bits")
    return image


def _fitted(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    if fit == "squash":
        return _resized(image, size, size)
    if fit == "centre":
        return _resized(_centre(image, min(image.size)), size, size)
    enlarged = size * 256 / 224
    if fit == "squash-crop":
        return _centre(_resized(image, int(enlarged), int(enlarged)), size)
    scale = enlarged / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return _centre(_resized(image, width, height), size)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _centre(image: Image.Image, side: int) -> Image.Image:
    # Half pixels are rounded as torchvision's CenterCrop rounds them.
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _unreadable_sentence(folder: Path, images: Sequence[ImageFile], unreadable: dict[int, str]) -> str:
    shown = [f"{images[position].path} ({reason})" for position, reason in list(unreadable.items())[:3]]
    more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    return (
        f"{len(unreadable)} of {len(images)} images in {folder} cannot be read: {', '.join(shown)}{more}; "
        "mend or remove them, or leave them out with --set data.skip_unreadable=true"
    )


def _list_of(file: Path) -> Path:
    return file.with_suffix(".unreadable.json")


def _read_unreadable(file: Path) -> dict[int, str]:
    return {int(position): reason for position, reason in json.loads(_list_of(file).read_text()).items()}


@contextlib.contextmanager
def _told_as_usage(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the image cache cannot be written to {cache_dir} ({error}); "
            "choose another place with --set data.cache_dir=DIR"
        ) from error
