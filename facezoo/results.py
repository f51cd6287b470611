"""Results: small frozen dataclasses of tensors that show themselves in a notebook.

Shapes: F faces, D features, K classes. Coordinates are pixels of the image, x to the right and
y down, with pixel centers at whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import import_module
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from facezoo.display import ROWS, WORDS, counted, table, titled
from facezoo.landmarks import LANDMARK_NAMES, head_pose

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
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

# Columns of tables and feature files.
BOX = ("x0", "y0", "x1", "y1")
LANDMARKS = tuple(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy")
POSE = ("yaw_deg", "pitch_deg", "roll_deg")


class Result:
    """Base of dataclasses of tensors with a short repr, which are equal if their content is.

    Use it with ``@dataclass(repr=False, eq=False)``.
    """

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return all(_equal(getattr(self, name), getattr(other, name)) for name in names)

    def to(self, target: str | torch.device | torch.dtype) -> Self:
        """Move every tensor to a device, or convert floating-point tensors to a dtype."""

        def moved(tensor: Tensor) -> Tensor:
            keep = hasattr(target, "is_floating_point") and not tensor.is_floating_point()
            return tensor if keep else tensor.to(target)

        return map_tensors(moved, self)

    def numpy(self) -> dict[str, Any]:
        """Convert tensors to float32 or integer arrays, and nested results to dicts of these."""
        return {field.name: _to_numpy(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    def _shapes(self) -> dict[str, str]:
        """Describe tensors by their shapes and other fields by their values; leave out None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            name: str(tuple(value.shape)) if hasattr(value, "shape") else str(value)
            for name, value in values.items()
            if value is not None
        }

    def _line(self) -> str:
        """Return the text between the brackets of ``repr``."""
        return ", ".join(f"{name} {text}" for name, text in self._shapes().items())

    def _table(self) -> str:
        """Return the HTML below the name of the class in a notebook."""
        return table([], self._shapes().items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._line()})"

    def _repr_html_(self) -> str:
        return titled(self, self._table())


