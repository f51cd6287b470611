"""What models return: small frozen dataclasses of tensors.

Shapes: F faces, D features, K classes. Coordinates are pixels of the photograph, x to the right and
y down, with pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from facezoo.display import ROWS, Short, counted, listed, table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from typing_extensions import Self

# The eight classes in the order of FER+ (Barsoum et al. 2016).
EXPRESSIONS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)

LANDMARK_NAMES = ("right_eye", "left_eye", "nose_tip", "right_mouth_corner", "left_mouth_corner")


class Result(Short):
    """Moving, converting and showing, shared by every result."""

    def to(self, device: str | torch.device) -> Self:
        """The same result with every tensor on ``device``."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)  # type: ignore[arg-type]
            if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)  # type: ignore[type-var]

    def numpy(self) -> dict[str, Any]:
        """Fields by name: tensors as float32 or integer arrays, nested results as such dicts."""
        return {field.name: _to_numpy(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Result):
        return value.numpy()
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        array: np.ndarray[Any, Any] = (
            tensor.float() if tensor.is_floating_point() else tensor
        ).numpy()
        return array
    return value


def as_rows(index: Any, count: int) -> Any:
    """An index of ``count`` faces that keeps the axis of faces, also where it is a number.

    Raises:
        IndexError: if it is a number, and there is no such face.
    """
    if getattr(index, "ndim", None) == 0:  # a number of numpy or torch
        index = int(index)
    if not isinstance(index, int):
        return index
    if not -count <= index < count:
        raise IndexError(f"there are {count} faces, and none at {index}")
    return slice(index, index + 1 or None)


@dataclass(frozen=True, repr=False)
class Faces(Result):
    """Faces found in a list of photographs, in the order of the photographs.

    A row that stands for a photograph without a face (``on_missing="nan"``) holds NaN.
    """

    boxes: Tensor
    """x0, y0, x1, y1 in pixels, (F, 4)."""
    landmarks: Tensor
    """Right eye, left eye, nose tip, right and left mouth corner (the subject's own sides), pixels,
    (F, 5, 2)."""
    scores: Tensor
    """Detector confidence in [0, 1], (F,)."""
    image_index: Tensor
    """Which photograph each face came from, int64, (F,)."""

    def __len__(self) -> int:
        return len(self.image_index)

    def __getitem__(self, index: Any) -> Faces:
        """Select faces by a number, a slice, a boolean mask or an index tensor."""
        index = as_rows(index, len(self))
        return Faces(
            self.boxes[index], self.landmarks[index], self.scores[index], self.image_index[index]
        )

    def _line(self) -> str:
        found = self.image_index[self.scores.isfinite()].tolist()
        photographs = counted(len(set(found)), "photograph")
        return f"{counted(len(found), 'face')} in {photographs}"

    def _table(self) -> str:
        shown = self[:ROWS]
        rows = (
            [str(index), f"{score:.2f}", ", ".join(f"{edge:.0f}" for edge in box)]
            for index, score, box in zip(
                shown.image_index.tolist(), shown.scores.tolist(), shown.boxes.tolist(), strict=True
            )
        )
        return table(["photograph", "score", "box: x0, y0, x1, y1"], rows, len(self))

    def to_dict(self) -> list[dict[str, Any]]:
        """One plain dict per face, for a table."""
        return [
            {
                "image_index": int(index),
                "score": float(score),
                **dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True)),
                **{
                    f"{name}_{axis}": float(value)
                    for name, point in zip(LANDMARK_NAMES, points, strict=True)
                    for axis, value in zip("xy", point, strict=True)
                },
            }
            for box, points, score, index in zip(
                self.boxes.cpu(),
                self.landmarks.cpu(),
                self.scores.cpu(),
                self.image_index.cpu(),
                strict=True,
            )
        ]


@dataclass(frozen=True, repr=False)
class FaceEncoding(Result):
    """Every feature that a model reads from a face; what a model lacks is None."""

    expression: Tensor | None
    """(F, D)."""
    identity: Tensor | None
    """(F, D)."""
    faces: Faces | None = None
    """Where the faces stand; None for crops that came aligned."""
    pose: Tensor | None = None
    """(F, D)."""


@dataclass(frozen=True, repr=False)
class ExpressionPrediction(Result):
    """Expression classes, one row per face."""

    labels: list[str | None]
    """The most probable class of each face; None where no face was found, F."""
    probabilities: Tensor
    """(F, K), rows sum to one; columns in the order of ``classes``."""
    classes: tuple[str, ...]
    """The K class names."""
    faces: Faces | None = None
    """Where the faces stand; None for crops that came aligned."""

    def __len__(self) -> int:
        return len(self.labels)

    def _line(self) -> str:
        words = (
            f"{label} {share:.0%}" if label is not None else "no face"
            for label, share in zip(self.labels, self.probabilities.amax(-1).tolist(), strict=True)
        )
        return f"{counted(len(self), 'face')}: {listed(words, len(self))}"

    def _table(self) -> str:
        shown = zip(self.labels[:ROWS], self.probabilities[:ROWS].tolist(), strict=True)
        rows = ([label or "no face", *shares] for label, shares in shown)
        return table(["label", *self.classes], rows, len(self))

    def to_dict(self) -> list[dict[str, Any]]:
        """One plain dict per face: label, one probability per class, and the face's place."""
        rows = self.faces.to_dict() if self.faces is not None else [{} for _ in self.labels]
        return [
            {
                "label": label,
                **{f"p_{c}": float(p) for c, p in zip(self.classes, row, strict=True)},
                **place,
            }
            for label, row, place in zip(self.labels, self.probabilities.cpu(), rows, strict=True)
        ]
