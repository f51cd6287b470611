"""Assignment of faces to cells, and the losses of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.preprocess.boxes import area, paired_iou
from facezoo.preprocess.detector import BASES, Candidates

# Side of a face, the root of its box's area, that a level detects, in units of its base. Levels
# are an octave apart and the ranges wider than that, so that a face between two levels is in both.
_SMALLEST, _LARGEST = 0.45, 1.6
# Share of a box, to either side of its center, whose cells are positive, and the least reach, in
# units of the level's base; strides are a fifth of that, so that some cell always is.
_REACH, _LEAST_REACH = 0.22, 0.13
# Cells that are nearly positive, by place or by size, are left out of the loss.
_MARGIN = 1.5
_BOX, _LANDMARK = 1.0, 12.0


@dataclass(frozen=True)
class Annotation:
    """The G faces of one image."""

    boxes: Tensor
    """x0, y0, x1, y1 in pixels, (G, 4)."""
    landmarks: Tensor
    """(G, 5, 2)."""
    weights: Tensor
    """Weight of each landmark in the loss, 0 where it is unknown, (G, 5)."""
    ignored: Tensor
    """Regions that are left out of the loss, (R, 4)."""


@dataclass(frozen=True)
class Targets:
    """The cells of a batch and the faces of its P positive cells."""

    positive: Tensor
    """Cells that detect a face, bool, (B, A)."""
    counts: Tensor
    """Cells that enter the loss of the score, bool, (B, A)."""
    boxes: Tensor
    """(P, 4)."""
    landmarks: Tensor
    """(P, 5, 2)."""
    weights: Tensor
    """(P, 5)."""

    def to(self, device: torch.device) -> Targets:
        """Return the targets on another device."""
        return Targets(*(value.to(device) for value in vars(self).values()))


def assign(image: Annotation, centers: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Assign the faces of one image to cells.

    A cell is positive if its level suits the size of the face and its center lies in the middle of
    the box, or is among the nearest where the box is smaller than the cells. Of two faces the
    smaller one wins. Cells a little outside of that are left out.

    Args:
        image: the faces.
        centers: cell centers, (A, 2).
        bases: cell units, (A, 1).

    Returns:
        Index of the face or -1, (A,), and True where the cell enters the loss, bool, (A,).
    """
    if not len(image.boxes):
        face = torch.full((len(centers),), -1)
        return face, ~_inside(centers, image.ignored)
    middle = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
    extent = image.boxes[:, 2:] - image.boxes[:, :2]
    size = area(image.boxes).sqrt()
    low = torch.where(bases == BASES[0], 0.0, _SMALLEST * bases)
    high = torch.where(bases == BASES[-1], float("inf"), _LARGEST * bases)
    reach = torch.maximum(extent * _REACH, bases[..., None] * _LEAST_REACH)  # (A, G, 2)
    distance = ((centers[:, None] - middle).abs() / reach).amax(-1)
    positive = (size >= low) & (size <= high) & (distance <= 1)
    nearly = (size >= low / _MARGIN) & (size <= high * _MARGIN) & (distance <= _MARGIN)
    smallest, face = torch.where(positive, size, float("inf")).min(1)
    face = torch.where(torch.isfinite(smallest), face, -1)
    return face, ~(nearly.any(1) | _inside(centers, image.ignored)) | (face >= 0)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Find the points (A, 2) inside of any of the boxes (R, 4), bool, (A,)."""
    inside = (points[:, None] >= boxes[:, :2]) & (points[:, None] <= boxes[:, 2:])
    return inside.all(-1).any(1)


def targets_of(images: Sequence[Annotation], centers: Tensor, bases: Tensor) -> Targets:
    """Assign the faces of a batch to cells."""
    assigned = [assign(image, centers, bases) for image in images]
    faces = [(image, face[face >= 0]) for image, (face, _) in zip(images, assigned, strict=True)]
    return Targets(
        torch.stack([face >= 0 for face, _ in assigned]),
        torch.stack([counts for _, counts in assigned]),
        torch.cat([image.boxes[index] for image, index in faces]),
        torch.cat([image.landmarks[index] for image, index in faces]),
        torch.cat([image.weights[index] for image, index in faces]),
    )


def detection_loss(
    candidates: Candidates, targets: Targets, full_iou: float = 1.0
) -> dict[str, Tensor]:
    """Compute quality focal loss, generalized IoU loss and landmark loss per positive cell.

    The score learns the overlap of the cell's own box with the face, so that it ranks boxes by how
    well they fit (Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. (5)). From ``full_iou`` on
    the target is 1.

    Returns:
        Weighted parts of the loss by name, scalars.
    """
    quality = torch.zeros_like(candidates.logits)
    boxes = candidates.boxes[targets.positive]
    overlap = paired_iou(boxes.detach(), targets.boxes)
    quality[targets.positive] = (overlap / full_iou).clamp(0.1, 1.0)
    difference = (candidates.logits.sigmoid() - quality).square()
    entropy = F.binary_cross_entropy_with_logits(candidates.logits, quality, reduction="none")
    unit = area(targets.boxes).sqrt().clamp(min=1)[:, None, None]
    distance = (candidates.landmarks[targets.positive] - targets.landmarks) / unit
    landmark = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=0.01, reduction="none")
    number = targets.positive.sum().clamp(min=1)
    return {
        "score": (difference * entropy * targets.counts).sum() / number,
        "box": _BOX * _generalized_iou_loss(boxes, targets.boxes) / number,
        "landmark": _LANDMARK * (landmark.mean(2) * targets.weights).mean(1).sum() / number,
    }


def _generalized_iou_loss(boxes: Tensor, truth: Tensor) -> Tensor:
    """Sum one minus generalized IoU (Rezatofighi et al., CVPR 2019) over boxes (P, 4)."""
    hull = area(
        torch.cat(
            [torch.minimum(boxes[:, :2], truth[:, :2]), torch.maximum(boxes[:, 2:], truth[:, 2:])],
            -1,
        )
    )
    overlap = paired_iou(boxes, truth)
    union = (area(boxes) + area(truth)) / (1 + overlap)  # from IoU = I / U and I + U = sum
    return (1 - overlap + (hull - union) / hull.clamp(min=1e-6)).sum()
