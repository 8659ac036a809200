"""``folder:PATH``: photographs as PATH/<domain>/<class>/<image>, the way PACS and its kin are unpacked.

Every image is decoded once into a cache on disk and then fetched by index; augmentation runs on batches.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.image_cache import ImageFile
from dgharness.data.images import SUFFIXES, ImageOptions, image_dataset
from dgharness.errors import UsageError

LAYOUT = "<domain>/<class>/<image>"
log = logging.getLogger(__name__)
HALF = re.compile("[\ud800-\udfff]")  # what Python makes of bytes of a file name that are not UTF-8


def load(argument: str | None, root: Path | None, trial_seed: int, options: ImageOptions) -> Dataset:
    """List the images, decode those that are not in the cache; nothing depends on the trial seed.

    Rows are sorted by domain, class and file name. The column ``bytes`` lets the digest notice a file that
    was replaced under its old name by one of another size.
    """
    if not argument:
        raise UsageError(f"folder needs a path, as in folder:PATH with images in PATH/{LAYOUT}")
    folder = Path(argument).expanduser()
    listing = list_images(folder)
    dataset = image_dataset(
        folder.resolve().name,
        folder,
        manifest_of_listing(listing),
        options,
        files=[file for _, _, file in listing],
    )
    _refuse_empty(folder, dataset.manifest)
    return dataset


folder = DatasetSpec(load, ImageOptions, argument="PATH", layout=f"PATH/{LAYOUT}", doc=__doc__)


# --- listing ---------------------------------------------------------------------------------------

Listing = list[tuple[str, str, ImageFile]]  # domain, class, file


def list_images(folder: Path) -> Listing:
    """Every image with its domain and class, sorted; a UsageError names what is missing or differs."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; folder:PATH expects images in PATH/{LAYOUT}")
    classes_of = {domain: _folders(folder / domain) for domain in _folders(folder)}
    if not classes_of:
        raise UsageError(f"{folder} holds no domain folders; images belong in {folder}/{LAYOUT}")
    for domain, classes in classes_of.items():
        if not classes:
            raise UsageError(
                f"domain {domain!r} of {folder} is empty: it holds no class folders; "
                f"images belong in {folder}/{LAYOUT}"
            )
    _refuse_differing(folder, classes_of)
    left_out = Counter[str]()
    listing = [
        (domain, name, file)
        for domain, classes in classes_of.items()
        for name in classes
        for file in _images(folder, domain, name, left_out)
    ]
    if left_out:
        log.warning(
            "left out of the class folders of %s, which should hold images (%s): %s",
            folder,
            " ".join(sorted(SUFFIXES)),
            _counted(left_out),
        )
    if not_utf8 := [file.path for _, _, file in listing if HALF.search(file.path)]:
        raise UsageError(f"the name {not_utf8[0]!a} in {folder} is not UTF-8; rename the file or folder")
    return listing


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, domain: str, name: str, left_out: Counter[str]) -> list[ImageFile]:
    """The images of a class, sorted by name; what else lies there is counted in ``left_out``."""
    files, others = [], Counter[str]()
    with os.scandir(folder / domain / name) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                others["folders"] += 1
            elif suffix not in SUFFIXES:
                others[f"{suffix} files" if suffix else "files without a suffix"] += 1
            else:
                files.append(_listed(entry, f"{domain}/{name}/{entry.name}"))
    if not files:
        raise UsageError(
            f"{folder / domain / name} holds no images{f' but {_counted(others)}' if others else ''}; "
            "add some or remove the class everywhere"
        )
    left_out.update(others)
    return sorted(files, key=lambda file: file.path)


def _counted(files: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in files.most_common())


def _listed(entry: os.DirEntry[str], path: str) -> ImageFile:
    try:
        state = entry.stat()
    except OSError as error:
        raise UsageError(
            f"the image {entry.path!r} is not there ({error.strerror}); mend the link or remove it"
        ) from None
    return ImageFile(path, state.st_size, state.st_mtime_ns)


def _refuse_differing(folder: Path, classes_of: dict[str, list[str]]) -> None:
    domains_with = Counter(name for classes in classes_of.values() for name in classes)
    partial = {name for name, count in domains_with.items() if count < len(classes_of)}
    if not partial:
        return
    lacking = [
        f"{domain!r} has no {_few(sorted(partial - set(classes)))}"
        for domain, classes in classes_of.items()
        if partial - set(classes)
    ]
    raise UsageError(
        f"the domains of {folder} have different classes: {'; '.join(lacking)}; "
        "every domain needs the same class folders"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def manifest_of_listing(listing: Listing) -> pd.DataFrame:
    """``y``, ``domain`` and ``path`` of every image, categories sorted."""
    domains, classes = sorted({row[0] for row in listing}), sorted({row[1] for row in listing})
    return pd.DataFrame(
        {
            "y": pd.Categorical([name for _, name, _ in listing], classes),
            "domain": pd.Categorical([domain for domain, _, _ in listing], domains),
            "path": [file.path for _, _, file in listing],
        }
    )


def _refuse_empty(folder: Path, manifest: pd.DataFrame) -> None:
    counts = manifest.groupby(["domain", "y"], observed=False).size()
    if len(empty := counts[counts == 0]):
        domain, name = empty.index[0]
        raise UsageError(
            f"{folder / domain / name} holds no readable image; add some or remove the class everywhere"
        )
