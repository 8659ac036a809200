"""The task detection: boxes around things of one kind, found by a dense one-stage detector.

Outputs are those of FCOS, for every location of its five levels: a logit (is this within a thing?), four
distances to the sides of its box as logarithms in units of the level's stride, and a logit of its centerness.
Tian et al., *FCOS: Fully Convolutional One-Stage Object Detection* (2019): locations within a box are its
positives if the box's size belongs to their level, of several boxes the smallest has them; focal loss for
the logit, binary cross-entropy for the centerness, and, as in the authors' later version, generalised
intersection over union for the box, all per positive location. (Here per positive location of each image,
where the authors divide by those of the whole batch, because a loss belongs to an example.)

Shapes: N images, A locations, G boxes of an image at most (rows of NaN where it has fewer), K detections
kept of an image (rows of NaN where there are fewer), P candidates before the suppression of overlaps.
A box is (left, top, right, bottom) in pixels of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from dgharness.data.tasks import Task
from dgharness.errors import UsageError

STRIDES = (8, 16, 32, 64, 128)
REACH = (
    0.0,
    64.0,
    128.0,
    256.0,
    512.0,
    math.inf,
)  # a level's boxes reach between two of these from a location
CANDIDATES, LEAST_SCORE, OVERLAP = 1000, 0.05, 0.6  # of the paper's suppression of overlaps
DETECTIONS = 300
HALF = 0.5  # detections count above this score, and match above this intersection over union
IMAGES = 16  # whose detections are matched at once: N x K x G overlaps must fit the memory


def detection(size: int) -> Task:
    """Boxes in square images of that side: FCOS' loss; judged by the share that is found and right.

    What evaluation keeps is [N, K, 6]: box, score, and the image's loss in every row.
    """
    places = locations(size)
    return Task(
        "detection",
        6,
        partial(fcos_loss, places=places),
        partial(detected, places=places),
        judge=judge_boxes,
        keep=partial(keep_boxes, places=places),
        places=True,
    )


@dataclass(frozen=True)
class Locations:
    """Where the outputs are: level by level, row by row."""

    size: int
    centre_A2: Tensor
    stride_A: Tensor
    low_A: Tensor  # the range of the level's boxes, as REACH says
    high_A: Tensor

    def to(self, device: torch.device) -> Locations:
        tensors = (self.centre_A2, self.stride_A, self.low_A, self.high_A)
        return Locations(self.size, *(tensor.to(device) for tensor in tensors))


@cache
def locations(size: int) -> Locations:
    """The locations of a square image, at the middle of their cells.

    >>> [len(locations(size).stride_A) for size in (128, 1024)]
    [341, 21824]
    """
    centres, strides, lows, highs = [], [], [], []
    for stride, low, high in zip(STRIDES, REACH[:-1], REACH[1:], strict=True):
        middle = (torch.arange(math.ceil(size / stride)) + 0.5) * stride
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        strides.append(torch.full((len(middle) ** 2,), float(stride)))
        lows.append(torch.full_like(strides[-1], low))
        highs.append(torch.full_like(strides[-1], high))
    return Locations(size, torch.cat(centres), torch.cat(strides), torch.cat(lows), torch.cat(highs))


def fcos_loss(outputs: Tensor, boxes: Tensor, places: Locations) -> Tensor:
    """FCOS' loss per image, of [..., A, 6] and [..., G, 4]."""
    if outputs.shape[-2:] != (len(places.stride_A), 6) or outputs.dim() != boxes.dim():
        raise UsageError(
            f"the task detection needs outputs [{len(places.stride_A)}, 6] of an image of {places.size} "
            f"pixels, and this model gives {list(outputs.shape[boxes.dim() - 2 :])}; "
            "choose the model fcos-resnet50"
        )
    outputs_NA6, places = outputs.flatten(0, -3).float(), places.to(outputs.device)
    box_NA4, positive_NA = assigned(boxes.flatten(0, -3), places)
    found_NA4 = _boxes(outputs_NA6, places)
    shape_NA = sigmoid_focal_loss(outputs_NA6[..., 0], positive_NA.to(outputs_NA6.dtype))
    overlap_NA = generalized_box_iou_loss(found_NA4, box_NA4)
    centre_NA = F.binary_cross_entropy_with_logits(
        outputs_NA6[..., 5], _centerness(box_NA4, places), reduction="none"
    )
    of_positives_NA = torch.where(positive_NA, overlap_NA + centre_NA, 0.0)
    loss_N = (shape_NA + of_positives_NA).sum(1) / positive_NA.sum(1).clamp(min=1)
    return loss_N.unflatten(0, outputs.shape[:-2])


@torch.no_grad()
def assigned(boxes_NG4: Tensor, places: Locations) -> tuple[Tensor, Tensor]:
    """The box that each location answers for, and whether it has any; without one, a cell around it."""
    boxes_NG4 = boxes_NG4.float()
    reach_NAG4 = _reaches(boxes_NG4[:, None], places.centre_A2[:, None])
    furthest_NAG = reach_NAG4.amax(-1)  # NaN, which is in no range, for the rows of NaN
    fits_NAG = (reach_NAG4.amin(-1) > 0) & (furthest_NAG > places.low_A[:, None])
    fits_NAG &= furthest_NAG <= places.high_A[:, None]
    area_NG = (boxes_NG4[..., 2:] - boxes_NG4[..., :2]).prod(-1)
    smallest_NA, index_NA = torch.where(fits_NAG, area_NG[:, None], torch.inf).min(-1)
    positive_NA = smallest_NA.isfinite()
    box_NA4 = boxes_NG4.gather(1, index_NA[..., None].expand(-1, -1, 4))
    half_A1 = places.stride_A[:, None] / 2
    cell_A4 = torch.cat([places.centre_A2 - half_A1, places.centre_A2 + half_A1], dim=-1)
    return torch.where(positive_NA[..., None], box_NA4, cell_A4), positive_NA


