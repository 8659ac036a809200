"""The digest of a manifest, whatever its columns hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest


@pytest.mark.parametrize("dtype", [object, "str"])
def test_the_digest_reads_text_and_not_its_addresses(table, dtype):
    dataset = table(a=3, b=3)
    names = [f"{'long' * 20}{row}" for row in range(6)]

    def with_paths(paths):
        manifest = dataset.manifest.assign(path=np.array(paths, dtype=object))
        return replace(dataset, manifest=manifest.astype({"path": dtype})).digest

    # Equal texts at other addresses, then another text.
    assert with_paths(names) == with_paths([f"{name}!"[:-1] for name in names])
    assert with_paths(names) != with_paths(["other", *names[1:]])


def test_the_digest_follows_every_column_and_category(table):
    dataset = table(a=3, b=3)
    manifest = dataset.manifest
    variants = [
        manifest,
        manifest.assign(time=manifest["time"] + 1),
        manifest.rename(columns={"time": "year"}),
        manifest.assign(colour=manifest["colour"].cat.rename_categories(["red", "blue"])),
        manifest.iloc[::-1],
    ]
    assert len({replace(dataset, manifest=variant).digest for variant in variants}) == len(variants)


def test_attributes_are_codes_of_categories_and_floats(table):
    manifest = table(a=3, b=3).manifest.assign(path="p", bytes=7)
    manifest.loc[0, "colour"] = None
    attributes = replace(table(a=3, b=3), manifest=manifest).attributes_M
    assert set(attributes) == {"time", "colour"}
    assert attributes["colour"].tolist() == [-1, 1, 0, 1, 0, 1]
    assert attributes["time"].dtype.is_floating_point
