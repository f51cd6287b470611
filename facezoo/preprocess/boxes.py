"""Boxes as x0, y0, x1, y1 in pixels: overlap and suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair of (..., N, 4) and (..., M, 4), (..., N, M)."""
    return paired_iou(first[..., :, None, :], second[..., None, :, :])


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes row by row, broadcasting, (...)."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = (first[..., 2:] - first[..., :2]).clamp(min=0).prod(-1)
    areas = areas + (second[..., 2:] - second[..., :2]).clamp(min=0).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-6)


def area(boxes: Tensor) -> Tensor:
    """Square pixels, 0 for boxes turned inside out, (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppress each box that overlaps a surviving box of higher score.

    Args:
        boxes: (N, 4).
        scores: (N,).
        threshold: IoU above which the lower score goes.

    Returns:
        Indices of the boxes that survive, in falling order of their scores, (K,).
    """
    rest = scores.argsort(descending=True, stable=True)
    best = []
    while len(rest):
        best.append(rest[:1])
        rest = rest[1:]
        rest = rest[paired_iou(boxes[best[-1]], boxes[rest]) <= threshold]
    return torch.cat(best) if best else rest