def detected(outputs_NA6: Tensor, places: Locations) -> Tensor:
    """Detections [N, K, 5] (box, score), best first; the score is the root of class times centerness.

    The candidates of an image are its best locations; of two that overlap the better one stays.
    """
    outputs_NA6, places = outputs_NA6.detach().float(), places.to(outputs_NA6.device)
    score_NA = (outputs_NA6[..., 0].sigmoid() * outputs_NA6[..., 5].sigmoid()).sqrt()
    score_NP, place_NP = score_NA.topk(min(CANDIDATES, score_NA.shape[1]))
    box_NA4 = _boxes(outputs_NA6, places).clamp(0, places.size)
    box_NP4 = box_NA4.gather(1, place_NP[..., None].expand(-1, -1, 4))
    image_NP = torch.arange(len(score_NP), device=score_NP.device)[:, None].expand_as(score_NP)
    likely_NP = score_NP > LEAST_SCORE
    box, score, image = box_NP4[likely_NP], score_NP[likely_NP], image_NP[likely_NP]
    stays = batched_nms(box, score, image, OVERLAP)  # best first, over all images
    stays = stays[image[stays].argsort(stable=True)]
    count_N = torch.bincount(image[stays], minlength=len(score_NP))
    rank = torch.arange(len(stays), device=stays.device) - (count_N.cumsum(0) - count_N)[image[stays]]
    stays, rank = stays[rank < DETECTIONS], rank[rank < DETECTIONS]
    found_NK5 = score_NP.new_full((len(score_NP), DETECTIONS, 5), torch.nan)
    found_NK5[image[stays], rank] = torch.cat([box[stays], score[stays, None]], dim=-1)
    return found_NK5


def keep_boxes(outputs_NA6: Tensor, boxes_NG4: Tensor, places: Locations) -> Tensor:
    """Detections and the image's loss, [N, K, 6]."""
    found_NK5 = detected(outputs_NA6, places)
    loss_N = fcos_loss(outputs_NA6, boxes_NG4, places)
    return torch.cat([found_NK5, loss_N[:, None, None].expand(-1, DETECTIONS, 1)], dim=-1)


def judge_boxes(kept_NK6: Tensor, boxes_NG4: Tensor) -> tuple[Tensor, Tensor]:
    """Detection accuracy and loss of every image."""
    parts = zip(kept_NK6.split(IMAGES), boxes_NG4.split(IMAGES), strict=True)
    right_N = torch.cat([detection_accuracy(kept[..., :5], boxes) for kept, boxes in parts])
    return right_N, kept_NK6[:, 0, 5].double()


def detection_accuracy(found_NK5: Tensor, boxes_NG4: Tensor) -> Tensor:
    """Right detections over right ones, false ones and missed boxes, as WILDS has it (David et al., 2021).

    A detection goes to the box that it overlaps most; each box counts once. Nothing found where nothing is
    is right.

    >>> box = [0.0, 0.0, 10.0, 10.0]
    >>> found = torch.tensor([[[*box, 0.9], [*box, 0.8], [20.0, 20.0, 30.0, 30.0, 0.4]]])
    >>> detection_accuracy(found, torch.tensor([[box]]))  # one right, one a duplicate, one not sure enough
    tensor([0.5000], dtype=torch.float64)
    """
    said_NK, real_NG = found_NK5[..., 4] > HALF, ~boxes_NG4.isnan().any(-1)
    overlap_NKG = _overlaps(found_NK5[..., :4], boxes_NG4).nan_to_num(-1.0)
    best_NK, box_NK = overlap_NKG.max(-1)
    hit_NK = said_NK & (best_NK >= HALF)
    matched_NG = torch.zeros_like(real_NG, dtype=torch.long).scatter_add_(1, box_NK, hit_NK.long()) > 0
    true_N = matched_NG.sum(-1).double()
    all_N = said_NK.sum(-1) + real_NG.sum(-1) - true_N
    return torch.where(all_N > 0, true_N / all_N.clamp(min=1), 1.0)


def _boxes(outputs_NA6: Tensor, places: Locations) -> Tensor:
    widest = math.log(places.size)  # in strides: far beyond the image, and finite
    reach_NA4 = outputs_NA6[..., 1:5].clamp(max=widest).exp() * places.stride_A[:, None]
    return torch.cat([places.centre_A2 - reach_NA4[..., :2], places.centre_A2 + reach_NA4[..., 2:]], dim=-1)


def _reaches(boxes: Tensor, centre: Tensor) -> Tensor:
    """From a point to the four sides of a box; negative outside."""
    return torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], dim=-1)


def _centerness(box_NA4: Tensor, places: Locations) -> Tensor:
    """1 in the middle of the box, 0 at its border."""
    reach_NA4 = _reaches(box_NA4, places.centre_A2)
    across_NA2 = torch.stack([reach_NA4[..., 0::2], reach_NA4[..., 1::2]], dim=-2)  # left right, top bottom
    return (across_NA2.amin(-1) / across_NA2.amax(-1)).prod(-1).sqrt()


def _overlaps(a_NK4: Tensor, b_NG4: Tensor) -> Tensor:
    """Intersection over union of every pair."""
    low = torch.maximum(a_NK4[:, :, None, :2], b_NG4[:, None, :, :2])
    high = torch.minimum(a_NK4[:, :, None, 2:], b_NG4[:, None, :, 2:])
    both_NKG = (high - low).clamp(min=0).prod(-1)
    area_NK, area_NG = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a_NK4, b_NG4))
    return both_NKG / (area_NK[:, :, None] + area_NG[:, None] - both_NKG)
