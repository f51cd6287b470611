"""From decoded photographs to what a network takes: find faces, align, normalise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facezoo.errors import ImageError, NoFaceError
from facezoo.hub.card import Preprocessing, card_named
from facezoo.hub.files import find
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.preprocess.alignment import align, similarity_transform
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.detector import FaceDetector
from facezoo.preprocess.jpeg import Jpeg, JpegDecoder, Photo, decode
from facezoo.preprocess.templates import template_points
from facezoo.results import Faces

Which = Literal["largest", "all"]
OnMissing = Literal["raise", "skip", "nan"]

DETECTOR = "face-detector"
FACES_AT_ONCE = 256
"""Faces that are cut out together, so that a photograph of a crowd fits into memory."""
NAMED = 5
"""Photographs that an error names, of those without a face."""
REVISION = 1
"""Raised whenever reading, detection or alignment give other pixels, by more than rounding."""


@cache
def load_detector(device: torch.device) -> FaceDetector:
    """The face detector of this package on a device, loaded once and shared by all models.

    Raises:
        WeightsError: if its weights cannot be found or trusted.
    """
    card = card_named(DETECTOR)
    detector = FaceDetector(**card.architecture).float()  # whatever torch's default is
    load_into(detector, read_tensors(find(card)))
    detector.fold_norms()
    return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def fingerprint(preprocessing: Preprocessing, jpeg: JpegDecoder = "pillow") -> str:
    """A short name for everything that decides which pixels a network sees.

    Features are comparable only if they come from the same checkpoint and the same fingerprint.

    Args:
        preprocessing: template, size and normalisation.
        jpeg: what decodes JPEG files.

    Returns:
        16 hexadecimal digits of a SHA-256 over the settings, the template's points, the detector's
        weights and thresholds, and the revision of this code.
    """
    everything = {
        "preprocessing": asdict(preprocessing),
        "template": template_points(preprocessing.template, preprocessing.size).tolist(),
        "detector": card_named(DETECTOR).weights.sha256,
        "detection": asdict(DetectionConfig()),
        "revision": REVISION,
        **({} if jpeg == "pillow" else {"jpeg": jpeg}),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def on_device(photos: Sequence[Photo], device: torch.device) -> list[Tensor | ImageError]:
    """Photographs on a device, files that are still JPEG decoded there; see ``to_device``.

    Returns:
        uint8 RGB, each (H, W, 3), or why one cannot be read.
    """
    files = [photo for photo in photos if isinstance(photo, Jpeg)]
    arrays = [photo for photo in photos if not isinstance(photo, Jpeg)]
    decoded, copied = iter(decode(files, device)), iter(to_device(arrays, device))
    return [next(decoded if isinstance(photo, Jpeg) else copied) for photo in photos]


def to_device(photos: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    """Decoded photographs as tensors on a device, uint8 RGB, each (H, W, 3).

    To a GPU all go in one copy from pinned memory, which nobody here waits for.
    """
    if device.type != "cuda" or not photos:
        return [torch.from_numpy(photo).to(device) for photo in photos]
    sizes = [photo.size for photo in photos]
    pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True, device="cpu")
    for part, photo in zip(pinned.split(sizes), photos, strict=True):
        part.view(photo.shape).copy_(torch.from_numpy(photo))
    parts = pinned.to(device, non_blocking=True).split(sizes)
    return [part.view(photo.shape) for part, photo in zip(parts, photos, strict=True)]


def find_faces(
    photos: Sequence[Tensor],
    *,
    faces: Which = "largest",
    on_missing: OnMissing = "raise",
    names: Sequence[str] | None = None,
    config: DetectionConfig | None = None,
) -> Faces:
    """Faces in photographs.

    Args:
        photos: uint8 RGB, each (H, W, 3), on one device, where the detector runs.
        faces: ``"largest"`` for one face per photograph, ``"all"`` for every face.
        on_missing: what becomes of a photograph without a face: ``"raise"`` an error, ``"skip"``
            it, or hold its place with a row of ``"nan"``.
        names: what to call the photographs in an error.
        config: scales and thresholds of the detector.

    Returns:
        Faces ordered by photograph; within one, by falling score.

    Raises:
        NoFaceError: if a photograph has no face and ``on_missing`` is ``"raise"``; it names all
            such photographs.
        ValueError: if an option is none of the above.
    """
    check_options(faces, on_missing)
    if not photos:
        empty = torch.zeros(0, dtype=torch.float32)
        return Faces(empty.view(0, 4), empty.view(0, 5, 2), empty, empty.long())
    found = detect(load_detector(photos[0].device), photos, config)
    if faces == "largest":
        found = found[_largest(found)]
    seen = set(found.image_index.tolist())
    missing = [index for index in range(len(photos)) if index not in seen]
    if missing and on_missing == "raise":
        raise no_face(missing, [names[i] if names else f"image {i}" for i in missing])
    return _with_gaps(found, missing) if missing and on_missing == "nan" else found


def check_options(faces: str, on_missing: str) -> None:
    """Refuse option values that do not exist."""
    if faces not in ("largest", "all"):
        raise ValueError(f"faces must be 'largest' or 'all', got {faces!r}")
    if on_missing not in ("raise", "skip", "nan"):
        raise ValueError(f"on_missing must be 'raise', 'skip' or 'nan', got {on_missing!r}")


def slices(faces: Faces, batch_size: int) -> Iterator[Faces]:
    """Faces in parts that are cut out together: whole batches, and one part of no faces."""
    step = max(1, FACES_AT_ONCE // batch_size) * batch_size
    for begin in range(0, max(1, len(faces)), step):
        yield faces[begin : begin + step]


def prepare(photos: Sequence[Tensor], faces: Faces, preprocessing: Preprocessing) -> Tensor:
    """Cut faces out of their photographs, aligned to the template and normalised.

    Args:
        photos: uint8 RGB, each (H, W, 3).
        faces: faces of these photographs, none of them NaN.
        preprocessing: template, size and normalisation.

    Returns:
        (F, 3, S, S).
    """
    target = template_points(preprocessing.template, preprocessing.size)
    matrices = similarity_transform(faces.landmarks, target)
    crops = align(photos, faces.image_index, matrices, preprocessing.size)
    return normalise(crops, preprocessing)


def prepare_aligned(
    photos: Sequence[Tensor], preprocessing: Preprocessing, names: Sequence[str] | None = None
) -> Tensor:
    """Bring crops that show the template already to the network's size and normalise them.

    Args:
        photos: uint8 RGB, each (H, H, 3).
        preprocessing: template, size and normalisation.
        names: what to call the crops in an error.

    Returns:
        (F, 3, S, S).

    Raises:
        ImageError: if a crop is not square.
    """
    size = (preprocessing.size, preprocessing.size)
    crops = []
    for index, photo in enumerate(photos):
        if photo.shape[0] != photo.shape[1]:
            name = names[index] if names else f"image {index}"
            raise ImageError(
                f"{name} is {photo.shape[1]} x {photo.shape[0]}, but aligned=True wants "
                f"square crops in the template {preprocessing.template!r}; for photographs leave "
                "aligned out"
            )
        crop = photo.permute(2, 0, 1)[None].float()
        if photo.shape[0] != preprocessing.size:
            crop = F.interpolate(crop, size=size, mode="bilinear", antialias=True)
        crops.append(crop)
    return normalise(torch.cat(crops), preprocessing)


def normalise(crops: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels in [0, 255] to the network's range, channels last in memory, (F, 3, S, S)."""
    mean, std = (
        crops.new_tensor(values)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    normalised = (crops / 255 - mean) / std
    return normalised.contiguous(memory_format=torch.channels_last)


def _largest(found: Faces) -> Tensor:
    """Row of the largest face of every photograph that has one."""
    extent = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
    order = extent.argsort(descending=True, stable=True)
    order = order[found.image_index[order].argsort(stable=True)]
    index = found.image_index[order]
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1]
    return order[first]