def _equal(first: Any, second: Any) -> bool:
    are_arrays = [hasattr(value, "dtype") for value in (first, second)]
    if not all(are_arrays):
        return not any(are_arrays) and bool(first == second)
    first, second = _to_numpy(first), _to_numpy(second)
    if first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Result):
        return value.numpy()
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return value


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in a tensor, a result, or a dict of these."""
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, Result):
        names = [f.name for f in fields(value)]  # type: ignore[arg-type]
        mapped = {name: map_tensors(function, getattr(value, name)) for name in names}
        return replace(value, **mapped)  # type: ignore[type-var]
    return function(value) if hasattr(value, "detach") else value


def concatenate(parts: Sequence[Any]) -> Any:
    """Concatenate the rows of tensors, results, or dicts of these."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, dict):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, Result):
        names = [f.name for f in fields(first)]  # type: ignore[arg-type]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        joined = {n: concatenate(c) for n, c in columns.items() if c[0] is not None}
        return replace(first, **joined)  # type: ignore[type-var]
    if isinstance(first, tuple):  # one entry per image
        return tuple(chain(*parts))
    return torch.cat(parts)  # type: ignore[arg-type]


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors in a tensor, a result, or a dict of these."""
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if isinstance(value, Result):
        names = [f.name for f in fields(value)]  # type: ignore[arg-type]
        return [tensor for name in names for tensor in tensors_in(getattr(value, name))]
    return [value] if hasattr(value, "detach") else []


def flatten_rows(result: Any) -> Tensor:
    """Join the tensors of a result in one row per face, (F, D)."""
    return torch.cat([tensor[..., None].flatten(1) for tensor in tensors_in(result)], 1)


def fill_rows(rows: Any, known: Tensor) -> Any:
    """Insert rows of NaN where ``known`` (F,) is False."""

    def filled(tensor: Tensor) -> Tensor:
        result = tensor.new_full((len(known), *tensor.shape[1:]), math.nan)
        result[known] = tensor
        return result

    return map_tensors(filled, rows)


def as_array(values: Any) -> Any:
    """Copy a column or frame of pandas or polars to an array; return anything else as it is."""
    return values.to_numpy().copy() if hasattr(values, "to_numpy") else values


def as_rows(index: Any, count: int) -> Any:
    """Convert an index of ``count`` faces so that a single number keeps the axis of faces.

    Raises:
        TypeError: if it is None, a bool or text.
        IndexError: if it is a number without a face.
    """
    index = as_array(index)
    if getattr(index, "ndim", None) == 0:  # a number of numpy or torch
        index = index.item()
    if index is None or isinstance(index, (bool, str)):
        raise TypeError(
            f"faces are selected by a number, a slice, a mask or a list of numbers, got {index!r}"
        )
    if isinstance(index, slice):  # torch takes no negative step
        return list(range(count)[index])
    if not isinstance(index, int):
        return index
    if not -count <= index < count:
        raise IndexError(f"face {index} does not exist; there are {count} faces")
    return slice(index, index + 1 or None)


TEXT_COLUMNS = ("file", "label")


class FaceTable(Result):
    """Base of results with one row per face, or mesh, that convert to tables."""

    def _columns(self) -> dict[str, Any]:
        """Return the columns of a table with one row per face: arrays or lists by name."""
        raise NotImplementedError

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one plain dict per row, with the columns of ``to_frame``; NaN becomes None."""
        columns = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in self._columns().items()}
        rows = zip(*columns.values(), strict=True)
        return [
            {k: None if v != v else v for k, v in zip(columns, row, strict=True)} for row in rows
        ]

    def to_frame(self, library: Literal["pandas", "polars"] = "pandas") -> Any:
        """Return a data frame with one row per face, or per mesh.

        The columns have the names of the feature files of ``facezoo.extract``: file, face, box,
        score, landmarks, head pose, quality and the results. Rows of aligned crops have no file and
        no box. Rows of meshes have the codes and ``residual_mm``.

        Args:
            library: ``"pandas"`` or ``"polars"``, which must be installed.

        Raises:
            ImportError: if the library is not installed.
            ValueError: if ``library`` has another value.

        Examples:
            >>> frame = model.predict_expression("eileen_collins.jpg").to_frame()
            >>> frame[["file", "face", "label"]].values.tolist()
            [['eileen_collins.jpg', 0, 'happiness']]
        """
        if library not in ("pandas", "polars"):
            raise ValueError(f"library must be 'pandas' or 'polars', got {library!r}")
        try:
            module = import_module(library)
        except ImportError as error:
            extra = "'facezoo[pandas]'" if library == "pandas" else "polars"
            raise ImportError(f"to_frame needs {library}: pip install {extra}") from error
        columns = self._columns()
        names = [name for name in TEXT_COLUMNS if name in columns]
        if library == "polars":
            return module.DataFrame(columns, schema_overrides=dict.fromkeys(names, module.String))
        text = module.Series([""]).dtype  # the type of text differs between versions
        return module.DataFrame(columns).astype(dict.fromkeys(names, text))


class Signature(NamedTuple):
    """Size and a few pixels of an image."""

    width: int
    height: int
    pixels: bytes
    """RGB of a grid of pixels, one byte per color."""


