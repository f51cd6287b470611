"""Training rows of IPD-FER in memory, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.data.augment import augment, center_crop, move_landmarks, random_similarity
from facezoo.data.packs import (
    aligned_crops,
    label_distributions,
    landmarks,
    majority_labels,
    read_pack,
    teacher_embeddings,
    yaw_column,
)
from facezoo.evaluate.verification import Pairs
from facezoo.landmarks import crop_pose, pose_labels, similarity_transform
from facezoo.models.ipd_fer.train.recipes import MARGIN, SIZE, TEMPLATE
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS
from facezoo.training.optim import autocast
from facezoo.training.state import save_state

CANVAS = SIZE + 2 * MARGIN
"""Side of a crop with its margin, pixels."""


@dataclass(frozen=True)
class Rows:
    """Images and labels of one split of a data set."""

    crops: Tensor
    """Crops with a margin, uint8, (N, 1 or 3, CANVAS, CANVAS)."""
    landmarks: Tensor
    """Five points in pixels of the crop with its margin, NaN where unknown, (N, 5, 2)."""
    teacher: Tensor
    """Teacher embeddings, NaN where unknown, (N, 128)."""
    expression: Tensor
    """Probabilities of the expressions, zero where unknown, (N, 8)."""
    labels: Tensor
    """Majority label or -1, (N,)."""
    poses: Tensor
    """Pose class of Table 1 or -1, (N,)."""
    identities: list[str]
    """Names, empty where unknown, N."""
    files: list[str]
    """File names, N."""

    def rows_where(self, mask: Tensor) -> Rows:
        """Return the rows where ``mask``, bool (N,), is true."""
        places = mask.nonzero()[:, 0].tolist()
        columns: dict[str, Any] = {
            name: column[mask] if isinstance(column, Tensor) else [column[i] for i in places]
            for name, column in vars(self).items()
        }
        return Rows(**columns)


@dataclass(frozen=True)
class Sources:
    """The data sets of a run by name; the validation split of the first one selects the epoch."""

    train: dict[str, Rows]
    """Training splits of the data sets with expression labels."""
    val: dict[str, Rows]
    """Validation splits of the same data sets."""
    descriptions: tuple[str, ...]
    """Descriptions of the data sets, for the card."""
    digest: dict[str, Any]
    """Fingerprint of the data, see ``facezoo.training.run.check_data``."""
    faces: dict[str, Rows] = field(default_factory=dict)
    """Training splits of the packs of ``sources.FACES``."""
    heads: dict[str, Rows] = field(default_factory=dict)
    """Training images in color that show the whole head, for the decoder."""
    pairs: Pairs | None = None
    """Pairs of LFW's validation split, which select the epoch of E_id."""


def read_rows(data: Path, pack: str, split: str, cache: Path | None = None) -> Rows:
    """Align and load one split of a pack.

    Args:
        pack: file name without its ending.
        split: ``"train"`` or ``"val"``.
        cache: folder for the aligned rows, which all processes and later runs map into memory;
            None aligns them at every call.
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
    taught, labeled = "teacher_identity" in columns, "expression" in columns
    return Rows(
        crops=aligned_crops(table, TEMPLATE, SIZE, MARGIN, gray=pack == "ferplus"),
        landmarks=aligned_landmarks(landmarks(table)),
        teacher=teacher_embeddings(table) if taught else torch.full((count, 128), float("nan")),
        expression=label_distributions(table) if labeled else torch.zeros(count, len(EXPRESSIONS)),
        labels=majority_labels(table) if labeled else torch.full((count,), -1),
        poses=pose_labels(yaw_column(table)),
        identities=table["identity"].to_pylist() if "identity" in columns else [""] * count,
        files=table["file"].to_pylist(),
    )


def rows_by_identity(rows: Rows) -> dict[str, list[int]]:
    """Return the rows of every named identity."""
    result: dict[str, list[int]] = {}
    for row, name in enumerate(rows.identities):
        if name:
            result.setdefault(name, []).append(row)
    return result


def aligned_landmarks(points: Tensor) -> Tensor:
    """Move landmarks of images to the aligned crops with a margin, (N, 5, 2)."""
    known = torch.isfinite(points).all(2).all(1)
    target = template_points(TEMPLATE, SIZE).float() + MARGIN
    matrices = similarity_transform(points[known], target)
    result = torch.full_like(points, float("nan"))
    turned = torch.einsum("nij,npj->npi", matrices[..., :2], points[known])
    result[known] = turned + matrices[:, None, :, 2]
    return result


def targets(rows: Rows, *, soft: bool) -> Tensor:
    """Return what C_exp learns, (N, 8): votes, or the majority's class; zero if unknown."""
    if soft:
        return rows.expression
    hot = F.one_hot(rows.labels.clamp(min=0), len(EXPRESSIONS)).float()
    return hot * (rows.labels >= 0)[:, None]


def gather(columns: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return the entries of one column per data set at (data set, row) (2, B)."""
    return torch.stack([columns[p][r] for p, r in zip(*index.tolist(), strict=True)])


def as_index(rows: Sequence[Tensor]) -> Tensor:
    """Return row numbers of each data set as (data set, row), (2, N)."""
    return torch.cat([torch.stack([torch.full_like(i, p), i]) for p, i in enumerate(rows)], 1)


def sample_images(
    rows: Sequence[Rows],
    index: Tensor,
    size: int,
    generator: torch.Generator,
    change: Callable[..., Tensor] = augment,
) -> Tensor:
    """Return augmented images of (data set, row) (2, B), (B, 3, size, size)."""
    return sample_images_and_poses(rows, index, size, generator, change, posed=False)[0]


def sample_images_and_poses(
    rows: Sequence[Rows],
    index: Tensor,
    size: int,
    generator: torch.Generator,
    change: Callable[..., Tensor] = augment,
    posed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return augmented images, and the poses of the heads in them.

    Args:
        index: (data set, row) of each image, (2, B).
        size: side of the images.
        change: ``augment`` or a stronger version of it.
        posed: compute the poses; False returns NaN.

    Returns:
        Images in [-1, 1], (B, 3, size, size), and poses as from ``crop_pose``, NaN where unknown,
        (B, 4).
    """
    pack, row = index
    images = torch.empty(len(pack), 3, size, size)
    points = torch.full((len(pack), 5, 2), float("nan"))
    for number, source in enumerate(rows):
        members = (pack == number).nonzero()[:, 0]
        if len(members):
            chosen = row[members]
            theta = random_similarity(len(members), generator, SIZE / CANVAS)
            images[members] = change(source.crops[chosen], size, generator, theta=theta)
            if posed:
                points[members] = move_landmarks(source.landmarks[chosen], theta, CANVAS, SIZE)
    poses = crop_pose(points) if posed else torch.full((len(pack), 4), float("nan"))
    return images.contiguous(memory_format=torch.channels_last), poses


@torch.no_grad()
def embed(
    encoder: Callable[[Tensor], Tensor] | nn.Module,
    crops: Tensor,
    device: torch.device,
    size: int = SIZE,
    batch: int = 128,
    mirrored: bool = False,
) -> Tensor:
    """Compute features of crops with a margin, without augmentation, float32 on the CPU, (N, D)."""
    features = []
    for part in crops.split(batch):
        images = center_crop(part, size, MARGIN).to(device)
        images = images.flip(-1) if mirrored else images
        with autocast(device):
            features.append(encoder(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(features).float().cpu()
