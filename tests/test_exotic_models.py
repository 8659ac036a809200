"""Networks for molecules, boxes, code and genomes: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from dgharness.data.task_detection import assigned, detected, detection, locations
from dgharness.data.tasks import tokens
from dgharness.errors import UsageError
from dgharness.models.code_gpt import CodeGPTOptions, code_gpt
from dgharness.models.fcos import FCOSOptions, fcos_resnet50
from dgharness.models.gin import GINOptions, gin_virtual
from dgharness.models.model import Model, build_model
from dgharness.models.sequence_unet import SequenceUNetOptions, central, sequence_unet
from dgharness.step import Step, TokenShape

SMALL_FCOS = FCOSOptions(weights="scratch", blocks=(1, 1, 1, 1), bottleneck=8, width=32, tower=1)
SMALL_GPT = CodeGPTOptions(weights="scratch", width=8, layers=1, heads=2)
NAN = float("nan")


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- molecules -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Graphs:
    """What of a PyTorch Geometric batch the network reads."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    num_graphs: int


def chains(*sizes: int, seed: int = 0) -> list[Graphs]:
    """Molecules whose atoms stand in a row."""
    generator, found = torch.Generator().manual_seed(seed), []
    for size in sizes:
        one_way = torch.stack([torch.arange(size - 1), torch.arange(1, size)])
        bonds = torch.randint(2, (size - 1, 3), generator=generator)
        found.append(
            Graphs(
                torch.randint(2, (size, 9), generator=generator),
                torch.cat([one_way, one_way.flip(0)], dim=1),
                torch.cat([bonds, bonds]),
                torch.zeros(size, dtype=torch.long),
                1,
            )
        )
    return found


def together(graphs: list[Graphs]) -> Graphs:
    starts = torch.tensor([0, *(len(graph.x) for graph in graphs)]).cumsum(0)
    return Graphs(
        torch.cat([graph.x for graph in graphs]),
        torch.cat([graph.edge_index + start for graph, start in zip(graphs, starts, strict=False)], dim=1),
        torch.cat([graph.edge_attr for graph in graphs]),
        torch.cat([graph.batch + number for number, graph in enumerate(graphs)]),
        len(graphs),
    )


def test_the_graph_network_has_the_published_number_of_parameters():
    model, features = build_model(gin_virtual, (9,), 128, GINOptions(), 0)
    fifth_chirality = 300  # which ogb tells apart since its table for this network was made
    assert (features, parameters(model)) == (300, 3_374_533 + fifth_chirality)


def test_a_molecule_has_the_same_features_alone_and_in_a_batch():
    model, _ = build_model(gin_virtual, (9,), 4, GINOptions(width=8, depth=3), 0)
    graphs = chains(3, 5, 4)
    model.eval()
    apart = torch.cat([model.features(graph) for graph in graphs])
    assert torch.allclose(model.features(together(graphs)), apart, atol=1e-6)


def test_a_molecule_does_not_depend_on_the_order_of_its_atoms():
    model, _ = build_model(gin_virtual, (9,), 4, GINOptions(width=8, depth=3), 0)
    graph = chains(5)[0]
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = dataclasses.replace(graph, x=graph.x[order], edge_index=order.argsort()[graph.edge_index])
    model.eval()
    assert torch.allclose(model(turned), model(graph), atol=1e-6)
    broken = dataclasses.replace(graph, edge_index=graph.edge_index[:, :-1], edge_attr=graph.edge_attr[:-1])
    assert not torch.allclose(model(broken), model(graph), atol=1e-3)


def test_rows_of_a_batch_of_graphs_are_batches_of_graphs():
    data = pytest.importorskip("torch_geometric.data")
    fields = [f.name for f in dataclasses.fields(Graphs)][:3]
    graphs = [data.Data(**{name: getattr(graph, name) for name in fields}) for graph in chains(3, 5, 4, 6)]
    number_EB = torch.zeros(2, 2, dtype=torch.long)
    step = Step(
        x=data.Batch.from_data_list(graphs),
        targets_EB=number_EB,
        domain_EB=number_EB,
        group_EB=number_EB,
        index_EB=number_EB,
        model=None,
        loss=F.mse_loss,
    )
    first, second = (row.x for row in step.rows())
    assert [first.num_graphs, second.num_graphs] == [2, 2]
    assert torch.equal(second.x, torch.cat([graphs[2].x, graphs[3].x]))


