"""The ``wilds`` package as it was published, made to run on today's pandas, numpy and torch.

``wilds`` 2.0.0 is the last release. Nothing of it is changed on disk: its modules are imported through
``import_wilds``, and its datasets are built inside ``constructing``.

- importing ``wilds`` or ``ogb`` starts threads that ask the package index for news; they never start here;
- its group averages want the compiled package torch_scatter; ``group_means`` is the same sum;
- its constructors write to arrays that pandas 3 lends read-only, mix numbers into text columns, parse dates
  of two forms by one, and expect dummy variables to be integers; inside ``constructing`` pandas lets them.
  What they print goes to stderr, and Pillow keeps its limit on the size of an image.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from dgharness.errors import UsageError

# Where ``avg_over_groups`` was imported to by name.
AVERAGED_IN = ("common.utils", "common.metrics.metric", "common.metrics.loss", "common.metrics.all_metrics")


@cache
def import_wilds() -> ModuleType:
    """The package ``wilds``, without its threads and without torch_scatter."""
    with without_update_checks():
        try:
            wilds = importlib.import_module("wilds")
        except ModuleNotFoundError as error:
            raise UsageError(f"the package wilds cannot be imported ({error}); pip install wilds") from error
        for name in AVERAGED_IN:
            importlib.import_module(f"wilds.{name}").avg_over_groups = group_means  # type: ignore[attr-defined]
    return wilds


def group_means(value_N: Tensor, group_N: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and count of every group; 0 for a group without examples, as torch_scatter has it.

    >>> group_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2]), 3)
    (tensor([1., 0., 4.]), tensor([1., 0., 2.]))
    """
    count_G = torch.bincount(group_N, minlength=n_groups).to(value_N.dtype)
    sum_G = torch.zeros_like(count_G).index_add_(0, group_N, value_N)
    return sum_G / count_G.clamp(min=1), count_G


@contextlib.contextmanager
def without_update_checks() -> Iterator[None]:
    """The package ``outdated`` cannot be imported in here, and what is imported starts no thread with it."""
    before = sys.modules.get("outdated", _ABSENT)
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is _ABSENT:
            del sys.modules["outdated"]
        else:
            sys.modules["outdated"] = before


@contextlib.contextmanager
def constructing() -> Iterator[None]:
    """Pandas, numpy and torch as the constructors of ``wilds`` expect them."""
    to_datetime, get_dummies, load = pd.to_datetime, pd.get_dummies, torch.load

    def any_iso_date(*args: Any, **kwargs: Any) -> Any:
        # Told no format, pandas expects that of the first date of all the others.
        return to_datetime(*args, **{"format": "ISO8601", **kwargs})

    def integer_dummies(*args: Any, **kwargs: Any) -> Any:
        return get_dummies(*args, **{"dtype": "uint8", **kwargs})

    with contextlib.ExitStack() as stack:
        stack.enter_context(without_update_checks())
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        with contextlib.suppress(pd.errors.OptionError):  # text columns as objects: gone in pandas 4
            stack.enter_context(pd.option_context("future.infer_string", False))
        for owner, name, replacement in (
            (pd.Series, "values", _writable(pd.Series.values)),
            (pd.DataFrame, "values", _writable(pd.DataFrame.values)),
            (pd, "to_datetime", any_iso_date),
            (pd, "get_dummies", integer_dummies),
            (torch, "load", lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})),
            (Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS),
        ):
            stack.enter_context(_replaced(owner, name, replacement))
        yield


def _writable(values: Any) -> property:
    def copied_if_lent(owner: pd.Series | pd.DataFrame) -> Any:
        lent = values.fget(owner)
        return lent.copy() if isinstance(lent, np.ndarray) and not lent.flags.writeable else lent

    return property(copied_if_lent)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    before = getattr(owner, name) if not isinstance(owner, type) else owner.__dict__.get(name, _ABSENT)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


_ABSENT: Any = object()
