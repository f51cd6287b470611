"""Assignment of faces to cells, and the losses of the detector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.preprocess.boxes import area, paired_iou
from facezoo.preprocess.detector import BASES, Candidates

# Side of a face, the root of its box's area, that a level answers for, in units of its base. Levels
# are an octave apart and the ranges wider than that, so that no size falls on an edge.
_SMALLEST, _LARGEST = 0.45, 1.6
# Share of a box, to either side of its middle, whose cells answer, and how far at least, in units
# of the level's base; strides are a fifth of that, so that some cell always does.
_REACH, _LEAST_REACH = 0.22, 0.13
# Cells that nearly answer, by place or by size, are neither asked nor blamed.
_MARGIN = 1.5


@dataclass(frozen=True)
class Targets:
    """The faces of a batch, padded to the same number G per image."""

    boxes: Tensor
    """x0, y0, x1, y1 in pixels, (B, G, 4)."""
    landmarks: Tensor
    """(B, G, 5, 2)."""
    is_face: Tensor
    """False for padding, bool, (B, G)."""
    ignored: Tensor
    """Regions where nothing counts, all zero for padding, (B, R, 4)."""


def assign(targets: Targets, centres: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """The face that each cell answers for.

    A cell answers if its level suits the face's size and its centre lies in the middle of the box,
    or is among the nearest where the box is smaller than the cells. Of two faces the smaller one
    wins. Cells a little outside of that do not count.

    Args:
        targets: the faces.
        centres: cell centres, (A, 2).
        bases: cell units, (A, 1).

    Returns:
        Index of the face or -1, (B, A); whether a cell without a face counts, bool, (B, A).
    """
    boxes = targets.boxes
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    extent = boxes[..., 2:] - boxes[..., :2]
    size = area(boxes).sqrt()
    unit = bases[:, 0][None, :, None]
    low = torch.where(unit == BASES[0], 0.0, _SMALLEST * unit)
    high = torch.where(unit == BASES[-1], float("inf"), _LARGEST * unit)
    reach = torch.maximum(extent[:, None] * _REACH, unit[..., None] * _LEAST_REACH)
    distance = (centres[None, :, None] - middle[:, None]).abs()

    def answering(margin: float) -> Tensor:
        suits = (size[:, None] >= low / margin) & (size[:, None] <= high * margin)
        return suits & (distance <= reach * margin).all(-1) & targets.is_face[:, None]

    best, face = torch.where(answering(1.0), size[:, None], float("inf")).min(-1)
    face = torch.where(torch.isfinite(best), face, -1)
    nearly = answering(_MARGIN).any(-1)
    point = centres[None, :, None]
    hidden = (point >= targets.ignored[:, None, :, :2]) & (point <= targets.ignored[:, None, :, 2:])
    counts = ~(hidden.all(-1) & (area(targets.ignored) > 0)[:, None]).any(-1)
    return face, (counts & ~nearly) | (face >= 0)


def detection_loss(
    candidates: Candidates, targets: Targets, centres: Tensor, bases: Tensor
) -> Tensor:
    """Quality focal loss, generalised IoU and landmark distance, each per answering cell.

    The score learns the overlap of the cell's own box with the face, so that it ranks boxes by how
    well they fit (Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. (5)).

    Args:
        candidates: what the cells say.
        targets: the faces.
        centres: cell centres, (A, 2).
        bases: cell units, (A, 1).

    Returns:
        Scalar.
    """
    face, counts = assign(targets, centres, bases)
    positive = face >= 0
    quality = torch.zeros_like(candidates.logits)
    batch = positive.nonzero()[:, 0]
    truth = targets.boxes[batch, face[positive]]
    boxes = candidates.boxes[positive]
    overlap = paired_iou(boxes, truth)
    quality[positive] = overlap.detach().clamp(min=0.1)
    probability = candidates.logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(candidates.logits, quality, reduction="none")
    score = ((probability - quality).square() * entropy * counts).sum()
    unit = area(truth).sqrt().clamp(min=1)[:, None, None]
    points = targets.landmarks[batch, face[positive]]
    distance = (candidates.landmarks[positive] - points) / unit
    landmark = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=0.02, reduction="none")
    number = positive.sum().clamp(min=1)
    box = _generalised_iou_loss(boxes, truth, overlap).sum()
    return (2 * score + 2 * box + 12 * landmark.mean((1, 2)).sum()) / number


def _generalised_iou_loss(boxes: Tensor, truth: Tensor, overlap: Tensor) -> Tensor:
    """One minus generalised IoU (Rezatofighi et al., CVPR 2019), (P,)."""
    hull = torch.cat(
        [torch.minimum(boxes[:, :2], truth[:, :2]), torch.maximum(boxes[:, 2:], truth[:, 2:])], -1
    )
    union = (area(boxes) + area(truth)) / (1 + overlap)  # from IoU = I / U and I + U = sum
    return 1 - overlap + (area(hull) - union) / area(hull).clamp(min=1e-6)