# --- boxes -----------------------------------------------------------------------------------------


def perfect(boxes_NG4: Tensor, size: int) -> Tensor:
    """Outputs that say exactly what is there."""
    places = locations(size)
    box_NA4, positive_NA = assigned(boxes_NG4, places)
    reach = torch.cat([places.centre_A2 - box_NA4[..., :2], box_NA4[..., 2:] - places.centre_A2], dim=-1)
    sure = torch.where(positive_NA, 8.0, -8.0)[..., None]
    return torch.cat([sure, (reach / places.stride_A[:, None]).log(), sure], dim=-1)


BOXES = torch.tensor(
    [
        [[10.0, 12.0, 40.0, 50.0], [60.0, 60.0, 120.0, 100.0], [64.0, 70.0, 90.0, 90.0]],
        [[20.0, 20.0, 60.0, 50.0], [NAN] * 4, [NAN] * 4],
        [[NAN] * 4] * 3,
    ]
)


@pytest.mark.parametrize("size", [100, 128])
def test_the_detector_has_an_output_for_every_location(size: int):
    model, _ = build_model(fcos_resnet50, (3, size, size), 6, SMALL_FCOS, 0)
    assert model(torch.zeros(1, 3, size, size)).shape == (1, len(locations(size).stride_A), 6)


def test_the_detector_is_by_default_a_resnet50_with_a_pyramid():
    model, features = build_model(fcos_resnet50, (3, 64, 64), 6, FCOSOptions(weights="scratch"), 0)
    assert features == 512
    resnet50 = 23_508_032  # without its last layer
    lateral = sum(width * 256 + 256 for width in (512, 1024, 2048))
    three_by_three = 256 * 256 * 9 + 256
    assert parameters(model) == resnet50 + lateral + 5 * three_by_three + 8 * (three_by_three + 512) + 6 * 513


def test_of_two_boxes_around_a_location_the_smaller_has_it():
    places = locations(128)
    box_NA4, positive_NA = assigned(BOXES, places)
    place = int(
        ((places.centre_A2 == torch.tensor([76.0, 76.0])).all(1) & (places.stride_A == 8)).nonzero()[0]
    )
    assert positive_NA[0, place] and torch.equal(box_NA4[0, place], BOXES[0, 2])
    assert positive_NA.any(1).tolist() == [True, True, False]
    assert not positive_NA[:, places.stride_A > 8].any()  # no box reaches beyond 64 pixels


def test_the_loss_is_that_of_the_paper_location_by_location():
    task, places = detection(128), locations(128)
    outputs = torch.randn(3, len(places.stride_A), 6, generator=torch.Generator().manual_seed(0))
    found = task.loss(outputs, BOXES)
    box_NA4, positive_NA = assigned(BOXES, places)
    for image in range(3):
        total = 0.0
        for place, (x, y) in enumerate(places.centre_A2.tolist()):
            logit, centre = outputs[image, place, 0].double(), outputs[image, place, 5].double()
            positive = bool(positive_NA[image, place])
            p = logit.sigmoid() if positive else 1 - logit.sigmoid()
            total -= (0.25 if positive else 0.75) * (1 - p) ** 2 * p.log()
            if positive:
                left, top, right, bottom = box_NA4[image, place].tolist()
                reach = outputs[image, place, 1:5].exp() * places.stride_A[place]
                said = torch.tensor([x, y, x, y]) + reach * torch.tensor([-1, -1, 1, 1])
                total += generalized_box_iou_loss(said, box_NA4[image, place])
                sides = (x - left, right - x), (y - top, bottom - y)
                target = math.sqrt(math.prod(min(pair) / max(pair) for pair in sides))
                total -= target * centre.sigmoid().log() + (1 - target) * (1 - centre.sigmoid()).log()
        assert float(found[image]) == pytest.approx(
            float(total / max(int(positive_NA[image].sum()), 1)), rel=1e-4
        )


