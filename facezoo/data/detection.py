"""Images with boxes and landmarks of their faces, for training and measuring detectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from facezoo.data.packs import decode
from facezoo.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

# Half the width of a mouth in eye distances, the mean of LFW.
_HALF_MOUTH = 0.39


@dataclass(frozen=True)
class LabeledImage:
    """An image with its faces."""

    pixels: Tensor
    """uint8 RGB, (H, W, 3)."""
    boxes: Tensor
    """(G, 4)."""
    landmarks: Tensor
    """(G, 5, 2)."""
    weights: Tensor
    """0 where a landmark is unknown, (G, 5)."""
    marked: Tensor
    """True where eyes and mouth are marked by hand, (G,)."""
    unsure: Tensor
    """Regions that may hold a face, (R, 4)."""


def labeled_images(table: pa.Table) -> list[LabeledImage]:
    """Decode images with boxes; marks set by hand replace the landmarks of the teacher.

    Args:
        table: rows with ``image`` and, unless they show no face, ``faces`` and ``unsure``.
    """
    columns = [c for c in ("image", "faces", "unsure") if c in table.column_names]
    rows = (table[i : i + 1].select(columns).to_pylist()[0] for i in range(len(table)))
    return [
        labeled_image(decode(row["image"]), row.get("faces", []), row.get("unsure", []))
        for row in progress_bar(rows, total=len(table), desc="decoding", mininterval=5, delay=5)
    ]


def labeled_image(
    pixels: Tensor, faces: Iterable[dict[str, Any]], unsure: Sequence[Sequence[float]]
) -> LabeledImage:
    """Combine pixels with the ``faces`` and ``unsure`` regions of a row of a pack."""
    faces = list(faces)
    points = [_points(face) for face in faces]
    return LabeledImage(
        pixels,
        _boxes([face["box"] for face in faces]),
        torch.stack([p for p, _ in points]) if points else torch.zeros(0, 5, 2),
        torch.stack([w for _, w in points]) if points else torch.zeros(0, 5),
        torch.tensor([face.get("marks") is not None for face in faces], dtype=torch.bool),
        _boxes(unsure),
    )


def _boxes(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32).reshape(-1, 4))


def _points(face: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the landmarks (5, 2) of a face and their weights (5,)."""
    marks = face.get("marks")
    teacher = face.get("landmarks")
    if teacher is None and marks is None:
        return torch.zeros(5, 2), torch.zeros(5)
    points, weights = torch.zeros(5, 2), torch.ones(5)
    if teacher is not None:
        points = torch.tensor(teacher).reshape(5, 2)
    if marks is not None:
        right, left, _, mouth = torch.tensor(marks).reshape(4, 2)
        if teacher is None:
            weights[2] = 0.0  # the mark of the nose is not its tip
            half = (left - right) * _HALF_MOUTH
            points[3], points[4] = mouth - half, mouth + half
        else:
            points[3:] += mouth - points[3:].mean(0)
        points[0], points[1] = right, left
    return points, weights


@dataclass(frozen=True)
class BoxRegression:
    """A linear map from the landmarks of an upright face to its box, in eye distances."""

    weight: Tensor
    """(11, 4)."""

    @classmethod
    def fit(cls, boxes: Tensor, landmarks: Tensor) -> BoxRegression:
        """Fit the map to faces with boxes (N, 4) and landmarks (N, 5, 2)."""
        local, origin, unit = _local(landmarks)
        corners = ((boxes.unflatten(1, (2, 2)) - origin) / unit).flatten(1)
        return cls(torch.linalg.lstsq(local, corners).solution)

    def __call__(self, landmarks: Tensor) -> Tensor:
        """Predict the boxes of faces, (N, 4)."""
        local, origin, unit = _local(landmarks)
        return ((local @ self.weight).unflatten(1, (2, 2)) * unit + origin).flatten(1)


def _local(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Landmarks from the middle of the eyes in eye distances (N, 11), that middle and unit."""
    origin = landmarks[:, :2].mean(1, keepdim=True)
    unit = (landmarks[:, 0] - landmarks[:, 1]).norm(dim=1)[:, None, None]
    local = ((landmarks - origin) / unit).flatten(1)
    return torch.cat([local, torch.ones(len(local), 1)], 1), origin, unit


def face_crops(table: pa.Table, regression: BoxRegression) -> list[LabeledImage]:
    """Decode crops that show one upright face each, whose boxes follow from the landmarks."""
    points = torch.from_numpy(np.array(table["landmarks"].to_pylist(), np.float32))
    points = points.reshape(-1, 5, 2)
    boxes = regression(points)
    images = progress_bar(table["image"], desc="decoding", mininterval=5, delay=5)
    return [
        LabeledImage(
            decode(image.as_py()),
            boxes[index : index + 1],
            points[index : index + 1],
            torch.ones(1, 5),
            torch.zeros(1, dtype=torch.bool),
            torch.zeros(0, 4),
        )
        for index, image in enumerate(images)
    ]
