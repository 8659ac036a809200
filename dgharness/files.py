"""Files that are written whole or not at all, and what the file system refuses, in a sentence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dgharness.errors import UsageError

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOTDIR: "part of the path is a file",
    errno.EEXIST: "part of the path is a file",
    errno.ENOENT: "the directory is gone",
}


def write_atomic(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: bytes, or whatever the function writes into the open file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(temporary, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False).encode())


@contextmanager
def writing(path: Path, but: type[BaseException] | tuple[()] = ()) -> Iterator[None]:
    """Turn what the file system refuses into a sentence; ``but`` passes through."""
    try:
        yield
    except but:
        raise
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError that happened while handling the OSError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno not in _WHY:
            raise
        why = _WHY[cause.errno]
        remedy = "mend that or choose another directory (--set execution.output=DIR)"
        raise UsageError(f"cannot write {path}: {why}; {remedy}") from error