def test_perfect_outputs_are_decoded_to_the_boxes():
    task = detection(128)
    kept = task.keep(perfect(BOXES, 128), BOXES)
    assert task.judge is not None and task.judge(kept, BOXES)[0].tolist() == [1.0, 1.0, 1.0]
    real = kept[1][kept[1, :, 4] > 0.5]
    assert torch.allclose(real[:, :4], BOXES[1, :1], atol=1e-3)
    assert kept[2, :, 4].isnan().all()


def test_detections_come_best_first_and_overlaps_are_suppressed():
    places, boxes = locations(128), BOXES[:1, :1]
    found = detected(perfect(boxes, 128) + torch.tensor([1.0, 0, 0, 0, 0, 0]), places)[0]
    assert int((~found[:, 4].isnan()).sum()) == 1  # many locations said so, of one box


def test_an_image_without_boxes_has_finite_gradients():
    outputs = torch.zeros(1, len(locations(128).stride_A), 6, requires_grad=True)
    detection(128).loss(outputs, torch.full((1, 2, 4), NAN)).sum().backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad[..., 0].abs().sum() > 0


def test_the_loss_takes_rows_of_a_batch():
    task = detection(64)
    outputs = torch.randn(2, 3, len(locations(64).stride_A), 6)
    boxes_EB = torch.stack([BOXES, BOXES.flip(0)]) / 2
    loss_EB = task.loss(outputs, boxes_EB)
    assert loss_EB.shape == (2, 3)
    assert torch.allclose(loss_EB[1], task.loss(outputs[1], boxes_EB[1]))


def test_a_model_of_one_vector_per_image_is_no_detector():
    with pytest.raises(UsageError, match="choose the model fcos-resnet50"):
        detection(64).loss(torch.zeros(3, 6), BOXES)


def test_the_detector_learns_to_find_two_rectangles():
    x, boxes = torch.zeros(2, 3, 64, 64), torch.tensor([[[8.0, 8.0, 32.0, 36.0]], [[30.0, 20.0, 60.0, 44.0]]])
    for image, (left, top, right, bottom) in enumerate(boxes[:, 0].int().tolist()):
        x[image, :, top:bottom, left:right] = 1.0
    model, _ = build_model(fcos_resnet50, (3, 64, 64), 6, SMALL_FCOS, 0)
    task, optimizer = detection(64), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model(x), boxes).mean().backward()
        optimizer.step()
    with torch.no_grad():
        right_N, _ = task.judge(task.keep(model(x), boxes), boxes)
    assert right_N.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("smaller", [{"bottleneck": 8}, {"blocks": (1, 1, 1, 1)}])
def test_a_smaller_detector_has_no_weights(smaller: dict[str, Any]):
    with pytest.raises(UsageError, match=r"model\.weights=scratch"):
        FCOSOptions(**smaller)


# --- code ------------------------------------------------------------------------------------------


@pytest.fixture
def gpt() -> Model:
    pytest.importorskip("transformers")
    return build_model(code_gpt, TokenShape(6, 50), 50, SMALL_GPT, 0)[0].eval()


def test_every_token_has_features_and_outputs(gpt: Model):
    x = {"input_ids": torch.randint(50, (3, 6))}
    assert gpt.features(x).shape == (3, 6, 8) and gpt(x).shape == (3, 6, 50)


