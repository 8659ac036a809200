"""What the processes of test_image_cache.py run. Light imports: each of them is a fresh interpreter."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgharness.data import image_cache


def listing(folder: Path) -> list[image_cache.ImageFile]:
    paths = sorted(path for path in folder.rglob("*.png"))
    return [
        image_cache.ImageFile(
            path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns
        )
        for path in paths
    ]


def load_and_note_the_build(folder: Path, cache: Path, notes: Path, barrier: Any) -> None:
    """Load once all processes are here; whoever builds writes a line."""

    def noted(*arguments: Any) -> None:
        with open(notes, "a") as out:
            out.write(f"{os.getpid()}\n")
        build(*arguments)

    build: Callable[..., None] = image_cache._build
    image_cache._build = noted  # type: ignore[assignment]
    barrier.wait()
    done = image_cache.decoded(folder, listing(folder), 16, cache)
    assert done.file.stat().st_size > 12 * 3 * 16 * 16


def die_while_decoding(folder: Path, cache: Path) -> None:
    """Be killed with a part of the images already written."""

    def two_and_then_death(*arguments: Any) -> Any:
        images = decode_all(*arguments)
        yield next(images)
        yield next(images)
        os.kill(os.getpid(), signal.SIGKILL)

    decode_all = image_cache._decode_all
    image_cache._decode_all = two_and_then_death  # type: ignore[assignment]
    image_cache.decoded(folder, listing(folder), 16, cache)