@dataclass(frozen=True, repr=False, eq=False)
class Faces(FaceTable):
    """Faces in a list of images, in the order of the images.

    The row of an image without a face (``on_missing="nan"``) holds NaN.

    Examples:
        >>> faces = facezoo.detect("grace_hopper.jpg")
        >>> faces.boxes.shape, faces.landmarks.shape
        (torch.Size([1, 4]), torch.Size([1, 5, 2]))
    """

    boxes: Tensor
    """x0, y0, x1, y1 in pixels, (F, 4)."""
    landmarks: Tensor
    """Right eye, left eye, nose tip, right and left mouth corner (the subject's own sides), pixels,
    (F, 5, 2)."""
    scores: Tensor
    """Detector confidence in [0, 1], (F,)."""
    image_index: Tensor
    """Index of the image of each face, int64, (F,)."""
    sharpness: Tensor | None = None
    """Variance of the Laplacian of the face's luminance, see
    ``facezoo.preprocess.quality.sharpness``; low for a blurred face, (F,)."""
    files: tuple[str | None, ...] | None = None
    """File name of each image, None for an image from memory; index it by ``image_index``."""
    signatures: tuple[Signature, ...] | None = None
    """Signature of each image, by which drawing and cropping recognize it."""

    def __len__(self) -> int:
        return len(self.image_index)

    def __getitem__(self, index: Any) -> Faces:
        """Select faces by a number, a slice, a boolean mask or an index tensor."""
        index = as_rows(index, len(self.image_index))
        return map_tensors(lambda tensor: tensor[index], self)

    @cached_property
    def pose_deg(self) -> Tensor:
        """Yaw, pitch and roll in degrees, estimated from the five landmarks with a generic head.

        See ``facezoo.landmarks.head_pose``, (F, 3).
        """
        return head_pose(self.landmarks).to(self.landmarks)

    @property
    def eye_distance_px(self) -> Tensor:
        """Distance between the eyes in pixels, a measure of the size of the face, (F,)."""
        return (self.landmarks[:, 0] - self.landmarks[:, 1]).norm(dim=-1)

    def numpy(self) -> dict[str, Any]:
        """Convert tensors and the head pose to float32 or integer arrays."""
        return {**super().numpy(), "pose_deg": _to_numpy(self.pose_deg)}

    def _line(self) -> str:
        index = self.image_index[self.scores.isfinite()].tolist()
        found = counted(len(index), "face")
        return f"{found} in {counted(len(set(index)), 'image')}" if index else found

    def _table(self) -> str:
        shown = self[:ROWS]
        rows = (
            [str(index), f"{score:.2f}", ", ".join(f"{edge:.0f}" for edge in box)]
            for index, score, box in zip(
                shown.image_index.tolist(), shown.scores.tolist(), shown.boxes.tolist(), strict=True
            )
        )
        return table(["image", "score", "box: x0, y0, x1, y1"], rows, len(self))

    def _columns(self) -> dict[str, Any]:
        index = self.image_index.tolist()
        seen: dict[int, int] = {}
        numbers = []  # of each face in its image; -1 for an image without a face
        for image, known in zip(index, self.scores.isfinite().tolist(), strict=True):
            numbers.append(seen.get(image, 0) if known else -1)
            seen[image] = seen.get(image, 0) + 1
        columns: dict[str, Any] = {
            "file": [self.files[i] if self.files else None for i in index],
            "image_index": _to_numpy(self.image_index),
            "face": np.array(numbers, np.int64),
        }
        for names, values in (
            (BOX, self.boxes),
            (("score",), self.scores),
            (LANDMARKS, self.landmarks),
            (POSE, self.pose_deg),
            (("eye_distance_px",), self.eye_distance_px),
            (("sharpness",), self.sharpness),
        ):
            if values is not None:
                rows = _to_numpy(values).reshape(len(index), len(names))
                columns |= dict(zip(names, rows.T, strict=True))
        return columns


@dataclass(frozen=True, repr=False, eq=False)
class FaceEncoding(FaceTable):
    """All features of faces; None for a feature that the model lacks.

    Examples:
        >>> encoding = model.encode(["eileen_collins.jpg", "grace_hopper.jpg"])
        >>> encoding.expression.shape, encoding.identity.shape
        (torch.Size([2, 512]), torch.Size([2, 512]))
    """

    expression: Tensor | None
    """(F, D)."""
    identity: Tensor | None
    """(F, D)."""
    faces: Faces | None = None
    """Positions of the faces; None for aligned crops."""
    pose: Tensor | None = None
    """(F, D)."""

    def __len__(self) -> int:
        return next(len(x) for x in (self.expression, self.identity, self.pose) if x is not None)

    def _columns(self) -> dict[str, Any]:
        names = [field.name for field in fields(self) if field.name != "faces"]
        features = {name: getattr(self, name) for name in names}
        return {**_columns_of(self.faces), **feature_columns(features)}


