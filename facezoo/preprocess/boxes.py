"""Boxes as x0, y0, x1, y1 in pixels: overlap and suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        first: (..., N, 4).
        second: (..., M, 4).

    Returns:
        In [0, 1], (..., N, M).
    """
    return paired_iou(first[..., :, None, :], second[..., None, :, :])


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes row by row, broadcasting, (...)."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = area(first) + area(second) - overlap
    return overlap / union.clamp(min=1e-6)


def area(boxes: Tensor) -> Tensor:
    """Square pixels, 0 for boxes turned inside out, (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def suppress(overlaps: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression without a loop over boxes.

    A box survives if no surviving box of higher score overlaps it by more than ``threshold``.
    Starting from all boxes and applying that rule to everything at once settles on the greedy
    answer after as many rounds as the longest chain of suppressions, which is a few.

    Args:
        overlaps: pairwise IoU, (N, N).
        scores: (N,).
        threshold: IoU above which the lower score goes.

    Returns:
        Whether each box survives, bool, (N,).
    """
    rank = scores.argsort(descending=True, stable=True).argsort()
    beaten_by = (overlaps > threshold) & (rank[:, None] > rank[None, :])
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    while True:
        settled = ~(beaten_by & keep).any(1)
        if torch.equal(settled, keep):
            return keep
        keep = settled
