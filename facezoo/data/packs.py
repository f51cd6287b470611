"""Packs of face photographs with labels, stored as parquet.

A pack has a row per photograph and, where they are known, the columns ``image`` (encoded bytes),
``split``, ``landmarks`` (five points x, y in pixels), ``expression`` (a word), ``votes`` (ten FER+
votes), ``identity`` (a name) and ``teacher_identity`` (the embedding of a face recogniser).
Needs the extra ``[parquet]``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.preprocess.alignment import align, similarity_transform
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    import pyarrow as pa


def read_pack(path: str | Path, split: str | None = None) -> pa.Table:
    """Rows of a pack.

    Args:
        path: a ``.parquet`` file.
        split: ``"train"``, ``"val"``, ``"test"``, or None for all rows.

    Returns:
        A pyarrow table.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the split has no rows.
    """
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(f"no pack at {path}; --data must name the folder that holds it")
    filters = None if split is None else [("split", "==", split)]
    table = pq.read_table(path, filters=filters)
    if not len(table):
        raise ValueError(f"{path} has no rows with split {split!r}")
    return table


def check_packs(folder: Path, *names: str) -> None:
    """Refuse a folder that lacks one of the files, before anything is begun.

    Raises:
        FileNotFoundError: naming the files that are missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}; --data must name the folder that holds "
            f"{', '.join(names)}"
        )


def decode(image: bytes) -> Tensor:
    """Pixels of one row, uint8 RGB, (H, W, 3)."""
    with Image.open(io.BytesIO(image)) as photo:
        return torch.from_numpy(np.array(photo.convert("RGB")))


def landmarks(table: pa.Table) -> Tensor:
    """Five points per row in pixels, NaN where unknown, (N, 5, 2)."""
    return _rows(table["landmarks"].to_pylist(), 10).reshape(-1, 5, 2)


def teacher_embeddings(table: pa.Table) -> Tensor:
    """Embeddings of the face recogniser, NaN where unknown, (N, 128)."""
    return _rows(table["teacher_identity"].to_pylist(), 128)


def yaw_column(table: pa.Table) -> Tensor:
    """Yaw of each row's face as the pack has it, degrees, NaN where unknown, (N,)."""
    return _rows([[float("nan") if y is None else y] for y in table["yaw"].to_pylist()], 1)[:, 0]


def _rows(values: list[Any], width: int) -> Tensor:
    missing = [float("nan")] * width
    return torch.from_numpy(np.array([missing if v is None else v for v in values], np.float32))


def as_points(values: list[list[float]], count: int) -> Tensor:
    """Lists of x, y, x, y, ... as points, ``count`` of them per row, (N, count, 2)."""
    return torch.from_numpy(np.array(values, np.float32).reshape(-1, count, 2))


def majority_labels(table: pa.Table) -> Tensor:
    """Index in ``EXPRESSIONS`` of each row's label, -1 where there is none, int64, (N,)."""
    words = {word: index for index, word in enumerate(EXPRESSIONS)}
    return torch.tensor([words.get(word, -1) for word in table["expression"].to_pylist()])


def label_distributions(table: pa.Table) -> Tensor:
    """What the annotators said, as probabilities over ``EXPRESSIONS``.

    FER+ votes of a single annotator are outliers and dropped, as the majority rule of that data
    set has it; votes for "unknown" and "not a face" do not count. Rows without a vote left, and
    rows of packs without votes that have no label, are zero.

    Returns:
        (N, 8).
    """
    if "votes" not in table.column_names:
        labels = majority_labels(table)
        hot = torch.nn.functional.one_hot(labels.clamp(min=0), len(EXPRESSIONS)).float()
        return hot * (labels >= 0)[:, None]
    votes = torch.tensor(table["votes"].to_pylist(), dtype=torch.float32)
    votes = torch.where(votes > 1, votes, 0.0)[:, : len(EXPRESSIONS)]
    return votes / votes.sum(1, keepdim=True).clamp(min=1)


def aligned_crops(
    table: pa.Table, template: str, size: int, margin: int = 0, grey: bool = False
) -> Tensor:
    """Every row's face, aligned by the landmarks of the pack.

    Rows without landmarks are aligned by the mean landmarks of the pack's other rows, which suits
    packs whose faces are roughly registered.

    Args:
        table: rows with ``image`` and ``landmarks``.
        template: name of the alignment template.
        size: side of the crop that the template fills, pixels.
        margin: pixels kept around it on every side, so that a random shift has something to show.
        grey: keep one channel instead of three.

    Returns:
        uint8, (N, 3 or 1, size + 2 margin, size + 2 margin).
    """
    points = landmarks(table)
    known = torch.isfinite(points).all(2).all(1)
    points[~known] = points[known].mean(0)
    matrices = similarity_transform(points, template_points(template, size).float() + margin)
    side = size + 2 * margin
    crops = torch.empty(len(table), 1 if grey else 3, side, side, dtype=torch.uint8)
    images = table["image"]
    for begin in tqdm(range(0, len(table), 256), desc="aligning", unit="batch"):
        photos = [decode(i.as_py()) for i in images[begin : begin + 256]]
        part = align(photos, torch.arange(len(photos)), matrices[begin : begin + len(photos)], side)
        crops[begin : begin + len(photos)] = part[:, : crops.shape[1]].round().to(torch.uint8)
    return crops
