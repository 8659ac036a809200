"""What is wrong with the files of a dataset of WILDS is said in a sentence, with the file or the row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import wilds_images
from layouts.wilds_images import SIDE
from wilds_twice import NAMES, cache_here, ours, root

from dgharness.data.wilds.load import SCHEMES
from dgharness.errors import UsageError

__all__ = ["cache_here", "root"]  # fixtures


@pytest.fixture
def camelyon(tmp_path: Path) -> Path:
    wilds_images.camelyon17(tmp_path)
    return tmp_path / "camelyon17_v1.0"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_data_root_that_does_not_exist_is_named_and_not_made(tmp_path: Path):
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere, where wilds:camelyon17 is expected"):
        ours("camelyon17", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"there is no folder camelyon17_v1.0; dgharness datasets check"):
        ours("camelyon17", tmp_path)


def test_a_missing_release_file_is_named(camelyon: Path):
    (camelyon / "RELEASE_v1.0.txt").unlink()
    with pytest.raises(UsageError, match=r"camelyon17_v1.0 has no file RELEASE_v1.0.txt"):
        ours("camelyon17", camelyon.parent)


def test_a_missing_table_is_named(camelyon: Path):
    (camelyon / "metadata.csv").unlink()
    with pytest.raises(UsageError, match=r"there is no .*metadata.csv"):
        ours("camelyon17", camelyon.parent)


def test_a_missing_column_is_named(camelyon: Path):
    edit(camelyon / "metadata.csv", "tumor", "tumour")
    with pytest.raises(UsageError, match="it has no column or value 'tumor'"):
        ours("camelyon17", camelyon.parent)


def test_an_unknown_split_scheme_is_named(camelyon: Path):
    with pytest.raises(
        UsageError,
        match=r"camelyon17 has no split scheme 'half-and-half'; correct data.split_scheme, which may be "
        "official, mixed-to-test$",
    ):
        ours("camelyon17", camelyon.parent, "split_scheme=half-and-half")


def test_the_split_schemes_that_are_named_are_those_of_the_package(root: Path):
    for name in set(NAMES) & set(SCHEMES):
        for scheme in SCHEMES[name]:
            assert ours(name, root, f"split_scheme={scheme.replace('YEAR', '2016')}").name == f"wilds:{name}"


def test_a_split_that_is_none_is_named_with_its_row(camelyon: Path):
    edit(camelyon / "metadata.csv", "3,000,0,96,64,1,0,0,0", "3,000,0,96,64,1,0,0,5")
    with pytest.raises(
        UsageError,
        match=r"row 3 of wilds:camelyon17 has the split 5, which is none of 0, 1, 2, 3 \(1 such",
    ):
        ours("camelyon17", camelyon.parent)


@pytest.mark.parametrize("label", ["7", "-1"])
def test_a_label_that_is_no_class_is_named_with_its_row(camelyon: Path, label: str):
    edit(camelyon / "metadata.csv", "3,000,0,96,64,1,", f"3,000,0,96,64,{label},")
    with pytest.raises(
        UsageError, match=rf"row 3 of wilds:camelyon17 has the label {label}, and its classes are 0 to 1"
    ):
        ours("camelyon17", camelyon.parent)


def test_a_label_that_is_missing_is_refused(camelyon: Path):
    edit(camelyon / "metadata.csv", "3,000,0,96,64,1,", "3,000,0,96,64,,")
    with pytest.raises(UsageError, match="row 3 of wilds:camelyon17 has no label, and its classes are"):
        ours("camelyon17", camelyon.parent)


def test_a_missing_number_is_named_with_its_row(tmp_path: Path):
    wilds_images.poverty(tmp_path)
    file = tmp_path / "poverty_v1.1" / "dhs_metadata.csv"
    lines = file.read_text().splitlines()
    lines[3] = lines[3].rpartition(",")[0] + ","
    file.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="row 2 of wilds:poverty has no wealthpooled"):
        ours("poverty", tmp_path)


def test_a_missing_image_is_named(camelyon: Path):
    patch = next(camelyon.rglob("*.png"))
    patch.unlink()
    with pytest.raises(UsageError, match=rf"{patch.name}.* which is not in"):
        ours("camelyon17", camelyon.parent)


def test_a_truncated_image_is_named(camelyon: Path):
    patch = next(camelyon.rglob("*.png"))
    patch.write_bytes(patch.read_bytes()[:60])
    with pytest.raises(UsageError, match=rf"1 of 60 images in .* cannot be read: .*{patch.name}"):
        ours("camelyon17", camelyon.parent)


def test_a_truncated_array_is_named(tmp_path: Path):
    wilds_images.poverty(tmp_path)
    file = tmp_path / "poverty_v1.1" / "images" / "landsat_poverty_img_3.npz"
    whole = file.read_bytes()
    file.unlink()  # the other links to it stay whole
    file.write_bytes(whole[:200])
    dataset = ours("poverty", tmp_path)
    row = int(np.flatnonzero(dataset.manifest["row"] == 3)[0])
    with pytest.raises(UsageError, match=r"landsat_poverty_img_3.npz cannot be read"):
        dataset.reader(torch.tensor([row]))


def test_an_array_of_another_shape_is_named(tmp_path: Path):
    wilds_images.poverty(tmp_path)
    file = tmp_path / "poverty_v1.1" / "images" / "landsat_poverty_img_3.npz"
    file.unlink()
    np.savez(file, x=np.zeros((7, SIDE, SIDE), dtype=np.float32))
    dataset = ours("poverty", tmp_path)
    row = int(np.flatnonzero(dataset.manifest["row"] == 3)[0])
    with pytest.raises(UsageError, match=r"img_3.npz holds numbers of shape \[7, 12, 12\]"):
        dataset.reader(torch.tensor([row]))