@dataclass(frozen=True, repr=False, eq=False)
class ExpressionPrediction(FaceTable):
    """Expression classes, one row per face.

    Examples:
        >>> prediction = model.predict_expression("eileen_collins.jpg")
        >>> prediction.labels, prediction.probabilities.shape
        (['happiness'], torch.Size([1, 8]))
    """

    labels: list[str | None]
    """Most probable class of each face; None for an image without a face, F."""
    probabilities: Tensor
    """(F, K), rows sum to one; columns in the order of ``classes``."""
    classes: tuple[str, ...]
    """The K class names."""
    faces: Faces | None = None
    """Positions of the faces; None for aligned crops."""

    def __len__(self) -> int:
        return len(self.labels)

    def _line(self) -> str:
        words = (
            f"{label} {share:.0%}" if label is not None else "no face"
            for label, share in zip(self.labels, self.probabilities.amax(-1).tolist(), strict=True)
        )
        shown = list(islice(words, WORDS))
        more = [f"{len(self) - len(shown)} more"] if len(self) > len(shown) else []
        return f"{counted(len(self), 'face')}: {', '.join([*shown, *more])}"

    def _table(self) -> str:
        shown = zip(self.labels[:ROWS], self.probabilities[:ROWS].tolist(), strict=True)
        rows = ([label or "no face", *shares] for label, shares in shown)
        return table(["label", *self.classes], rows, len(self))

    def _columns(self) -> dict[str, Any]:
        shares = zip(self.classes, _to_numpy(self.probabilities).T, strict=True)
        named = {f"p_{name}": column for name, column in shares}
        return {**_columns_of(self.faces), "label": self.labels, **named}


def feature_columns(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return one column per number of each feature, such as ``expression_0``; leave out None."""
    return {
        f"{name}_{number}": column
        for name, value in features.items()
        if value is not None
        for number, column in enumerate(_to_numpy(flatten_rows(value)).T)
    }


def _columns_of(faces: Faces | None) -> dict[str, Any]:
    return {} if faces is None else faces._columns()


@dataclass(frozen=True, repr=False, eq=False)
class PosePrediction(FaceTable):
    """Head poses, one row per face."""

    yaw_deg: Tensor
    """Positive if the face looks to the image's right, (F,)."""
    pitch_deg: Tensor
    """Positive if the face looks up, (F,)."""
    roll_deg: Tensor
    """Positive if the head is turned clockwise in the image, or in an aligned crop, (F,)."""
    faces: Faces | None = None
    """Positions of the faces; None for aligned crops."""

    def __len__(self) -> int:
        return len(self.yaw_deg)

    def _line(self) -> str:
        return counted(len(self), "face")

    def _table(self) -> str:
        angles = (self.yaw_deg, self.pitch_deg, self.roll_deg)
        texts = ([f"{value:.1f}" for value in angle[:ROWS].tolist()] for angle in angles)
        return table(POSE, zip(*texts, strict=True), len(self))

    def _columns(self) -> dict[str, Any]:
        angles = (_to_numpy(angle) for angle in (self.yaw_deg, self.pitch_deg, self.roll_deg))
        return {**_columns_of(self.faces), **dict(zip(POSE, angles, strict=True))}


@dataclass(frozen=True, repr=False, eq=False)
class VideoFrame(Result):
    """Faces of one frame of a video, and their expressions."""

    number: int
    """Number of the frame in its video, from 0."""
    time: float
    """Time at which the frame is shown, seconds; since the first frame for a camera."""
    image: NDArray[np.uint8]
    """RGB, (H, W, 3)."""
    faces: Faces
    """Positions of the faces in ``image``."""
    prediction: ExpressionPrediction
    """Expressions of the faces."""
    track: Tensor
    """Number of each face, the same from frame to frame, int64, (F,)."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one plain dict per face: frame, time, track, and those of the prediction."""
        place = {"frame": self.number, "time": self.time}
        rows = zip(self.track.tolist(), self.prediction.to_dict(), strict=True)
        return [{**place, "track": track, **row} for track, row in rows]
