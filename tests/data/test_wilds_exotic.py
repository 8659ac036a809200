"""OGB-MolPCBA, GlobalWheat, Py150 and ENCODE: what the classes of wilds say is what the harness says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torchvision.ops import box_iou

from dgharness.config import compose
from dgharness.data.dataset import Dataset
from dgharness.data.protocols import OFFICIAL
from dgharness.errors import UsageError
from dgharness.training.prepare import load_dataset, prepare
from dgharness.training.progress import Progress, header_lines, result_lines
from dgharness.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
from layouts.wilds_exotic import LAYOUTS, write_molpcba

MODULES = {
    "wilds:ogb-molpcba": "molpcba",
    "wilds:globalwheat": "globalwheat",
    "wilds:py150": "py150",
    "wilds:encode": "encode",
}
EXTRAS = {
    "wilds:ogb-molpcba": ("torch_geometric", "graph"),
    "wilds:py150": ("transformers", "text"),
    "wilds:encode": ("pyBigWig", "genomics"),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Dataset, Any]]:
    """The dataset as the harness has it, and the object of wilds behind it."""
    found: dict[str, tuple[Dataset, Any]] = {}

    def open_both(name: str) -> tuple[Dataset, Any]:
        for module in LAYOUTS[name].needs:
            pytest.importorskip(module)
        if name not in found:
            root = tmp_path_factory.mktemp("layout")
            LAYOUTS[name].write(root)
            module = importlib.import_module(f"dgharness.data.wilds.{MODULES[name]}")
            sources, open_wilds = [], module.open_wilds
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(root))
                patch.setattr(module, "open_wilds", lambda *a: sources.append(open_wilds(*a)) or sources[0])
                found[name] = load_dataset(config_of(name, root).data, str(root), 0), sources[0]
        return found[name]

    return open_both


def config_of(name: str, root: Path, *sets: str) -> Any:
    return compose(sets=[*LAYOUTS[name].sets, f"data.name={name}", f"execution.data_root={root}", *sets])


def outputs_for(dataset: Dataset, seed: int = 0) -> Tensor:
    """What a model might have put out for all rows, as evaluation keeps it: partly right."""
    generator = torch.Generator().manual_seed(seed)
    targets = dataset.targets_M
    if dataset.task.name == "tokens":
        right = torch.rand(targets.shape, generator=generator) < 0.5
        predicted = torch.where(right, targets.nan_to_num(), 7.0)
        return torch.stack([predicted, torch.where(targets.isnan(), torch.nan, 1.0)], dim=-1)
    if dataset.task.name == "detection":
        boxes = targets + torch.randint(-3, 4, targets.shape, generator=generator)
        score = torch.where(
            boxes.isnan().any(-1), torch.nan, torch.rand(boxes.shape[:2], generator=generator)
        )
        return torch.cat([boxes, score[..., None], torch.ones_like(score)[..., None]], dim=-1)
    return torch.randn(targets.shape, generator=generator) + targets.nan_to_num()


# --- splits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_official_split_has_the_rows_that_wilds_gives_it(name: str, opened: Any):
    dataset, source = opened(name)
    split_M = dataset.manifest["split"]
    assert {split for split in OFFICIAL if (split_M == split).any()} == set(source.split_dict)
    for split in source.split_dict:
        indices = source.get_subset(split).indices
        assert np.array_equal(np.flatnonzero(split_M == split), indices) and len(indices) > 0


@pytest.mark.parametrize(
    "name, field",
    [(name, f) for name, f in zip(LAYOUTS, ("scaffold", "session", "repo", "celltype"), strict=True)],
)
def test_domains_are_the_official_ones(name: str, field: str, opened: Any):
    dataset, source = opened(name)
    code_M = source.metadata_array[:, source.metadata_fields.index(field)]
    assert len(dataset.domains) == len(code_M.unique())
    of_domain = [code_M[dataset.rows_of(domain)].unique() for domain in dataset.domains]
    assert all(len(codes) == 1 for codes in of_domain) and len(torch.cat(of_domain).unique()) == len(
        of_domain
    )


# --- inputs and labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wilds:ogb-molpcba", "wilds:encode", "wilds:py150"])
def test_labels_are_those_of_wilds_with_nan_for_the_unknown_ones(name: str, opened: Any):
    dataset, source = opened(name)
    assert torch.equal(dataset.targets_M.isnan(), source.y_array.isnan())
    assert torch.equal(dataset.targets_M.nan_to_num(), source.y_array.float().nan_to_num())
    assert dataset.targets_M.isnan().any()


def test_a_batch_of_molecules_has_the_atoms_of_each_and_no_labels(opened: Any):
    dataset, source = opened("wilds:ogb-molpcba")
    graphs = dataset.reader(torch.tensor([5, 2, 9]))
    own = [source.get_input(row) for row in (5, 2, 9)]
    assert torch.equal(graphs.x, torch.cat([graph.x for graph in own]))
    assert graphs.num_graphs == 3 and graphs.batch.bincount().tolist() == [graph.num_nodes for graph in own]
    assert "y" not in graphs


def test_tokens_are_followed_by_their_targets(opened: Any):
    dataset, source = opened("wilds:py150")
    token_NL = dataset.reader(torch.arange(4))["input_ids"]
    known_NL = ~dataset.targets_M[:4, :-1].isnan()
    assert torch.equal(token_NL[:, 1:][known_NL].float(), dataset.targets_M[:4, :-1][known_NL])
    assert torch.equal(token_NL[2], source.get_input(2))


def test_windows_are_those_of_wilds(opened: Any):
    dataset, source = opened("wilds:encode")
    x_N5S = dataset.reader(torch.tensor([3, 40]))
    assert x_N5S.shape == (2, 5, 12_800) and x_N5S.dtype == torch.float32
    assert torch.equal(x_N5S[1], source.get_input(40).float())


def test_boxes_shrink_with_the_images(opened: Any):
    dataset, source = opened("wilds:globalwheat")
    for row in (0, 1, 5):
        boxes = source.y_array[row]["boxes"].float()
        own = dataset.targets_M[row][~dataset.targets_M[row].isnan().any(-1)]
        assert torch.allclose(own, boxes / 8)
        pixels = dataset.reader(torch.tensor([row]))[0]
        for left, top, right, bottom in own.round().int().tolist():
            assert pixels[0, (top + bottom) // 2, (left + right) // 2] > 200  # wheat is yellow, grass is not


# --- official evaluation ---------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_evaluation_is_that_of_wilds(name: str, split: str, opened: Any):
    dataset, source = opened(name)
    rows = np.flatnonzero(dataset.manifest["split"] == split)
    kept = outputs_for(dataset)[rows]
    if name == "wilds:globalwheat":
        real = [~image[:, 4].isnan() for image in kept]
        y_pred = [{"boxes": i[r, :4] * 8, "scores": i[r, 4]} for i, r in zip(kept, real, strict=True)]
        y_true: Any = [source.y_array[row] for row in rows]
    else:
        y_pred = kept[..., 0] if name == "wilds:py150" else kept
        y_true = source.y_array[rows]
    theirs, _ = source.eval(y_pred, y_true, source.metadata_array[rows])
    ours = dataset.official(kept, rows)
    assert dataset.official_metric in ours
    compared = [key for key in ours if not np.isnan(ours[key])]
    assert ours[dataset.official_metric] == pytest.approx(PLAIN[name](kept, dataset, source, rows), abs=1e-6)
    assert 0 < ours[dataset.official_metric] < 1
    for key in compared:
        assert ours[key] == pytest.approx(float(theirs[key]), abs=1e-6), key


def mean_precision(kept: Tensor, dataset: Dataset, source: Any, rows: np.ndarray) -> float:
    """Average precision of each assay that has both labels, and their mean."""
    y, score, found = dataset.targets_M[rows].double().numpy(), kept.double().numpy(), []
    for column in range(y.shape[1]):
        known = ~np.isnan(y[:, column])
        if {0.0, 1.0} <= set(y[known, column]):
            found.append(average_precision_score(y[known, column], score[known, column]))
    return float(np.mean(found))


def pooled_precision(kept: Tensor, dataset: Dataset, source: Any, rows: np.ndarray) -> float:
    """Average precision over all known bins, from the definition: precision at every positive, averaged."""
    y, score = dataset.targets_M[rows].double().numpy().ravel(), kept.double().numpy().ravel()
    known = ~np.isnan(y)
    positive = y[known][np.argsort(-score[known], kind="stable")]
    precision = positive.cumsum() / np.arange(1, len(positive) + 1)
    return float((precision * positive).sum() / positive.sum())


def names_accuracy(kept: Tensor, dataset: Dataset, source: Any, rows: np.ndarray) -> float:
    """Of the class and method names, the share that is predicted."""
    asked = np.isin(source.metadata_array[rows, 1:-1].numpy(), (0, 1))
    return float((kept[..., 0] == dataset.targets_M[rows]).numpy()[asked].mean())


def mean_over_sessions(kept: Tensor, dataset: Dataset, source: Any, rows: np.ndarray) -> float:
    accuracy = []
    for image, boxes in zip(kept, dataset.targets_M[rows], strict=True):
        said, real = image[image[:, 4] > 0.5, :4], boxes[~boxes.isnan().any(-1)]
        overlap = box_iou(said, real).numpy() if len(said) and len(real) else np.zeros((len(said), 0))
        taken = {int(row.argmax()) for row in overlap if row.size and row.max() >= 0.5}
        total = len(said) + len(real) - len(taken)
        accuracy.append(len(taken) / total if total else 1.0)
    session = dataset.manifest["domain"].iloc[rows].to_numpy()
    return float(np.mean([np.mean(np.array(accuracy)[session == name]) for name in set(session)]))


PLAIN: dict[str, Callable[[Tensor, Dataset, Any, np.ndarray], float]] = {
    "wilds:ogb-molpcba": mean_precision,
    "wilds:globalwheat": mean_over_sessions,
    "wilds:py150": names_accuracy,
    "wilds:encode": pooled_precision,
}


def test_the_judge_of_boxes_agrees_with_wilds_on_every_image(opened: Any):
    dataset, source = opened("wilds:globalwheat")
    kept, rows = outputs_for(dataset), np.arange(len(dataset.manifest))
    right_M, _ = dataset.task.judge(kept, dataset.targets_M)
    y_pred = [{"boxes": i[~i[:, 4].isnan(), :4] * 8, "scores": i[~i[:, 4].isnan(), 4]} for i in kept]
    theirs = source._metric._compute_element_wise(y_pred, [source.y_array[row] for row in rows])
    assert torch.allclose(right_M.float(), theirs) and len(right_M.unique()) > 3


def test_a_kind_of_token_that_does_not_occur_has_no_accuracy(opened: Any):
    dataset, _ = opened("wilds:py150")
    rows = np.flatnonzero(dataset.manifest["split"] == "test")
    found = dataset.official(outputs_for(dataset)[rows], rows)
    assert np.isnan(found["Acc (literal)"])  # the layout has none
    assert not np.isnan(found["Acc (keyword)"]) and not np.isnan(found["acc"])


# --- what is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, extra = EXTRAS[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'dgharness\[{extra}\]'"):
        load_dataset(config_of(name, tmp_path).data, str(tmp_path), 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_folder_is_a_sentence(name: str, tmp_path: Path):
    for module in LAYOUTS[name].needs:
        pytest.importorskip(module)
    with pytest.raises(UsageError, match="is not complete in"):
        load_dataset(config_of(name, tmp_path).data, str(tmp_path), 0)


def test_a_missing_release_file_asks_nothing_on_the_terminal(tmp_path: Path):
    pytest.importorskip("torch_geometric")
    LAYOUTS["wilds:ogb-molpcba"].write(tmp_path)
    (tmp_path / "ogbg_molpcba" / "RELEASE_v1.txt").unlink()
    with pytest.raises(UsageError, match=r"there is no .*RELEASE_v1\.txt"):
        load_dataset(config_of("wilds:ogb-molpcba", tmp_path).data, str(tmp_path), 0)


def test_labels_are_part_of_the_digest(opened: Any):
    dataset, _ = opened("wilds:encode")
    changed = dataset.targets_M.clone()
    changed[0, 0] = 1 - changed[0, 0].nan_to_num()
    assert Dataset(**{**vars_of(dataset), "targets": changed}).digest != dataset.digest


def vars_of(dataset: Dataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}


# --- what is said of them ---------------------------------------------------------------------------


def said_of_training(root: Path, tmp_path: Path) -> list[str]:
    """Every line that ``dgharness train`` shows."""
    output = (f"execution.output={tmp_path}/runs", f"execution.tracking_uri=sqlite:///{tmp_path}/mlflow.db")
    steps = ("execution.device=cpu", "train.steps=2", "train.eval_every=2")
    config, lines = config_of("wilds:ogb-molpcba", root, *output, *steps), []
    result = train(config, progress=Progress(say=lines.append))
    prepared = prepare(config)
    return [*header_lines(prepared, [], ""), *lines, *result_lines(result.run_id, result.chosen, prepared)]


def test_the_result_of_a_task_without_classes_is_its_official_metric(tmp_path: Path):
    pytest.importorskip("torch_geometric")
    LAYOUTS["wilds:ogb-molpcba"].write(tmp_path)
    assert "official ap 0." in said_of_training(tmp_path, tmp_path)[-1]


def test_of_many_domains_the_number_is_said_and_not_the_names(tmp_path: Path):
    pytest.importorskip("torch_geometric")
    write_molpcba(tmp_path, scaffolds=240)
    lines = said_of_training(tmp_path, tmp_path)
    assert "wilds:ogb-molpcba → 60 domains" in lines[0]
    assert "train 720 of 120 domains | val 360 of 60 domains | test 360 of 60 domains" in lines[1]
    assert "mean of 60 domains" in lines[-1] and "n=360" in lines[-1]
    assert max(map(len, lines)) < 200


# --- which methods they can be trained by ----------------------------------------------------------


@pytest.mark.parametrize(
    "name, refused",
    [
        ("wilds:ogb-molpcba", ()),
        ("wilds:encode", ()),
        ("wilds:py150", ("coral", "mmd", "fishr", "dann")),
        ("wilds:globalwheat", ("coral", "mmd", "fishr", "dann", "irmv1")),
    ],
)
def test_a_method_of_one_vector_per_example_is_refused_where_there_are_many(
    name: str, refused: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in LAYOUTS[name].needs:
        pytest.importorskip(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    LAYOUTS[name].write(tmp_path)
    for algorithm in ("erm", "group-dro", "irmv1", "coral", "mmd", "fishr", "dann"):
        config = config_of(name, tmp_path, f"algorithm={algorithm}", "train.sampler=by-domain")
        if algorithm in refused:
            with pytest.raises(UsageError, match="one vector of outputs and features for each example"):
                prepare(config)
        else:
            assert prepare(config).algorithm is not None
