"""What IPD-FER trains on, in memory, and the batches that are drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.data.augment import augment, centre_crop
from facezoo.data.packs import (
    aligned_crops,
    label_distributions,
    majority_labels,
    read_pack,
    teacher_embeddings,
    yaw_column,
)
from facezoo.data.yaw import pose_labels
from facezoo.models.ipd_fer.train.recipes import MARGIN, SIZE, TEMPLATE
from facezoo.results import EXPRESSIONS
from facezoo.training.optim import autocast
from facezoo.training.state import save_state


@dataclass(frozen=True)
class Rows:
    """Everything that a training step can need of one data set, in memory."""

    crops: Tensor
    """Crops with a margin, uint8, (N, 1 or 3, H, H)."""
    teacher: Tensor
    """Teacher embeddings, NaN where unknown, (N, 128)."""
    expression: Tensor
    """Label distributions, zero where unknown, (N, 8)."""
    labels: Tensor
    """Majority label or -1, (N,)."""
    poses: Tensor
    """Pose class of Table 1 or -1, (N,)."""
    persons: list[str]
    """Names, empty where unknown, N."""
    files: list[str]
    """File names, N."""


def read_rows(data: Path, pack: str, split: str, cache: Path | None = None) -> Rows:
    """Align and load one split of a pack of the folder ``data``.

    Args:
        data: folder with the packs.
        pack: file name without its ending.
        split: ``"train"`` or ``"val"``.
        cache: folder that keeps the aligned crops, which all processes and later runs map into
            memory; None aligns them again.
    """
    file = None if cache is None else cache / f"{pack}-{split}.pt"
    if file is not None and file.is_file():
        return Rows(**torch.load(file, weights_only=True, mmap=True))
    rows = _aligned_rows(data, pack, split)
    if file is not None:
        save_state(file, **vars(rows))
    return rows


def _aligned_rows(data: Path, pack: str, split: str) -> Rows:
    table = read_pack(data / f"{pack}.parquet", split)
    count, columns = len(table), table.column_names
    persons = table["identity"].to_pylist() if "identity" in columns else []
    labeled = "expression" in columns
    unknown = torch.full((count, 128), float("nan"))
    return Rows(
        crops=aligned_crops(table, TEMPLATE, SIZE, MARGIN, grey=pack == "ferplus"),
        teacher=teacher_embeddings(table) if "teacher_identity" in columns else unknown,
        expression=label_distributions(table) if labeled else torch.zeros(count, len(EXPRESSIONS)),
        labels=majority_labels(table) if labeled else torch.full((count,), -1),
        poses=pose_labels(yaw_column(table)),
        persons=persons or [""] * count,
        files=table["file"].to_pylist(),
    )


def targets(rows: Rows, *, soft: bool) -> Tensor:
    """What C_exp learns, (N, 8): the shares of the votes, or the majority's class; zero if none."""
    if soft:
        return rows.expression
    hot = F.one_hot(rows.labels.clamp(min=0), len(EXPRESSIONS)).float()
    return hot * (rows.labels >= 0)[:, None]


def gather(columns: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Entries of one column per data set at (data set, row), (2, B)."""
    return torch.stack([columns[p][r] for p, r in zip(*chosen.tolist(), strict=True)])


def numbered(rows: Sequence[Tensor]) -> Tensor:
    """Row numbers of each data set as (data set, row), (2, N)."""
    return torch.cat([torch.stack([torch.full_like(i, p), i]) for p, i in enumerate(rows)], 1)


def pick(
    rows: Sequence[Rows],
    chosen: Tensor,
    size: int,
    draw: torch.Generator,
    change: Callable[..., Tensor] = augment,
) -> Tensor:
    """Augmented images of a batch of (data set, row) (2, B), in its order, (B, 3, size, size)."""
    pack, row = chosen
    images = torch.empty(len(pack), 3, size, size)
    for number, source in enumerate(rows):
        members = (pack == number).nonzero()[:, 0]
        if len(members):
            zoom = SIZE / (SIZE + 2 * MARGIN)
            images[members] = change(source.crops[row[members]], size, draw, zoom=zoom)
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def embed(
    encoder: nn.Module, crops: Tensor, device: torch.device, size: int = SIZE, batch: int = 128
) -> Tensor:
    """Features of crops with a margin, nothing random, float32 on the CPU, (N, D)."""
    features = []
    for part in crops.split(batch):
        images = centre_crop(part, size, MARGIN).to(device)
        with autocast(device):
            features.append(encoder(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(features).float().cpu()
