"""What LatentFace trains on, in memory, and the batches that are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.card import Preprocessing
from facezoo.data.images import aligned_crops, read_pack
from facezoo.models.latentface.train.recipes import MARGIN


@dataclass(frozen=True)
class Photographs:
    """Aligned crops with a margin, and who they show."""

    crops: Tensor
    """uint8, (N, 3, S + 2 MARGIN, S + 2 MARGIN)."""
    persons: list[str]
    """Names; empty where unknown, N."""


def read_photographs(data: Path, preprocessing: Preprocessing, split: str = "train") -> Photographs:
    """A split of ``lfw.parquet`` in ``data``, aligned by its landmarks to a model's template."""
    table = read_pack(data / "lfw.parquet", split)
    crops = aligned_crops(table, preprocessing.template, preprocessing.size, MARGIN)
    return Photographs(crops, table["identity"].to_pylist())


def centred(crops: Tensor) -> Tensor:
    """The middle of crops, nothing random, in [-1, 1], (B, 3, S, S)."""
    return _normalised(crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN])


def augmented(crops: Tensor, draw: torch.Generator, grey: float = 0.0) -> Tensor:
    """Crops at random: moved by up to ``MARGIN`` pixels, half of them mirrored, some made grey.

    Args:
        crops: uint8, (B, 3, S + 2 MARGIN, S + 2 MARGIN).
        draw: chance.
        grey: share of the crops without colour.

    Returns:
        In [-1, 1], (B, 3, S, S).
    """
    side = crops.shape[-1] - 2 * MARGIN
    corners = torch.randint(2 * MARGIN + 1, (len(crops), 2), generator=draw).tolist()
    moved = [c[:, y : y + side, x : x + side] for c, (y, x) in zip(crops, corners, strict=True)]
    images = _normalised(torch.stack(moved))
    mirrored = torch.rand(len(crops), generator=draw) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    pale = torch.rand(len(crops), generator=draw) < grey
    images = torch.where(pale[:, None, None, None], images.mean(1, keepdim=True), images)
    return images.contiguous(memory_format=torch.channels_last)


def _normalised(crops: Tensor) -> Tensor:
    return crops.float() / 127.5 - 1
