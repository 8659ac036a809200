"""Weights that a network starts from: named, found, checked and hashed.

A weights file is looked for at ``weights_file``, else in torch's download folder (``TORCH_HOME``), else it
is downloaded, unless a plan alone is asked for (``without_fetching``). Its SHA-256 is its identity: a
checkpoint known by hash keeps its name wherever it lies, any other file is ``file:<name>``.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from dgharness.errors import UsageError
from dgharness.hparams import Annotated, Choice, Hparams, Structural
from dgharness.models.model import DropoutRate

DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte


class PretrainedOptions(Hparams):
    """Options of a convolutional network that may start from weights; which ones, its own class says."""

    weights_file: Annotated[str | None, Structural] = None
    """A state dict of this architecture to start from, in place of the named weights."""
    batchnorm: Annotated[Literal["frozen", "train"], Structural] = "frozen"
    """Frozen: BatchNorm keeps the statistics of the weights, while its scale and shift still train (as
    DomainBed's freeze_bn). From scratch there are none to keep, so the default there is train."""
    dropout: Annotated[DropoutRate, Structural, Choice((0.0, 0.1, 0.5))] = 0.0
    """Share of the features dropped."""

    @model_validator(mode="before")
    @classmethod
    def _trains_statistics_from_scratch(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("weights") == "scratch":
            return {"batchnorm": "train", **values}
        return values


def named_weights(architecture: str, options: Any, urls: Mapping[str, str]) -> tuple[str, str | None]:
    """The id of the weights that the options name and their SHA-256, or None for scratch."""
    url = urls.get(options.weights, "") if options.weights_file is None else ""
    if url and not _place(url).is_file() and planned(f"{architecture}/{options.weights}", url):
        return options.weights, None
    path = find_weights(architecture, options, urls)
    if path is None:
        return "scratch", None
    sha = sha256(path)
    known = [name for name, url in urls.items() if sha.startswith(_hash_prefix(url))]
    return (known[0] if known else f"file:{path.name}"), sha


@contextmanager
def without_fetching() -> Iterator[list[str]]:
    """Within it, weights that are named and not here are not fetched: it gives what would be, a line each."""
    found: list[str] = []
    before = _absent.set(found)
    try:
        yield found
    finally:
        _absent.reset(before)


def planned(name: str, where: str) -> bool:
    """Whether nothing is to be fetched; then it is noted that these weights would be, and from where."""
    if (absent := _absent.get()) is not None:
        absent.append(f"the weights {name} are not here and would be fetched from {where}")
    return absent is not None


_absent: ContextVar[list[str] | None] = ContextVar("absent", default=None)


def find_weights(architecture: str, options: Any, urls: Mapping[str, str]) -> Path | None:
    """The file of weights that the options name, downloaded if need be; None for scratch."""
    if options.weights_file is not None:
        path = Path(options.weights_file).expanduser()
        if options.weights == "scratch":
            raise UsageError(
                f"model.weights=scratch and model.weights_file={path} contradict each other; drop one of them"
            )
        if not path.is_file():
            raise UsageError(
                f"there is no weights file {path}; correct model.weights_file or --set model.weights=scratch"
            )
        return path
    if options.weights == "scratch":
        return None
    url = urls[options.weights]
    path = _place(url)
    if not path.is_file():
        _download(f"{architecture}/{options.weights}", url, path)
    if not sha256(path).startswith(_hash_prefix(url)):
        raise UsageError(
            f"{path} is damaged: its SHA-256 does not begin with {_hash_prefix(url)}; "
            "delete it, so that it is downloaded again"
        )
    return path


def load_weights(
    network: nn.Module,
    path: Path,
    *,
    architecture: str,
    whose: str,
    first: str,
    head: str,
    renamed: Callable[[str], str] = lambda name: name,
) -> None:
    """Copy a file's tensors into a network without its head, or a UsageError that says what does not fit.

    ``first`` names the filters that see the input, [filters, channels, height, width]: channel i starts from
    those of channel i modulo the file's. ``head`` is the prefix of what is left out, ``renamed`` what an
    older name is called now.
    """
    given = {renamed(name): value for name, value in _read(path).items() if not name.startswith(head)}
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    filters = given.get(first)
    if filters is not None and filters.ndim == 4:
        given[first] = filters[:, torch.arange(wanted[first].shape[1]) % filters.shape[1]]
    misfits = [f"it has no {name}" for name in wanted if name not in given]
    misfits += [
        f"{name} is {list(given[name].shape)} and not {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    known = network.state_dict().keys()
    misfits += [f"{name} is not part of that network" for name in given if name not in known]
    if misfits:
        raise UsageError(
            f"the weights in {path} do not fit {architecture}: {misfits[0]} ({len(misfits)} such entries); "
            f"give a state dict of {whose} or --set model.weights=scratch"
        )
    network.load_state_dict(given)


def _read(path: Path) -> dict[str, Tensor]:
    advice = "save it anew with torch.save(model.state_dict(), PATH)"
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        reason = type(error).__name__
        raise UsageError(f"{path} cannot be read as a file of tensors ({reason}); {advice}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UsageError(f"{path} is not a state dict (names and tensors, nothing else); {advice}")
    return stored


def sha256(path: Path) -> str:
    """The SHA-256 of a file, computed once for each state of it."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(url: str) -> Path:
    """Where torch keeps what it downloads from there."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _hash_prefix(url: str) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    assert match, f"{url} carries no hash"
    return match[1]


def _download(name: str, url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), _hash_prefix(url), progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UsageError(
            f"the weights {name} are not at {path} and could not be fetched from {url} ({error}); put the "
            "file there, name one with --set model.weights_file=PATH, or --set model.weights=scratch"
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
