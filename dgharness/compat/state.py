"""What a foreign module keeps outside its ``state_dict``: optimizers, schedulers, counters, histories.

Two kinds are found among the attributes of a module and of its submodules, also inside lists, dicts and
plain objects: things with a state of their own (``state_dict`` and ``load_state_dict``), and values (numbers,
strings, tensors, and lists, tuples, dicts and deques of them). NumPy arrays, sets, iterators, generators,
functions and open files are neither, and are not saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dgharness.errors import UsageError

Path = tuple[Any, ...]  # name of the submodule, its attribute, and from there keys and further attributes

OF_EVERY_MODULE = {*vars(nn.Module()), "hparams"}
LIBRARIES = ("torch", "torchvision", "timm")  # their layers' attributes are settings


def with_state(root: nn.Module) -> dict[Path, Any]:
    """Everything that has a state of its own, by path."""
    return {path: found for path, found in _parts(root) if _has_state(found)}


def states(root: nn.Module) -> dict[Path, Any]:
    """The states of what has one, as tensors and plain values."""
    return {path: _plain_entries(found.state_dict()) for path, found in with_state(root).items()}


def load_states(root: nn.Module, saved: Mapping[Path, Any]) -> None:
    """Give back what ``states`` took."""
    there = with_state(root)
    for path, state in saved.items():
        if path not in there:
            raise UsageError(
                f"{type(root).__name__} cannot be resumed: {'.'.join(map(str, filter(None, path)))} was made "
                "during training; make it in __init__"
            )
        there[path].load_state_dict(state)


def values(root: nn.Module) -> dict[Path, Any]:
    """Every plain value, by path; tensors are copied and leave their graph behind."""
    return {path: _copied(found) for path, found in _parts(root) if not _has_state(found)}


def load_values(root: nn.Module, saved: Mapping[Path, Any]) -> None:
    """Give back what ``values`` took; a tensor that is there already is filled and not replaced."""
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    for (module, *keys), value in saved.items():
        owner: Any = root.get_submodule(module)
        for key in keys[:-1]:
            owner = _get(owner, key)
        _set(owner, keys[-1], _merged(_get(owner, keys[-1]), value, device))


# --- finding ---------------------------------------------------------------------------------------


def _parts(root: nn.Module) -> Iterator[tuple[Path, Any]]:
    modules = dict(root.named_modules())
    registered: Iterable[Any] = (*modules.values(), *root.parameters(), *root.buffers())
    seen = {id(part) for part in registered}
    for name, module in modules.items():
        if type(module).__module__.partition(".")[0] in LIBRARIES:
            continue
        for key, value in vars(module).items():
            if key not in OF_EVERY_MODULE:
                yield from _within(value, (name, key), seen)


def _within(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    if _is_plain(value, seen):
        yield path, value
        return
    if id(value) in seen or isinstance(value, (type, ModuleType)):
        return
    seen.add(id(value))
    if _has_state(value):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, (str, int)):
                yield from _within(inner, (*path, key), seen)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _within(inner, (*path, number), seen)
    elif not callable(value) and hasattr(value, "__dict__"):
        for name, inner in vars(value).items():
            yield from _within(inner, (*path, name), seen)


def _has_state(value: Any) -> bool:
    return (
        not isinstance(value, type)
        and callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    )


def _is_plain(value: Any, registered: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
    if isinstance(value, Tensor):
        return id(value) not in registered
    if isinstance(value, (list, deque)) or type(value) is tuple:
        return all(_is_plain(inner, registered) for inner in value)
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(inner, registered) for key, inner in value.items())
    return value is None or isinstance(value, (bool, int, float, complex, str))


# --- copies that a checkpoint can hold -------------------------------------------------------------


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return (tuple if isinstance(value, tuple) else list)(_copied(inner) for inner in value)
    # A subclass, such as NumPy's float64, would need its library to be read again.
    kind = next((kind for kind in (bool, int, float, complex, str) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


def _plain_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without what a checkpoint cannot hold, such as the functions of a scheduler."""
    return {key: _copied(value) for key, value in state.items() if _is_plain(value)}


def _merged(there: Any, saved: Any, device: torch.device) -> Any:
    if isinstance(saved, Tensor):
        if isinstance(there, Tensor) and there.shape == saved.shape:
            with torch.no_grad():
                return there.copy_(saved)
        return saved.to(there.device if isinstance(there, Tensor) else device)
    if isinstance(saved, dict):
        known = there if isinstance(there, dict) else {}
        merged = {key: _merged(known.get(key), value, device) for key, value in saved.items()}
        if not isinstance(there, dict):
            return merged
        there.clear()
        there.update(merged)
        return there
    if isinstance(saved, (list, tuple)):
        alike = isinstance(there, (list, tuple, deque)) and len(there) == len(saved)
        known_items = there if alike else [None] * len(saved)
        items = [_merged(known, value, device) for known, value in zip(known_items, saved, strict=True)]
        if isinstance(there, (list, deque)):
            there.clear()
            there.extend(items)
            return there
        return type(saved)(items)
    return saved


def _get(owner: Any, key: Any) -> Any:
    if isinstance(owner, dict):
        return owner.get(key)
    return owner[key] if isinstance(owner, (list, tuple)) else getattr(owner, key, None)


def _set(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, (dict, list)):
        owner[key] = value
    elif not isinstance(owner, tuple):  # what a tuple holds was filled in its place
        setattr(owner, key, value)
