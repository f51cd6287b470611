"""Packs: Parquet files of face images with labels.

A pack has a row per image and some of the columns ``image`` (encoded bytes), ``split``,
``landmarks`` (five points x, y in pixels), ``expression`` (a word), ``votes`` (ten FER+ votes),
``identity`` (a name) and ``teacher_identity`` (the embedding of a face recognizer).
Needs the extra ``[parquet]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from facezoo.data.crops import align_images, read_named
from facezoo.landmarks import similarity_transform
from facezoo.preprocess.images import read_image
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    import pyarrow as pa


def read_pack(
    path: str | Path, split: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the rows of a pack.

    Args:
        path: a ``.parquet`` file.
        split: ``"train"``, ``"val"``, ``"test"``, or None for all rows.
        columns: names of the columns to read; None for all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the split has no rows.
    """
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(f"no pack at {path}; --data must name the folder that holds it")
    filters = None if split is None else [("split", "==", split)]
    table = pq.read_table(path, columns=columns, filters=filters)
    if not len(table):
        raise ValueError(f"{path} has no rows with split {split!r}")
    return table


def check_packs(folder: Path, *names: str) -> None:
    """Raise an error if a folder lacks one of the files.

    Raises:
        FileNotFoundError: if files are missing; the message names them.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}; --data must name the folder that holds "
            f"{', '.join(names)}"
        )


def decode(image: bytes) -> Tensor:
    """Decode the image of a row, uint8 RGB, (H, W, 3)."""
    return torch.from_numpy(read_image(image))


def landmarks(table: pa.Table) -> Tensor:
    """Return five points per row in pixels, NaN if unknown, (N, 5, 2)."""
    return _rows(table["landmarks"].to_pylist(), 10).reshape(-1, 5, 2)


def teacher_embeddings(table: pa.Table) -> Tensor:
    """Return the embeddings of the face recognizer, NaN if unknown, (N, 128)."""
    return _rows(table["teacher_identity"].to_pylist(), 128)


def yaw_column(table: pa.Table) -> Tensor:
    """Return the yaw in the pack, degrees, NaN if unknown, (N,)."""
    return _rows([[float("nan") if y is None else y] for y in table["yaw"].to_pylist()], 1)[:, 0]


def _rows(values: list[Any], width: int) -> Tensor:
    missing = [float("nan")] * width
    return torch.from_numpy(np.array([missing if v is None else v for v in values], np.float32))


def as_points(values: list[list[float]], count: int) -> Tensor:
    """Convert lists of x, y, x, y, ... to points, ``count`` of them per row, (N, count, 2)."""
    return torch.from_numpy(np.array(values, np.float32).reshape(-1, count, 2))


def majority_labels(table: pa.Table) -> Tensor:
    """Return each row's label as an index in ``EXPRESSIONS``, -1 for none, int64, (N,)."""
    words = {word: index for index, word in enumerate(EXPRESSIONS)}
    return torch.tensor([words.get(word, -1) for word in table["expression"].to_pylist()])


def label_distributions(table: pa.Table) -> Tensor:
    """Return the annotators' votes as probabilities over ``EXPRESSIONS``, (N, 8).

    As in the majority rule of FER+, a class with a single vote loses it, and votes for "unknown"
    and "not a face" do not count. A pack without votes has its labels instead. Rows without votes
    or label are zero.
    """
    if "votes" not in table.column_names:
        labels = majority_labels(table)
        hot = torch.nn.functional.one_hot(labels.clamp(min=0), len(EXPRESSIONS)).float()
        return hot * (labels >= 0)[:, None]
    votes = torch.tensor(table["votes"].to_pylist(), dtype=torch.float32)
    votes = torch.where(votes > 1, votes, 0.0)[:, : len(EXPRESSIONS)]
    return votes / votes.sum(1, keepdim=True).clamp(min=1)


def aligned_crops(
    table: pa.Table, template: str, size: int, margin: int = 0, gray: bool = False
) -> Tensor:
    """Crop every row's face, aligned by the landmarks of the pack.

    Rows without landmarks are aligned by the mean landmarks of the other rows, which fits packs
    whose faces are roughly registered.

    Args:
        table: rows with ``image`` and ``landmarks``.
        size: side of the square that the template fills, pixels.
        margin: pixels around it on every side, for random shifts.
        gray: keep one channel instead of three.

    Returns:
        uint8, (N, 3 or 1, size + 2 margin, size + 2 margin).
    """
    points = landmarks(table)
    known = torch.isfinite(points).all(2).all(1)
    points[~known] = points[known].mean(0)
    matrices = similarity_transform(points, template_points(template, size).float() + margin)
    images = table["image"]

    def read(row: int, _: int | None) -> Any:
        return read_named(images[row].as_py(), f"row {row}")

    side, channels = size + 2 * margin, 1 if gray else 3
    return align_images(range(len(table)), read, matrices, side, channels=channels)