def _with_gaps(found: Faces, missing: list[int]) -> Faces:
    """Rows of NaN where photographs have no face."""
    gaps = torch.tensor(missing, device=found.image_index.device)
    nan = float("nan")
    count = len(missing)
    index = torch.cat([found.image_index, gaps])
    order = index.argsort(stable=True)
    return Faces(
        torch.cat([found.boxes, found.boxes.new_full((count, 4), nan)])[order],
        torch.cat([found.landmarks, found.landmarks.new_full((count, 5, 2), nan)])[order],
        torch.cat([found.scores, found.scores.new_full((count,), nan)])[order],
        index[order],
    )


def no_face(missing: Sequence[int], names: Sequence[str], *, skipping: bool = True) -> NoFaceError:
    """What to raise where faces are wanted.

    Args:
        missing: indices of the photographs without a face.
        names: what these are called, of the first ``NAMED`` at least.
        skipping: whether the caller may leave photographs out.
    """
    skip = 'on_missing="skip" to leave them out or ' if skipping else ""
    more = len(missing) - NAMED
    rest = f" and {more} more" if more > 0 else ""
    return NoFaceError(
        f"no face found in {', '.join(names[:NAMED])}{rest}; pass "
        f'{skip}on_missing="nan" to keep their place, or '
        "aligned=True if they are aligned crops already",
        missing,
    )