def test_a_token_knows_nothing_of_those_after_it(gpt: Model):
    token_NL = torch.arange(6)[None]
    changed_NL = token_NL.clone()
    changed_NL[0, 4] = 30
    before, after = gpt({"input_ids": token_NL}), gpt({"input_ids": changed_NL})
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_weights_of_a_folder_give_the_logits_of_the_language_model(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    language_model = transformers.GPT2LMHeadModel(config).eval()
    language_model.save_pretrained(tmp_path)
    options = CodeGPTOptions(weights_file=str(tmp_path))
    model, features = build_model(code_gpt, TokenShape(6, 50), 50, options, 0)
    token_NL = torch.randint(50, (2, 6))
    expected = language_model(input_ids=token_NL).logits
    assert features == 8
    assert torch.allclose(model.eval()({"input_ids": token_NL}), expected, atol=1e-5)
    name, sha = code_gpt.weights(options)
    assert name == f"file:{tmp_path.name}" and sha is not None and len(sha) == 64


def test_data_that_the_weights_do_not_know_are_refused(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    options = CodeGPTOptions(weights_file=str(tmp_path))
    for shape in (TokenShape(6, 51), TokenShape(17, 50)):
        with pytest.raises(UsageError, match="knows 50 tokens and 16 positions"):
            build_model(code_gpt, shape, 50, options, 0)


def test_weights_that_cannot_be_had_are_a_sentence_with_the_switch(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("transformers")

    def away(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", away)
    with pytest.raises(UsageError, match=r"CodeGPT-small-py.*model\.weights=scratch"):
        code_gpt.weights(CodeGPTOptions())


def test_sizes_belong_to_scratch_alone():
    with pytest.raises(UsageError, match=r"model\.width is fixed by the weights"):
        CodeGPTOptions(width=16)


def test_tokens_that_nobody_asks_for_cost_nothing():
    task = tokens(5)
    logits = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[[1.0, NAN, 4.0], [NAN, NAN, NAN]], [[0.0, 1.0, 2.0], [3.0, NAN, NAN]]])
    log_p = logits.log_softmax(-1)
    plain = [-(log_p[0, 0, 0, 1] + log_p[0, 0, 2, 4]) / 2, -log_p[1, 1, 0, 3]]
    loss_EB = task.loss(logits, targets)
    assert torch.allclose(torch.stack([loss_EB[0, 0], loss_EB[1, 1]]), torch.stack(plain))
    assert float(loss_EB[0, 1]) == 0
    kept = task.keep(logits[0], targets[0])
    assert torch.equal(kept[..., 0], logits[0].argmax(-1).float())
    right_N, cost_N = task.judge(kept, targets[0])
    assert right_N.isnan().tolist() == cost_N.isnan().tolist() == [False, True]
    assert float(cost_N[0]) == pytest.approx(float(loss_EB[0, 0]), rel=1e-6)


# --- genomes ---------------------------------------------------------------------------------------


def test_every_bin_has_an_output():
    model, features = build_model(sequence_unet, (5, 12_800), 128, SequenceUNetOptions(width=2, depth=2), 0)
    x = torch.zeros(1, 5, 12_800)
    assert model.features(x).shape == (1, features) == (1, 256) and model(x).shape == (1, 128)
    assert build_model(sequence_unet, (5, 12_800), 128, SequenceUNetOptions(), 0)[1] == 128 * 15


def test_a_bin_sees_its_own_places():
    model, _ = build_model(sequence_unet, (5, 3_200), 32, SequenceUNetOptions(width=2, depth=1), 0)
    model.eval()
    x = torch.randn(1, 5, 3_200, requires_grad=True)
    model(x)[0, 10].backward()
    touched = x.grad.abs().sum(1)[0].nonzero().flatten()
    first = central(3_200)[0] + 10 * 50  # its 200 places, and what convolutions and halving add on each side
    assert touched.min() <= first and touched.max() >= first + 199
    assert touched.min() > first - 40 and touched.max() < first + 240


def test_a_length_that_does_not_halve_evenly_is_no_hindrance():
    model, _ = build_model(sequence_unet, (5, 1_230), 12, SequenceUNetOptions(width=2, depth=3), 0)
    assert model(torch.zeros(2, 5, 1_230)).shape == (2, 12)


@pytest.mark.parametrize(
    "build",
    [
        partial(build_model, sequence_unet, (3, 32, 32), 128, SequenceUNetOptions()),
        partial(build_model, sequence_unet, (5, 12_800), 7, SequenceUNetOptions(width=2, depth=1)),
        partial(build_model, gin_virtual, (3, 32, 32), 128, GINOptions()),
        partial(build_model, code_gpt, (3, 32, 32), 128, SMALL_GPT),
        partial(build_model, fcos_resnet50, (9,), 6, SMALL_FCOS),
    ],
)
def test_data_of_another_kind_are_refused_in_a_sentence(build: Any):
    with pytest.raises(UsageError, match="choose"):
        build(0)
