"""Base class for models that generate face crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from facezoo.models.base import FaceModel, Stage
from facezoo.models.detail import keep_detail
from facezoo.preprocess.images import Images, as_list
from facezoo.preprocess.pipeline import ImageKeywords, ImageOptions
from facezoo.results import fill_rows, flatten_rows, map_tensors


class DecodingModel(FaceModel):
    """A face representation with a decoder.

    Results are RGB crops in [0, 1] in the model's template. ``encode_*`` and ``predict_*`` take
    them with ``aligned=True``.
    """

    def reconstruct(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Decode the faces in images from their features.

        Args:
            images: one image or several.
            **options: choice and detection of the faces, as in ``encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            UnsupportedError: if this model has no decoder.
        """
        return self._encode_crops(images, self.stage("reconstruct"), ImageOptions(**options))

    def neutralize(
        self, images: Images, *, detail: bool | None = None, **options: Unpack[ImageKeywords]
    ) -> Tensor:
        """Remove the expression of the faces in images.

        Args:
            images: one image or several.
            detail: apply what the decoder changes to the crops, which keeps their detail, see
                ``facezoo.models.detail``; False returns what it decodes from the features alone;
                None for the model's ``keeps_detail``.
            **options: choice and detection of the faces, as in ``encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            UnsupportedError: if this model has no decoder.
        """
        before, after = self.stage("reconstruct"), self.stage("neutralize")
        if not self._edits_crops(detail):
            return self._encode_crops(images, after, ImageOptions(**options))

        def edit(crops: Tensor) -> Tensor:
            return self.edited(crops, before(crops), after(crops))

        return self._encode(images, edit, ImageOptions(**options))[0]

    def frontalize(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Decode the faces as seen from the front.

        Args:
            images: one image or several.
            **options: choice and detection of the faces, as in ``encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            UnsupportedError: if this model has no such decoder.
        """
        return self._encode_crops(images, self.stage("frontalize"), ImageOptions(**options))

    def _edits_crops(self, detail: bool | None) -> bool:
        """Return True if ``detail`` asks for edited crops; None is the default of the model."""
        return bool(self.keeps_detail if detail is None else detail)

    def edited(
        self, crops: Tensor, before: Tensor, after: Tensor, *, everywhere: bool = False
    ) -> Tensor:
        """Apply the difference of two decoded crops to a crop, so that the crop keeps its detail.

        Args:
            crops: normalized, as the other two, (B, 3, S, S).
            before: decoded from the features of ``crops``.
            after: decoded from the changed features.
            everywhere: the edit changes color or light only, see ``keep_detail``.

        Returns:
            RGB in [0, 1], (B, 3, S, S).
        """
        units = (self.to_unit(images.float()) for images in (crops, before, after))
        return keep_detail(*units, everywhere=everywhere)

    def to_unit(self, crops: Tensor) -> Tensor:
        """Convert normalized crops (F, 3, S, S) to RGB in [0, 1]."""
        mean = crops.new_tensor(self.preprocessing.mean)[:, None, None]
        std = crops.new_tensor(self.preprocessing.std)[:, None, None]
        return (crops * std + mean).clamp(0, 1)

    def decode_batched(self, rows: Any, function: Any, batch_size: int) -> Any:
        """Apply a function to rows in batches; rows with a NaN become rows of NaN.

        Args:
            rows: tensor, result or dict of these, one row per face.
            function: takes some rows in the model's precision.
            batch_size: rows per call.

        Returns:
            float32, one row per face.

        Raises:
            ValueError: if ``batch_size`` is below 1.
        """
        known = torch.isfinite(flatten_rows(rows)).all(-1)
        if bool(known.all()):
            return self.in_batches(function, rows, batch_size)
        rows = map_tensors(lambda t: t[known], rows)
        return fill_rows(self.in_batches(function, rows, batch_size), known)

    def _encode_crops(self, images: Images, stage: Stage, options: ImageOptions) -> Tensor:
        return self.to_unit(self._encode(images, stage, options)[0])

    def _encode_pairs(
        self, source: Images, target: Images, stages: tuple[Stage, Stage], options: ImageOptions
    ) -> tuple[Any, Any]:
        """Encode the sources and the targets of pairs.

        Raises:
            ValueError: if ``check_face_counts`` finds that their images do not match.
        """
        first, sources = self._encode_counted(source, stages[0], options)
        second, targets = self._encode_counted(target, stages[1], options)
        check_face_counts(sources, targets)
        return first, second

    def _encode_counted(
        self, images: Images, stage: Stage, options: ImageOptions
    ) -> tuple[Any, list[int]]:
        """Encode images as ``_encode``, and count the faces of each image."""
        images = as_list(images)
        result, faces = self._encode(images, stage, options, measured=True)
        if faces is None:
            return result, [1] * len(images)
        return result, torch.bincount(faces.image_index, minlength=len(images)).tolist()


def one_number(name: str, value: float) -> float:
    """Convert a parameter of an edit to one finite number for all faces.

    Args:
        name: name of the parameter, for the message.
        value: a number, or a scalar of numpy or torch.

    Raises:
        ValueError: if it is not a number, is several numbers, or is NaN or infinite.
    """
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = float("nan")
    if not math.isfinite(number):
        raise ValueError(
            f"{name} must be one finite number for all faces, got {value!r}; for several, edit "
            "once for each"
        )
    return number


def check_face_counts(sources: Sequence[int], targets: Sequence[int]) -> None:
    """Check that the images of both sides of pairs still match.

    Args:
        sources: number of faces in each image.
        targets: number of faces in each image, or 1 for each row of codes.

    Raises:
        ValueError: if there are several sources, and images of either side were skipped, or images
            of several faces do not have as many as the image at their place on the other side.
    """
    if len(sources) == 1 and sources[0] <= 1:  # one source for all targets
        return
    for counts in (sources, targets):
        if 0 < (skipped := counts.count(0)) < len(counts):
            raise ValueError(
                f"{skipped} of {len(counts)} images without a face were skipped, so the others no "
                'longer match their pairs; pass on_missing="nan", which keeps the place of each'
            )
    # The faces of a group match images of one face each.
    if sum(sources) == sum(targets) and min(max(sources), max(targets)) > 1:
        for place, (first, second) in enumerate(zip(sources, targets, strict=False)):
            if first != second:
                raise ValueError(
                    f"image {place} of each side has {first} and {second} faces; expected as many "
                    'on both sides. Pass faces="largest", or crops of the faces with aligned=True'
                )


def check_pairs(sources: int, targets: int) -> None:
    """Check the numbers of faces of both sides of pairs.

    Raises:
        ValueError: unless there is one source face, or as many as there are target faces.
    """
    if sources not in (1, targets):
        none = "no face was found in the source; " if not sources else ""
        raise ValueError(
            f"transfer_expression got {sources} source faces and {targets} target faces; {none}"
            "pass one source, or as many as there are targets"
        )
