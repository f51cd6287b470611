"""Face detection and aligned crops in one call, without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from facezoo.display import counted
from facezoo.hub.card import Preprocessing
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.detection import no_faces
from facezoo.preprocess.images import Images, ImageSource, as_list, no_face, read_images
from facezoo.preprocess.pipeline import (
    ImageBatch,
    ImageKeywords,
    ImageOptions,
    cut_batches,
    face_batches,
    faces_of,
    join_faces,
    read_batches,
)
from facezoo.preprocess.quality import measure
from facezoo.preprocess.signatures import check_images
from facezoo.registry import best_device
from facezoo.results import Faces, fill_rows


def detect(
    images: Images, device: str | torch.device | None = None, **options: Unpack[ImageKeywords]
) -> Faces:
    """Detect the faces in images.

    Args:
        images: one image or several: paths, bytes, PIL images, arrays or tensors.
        device: device of the detector; None for the best one.
        **options: choice and detection of the faces, as in ``FaceModel.encode_expression``:
            ``faces``, ``min_face``, ``rotations`` and others. By default an image without a face
            has no row.

    Returns:
        Boxes, landmarks and scores in pixels of the images, ordered by image, then by falling
        score. ``image_index`` is the place of the image in ``images``.

    Raises:
        ImageError: if an image cannot be read.
        NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.

    Examples:
        >>> facezoo.detect("grace_hopper.jpg")
        Faces(1 face in 1 image)
    """
    defaults: ImageKeywords = {"on_missing": "skip"}
    settings = ImageOptions(**(defaults | options))
    target = best_device(device)
    sources = as_list(images)
    if not sources:
        return measure([], no_faces(target))
    batches = face_batches(sources, target, settings, remedies=("skip", "nan"))
    return join_faces([faces_of(batch) for batch in batches], sources)


def crops(
    images: Images,
    template: str = "arcface112",
    size: int = 112,
    *,
    detections: Faces | None = None,
    device: str | torch.device | None = None,
    **options: Unpack[ImageKeywords],
) -> Tensor:
    """Cut the faces out of images, aligned to a template.

    Args:
        images: one image or several: paths, bytes, PIL images, arrays or tensors.
        template: name of the alignment template, such as ``"arcface112"`` or ``"ffhq"``.
        size: side of the crops, pixels.
        detections: faces to cut out, as ``detect`` returns them for the same images, in any order;
            None to detect them. Options that choose faces then raise an error.
        device: device of detector and crops; None for the best one.
        **options: choice and detection of the faces, as in ``FaceModel.encode_expression``:
            ``faces``, ``min_face``, ``rotations`` and others. By default an image without a face is
            an error.

    Returns:
        RGB in 0..255, uint8, (F, 3, S, S), in the order of the images, or of ``detections``. Models
        take them with ``aligned=True``.

    Raises:
        ImageError: if an image cannot be read.
        NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
        TypeError: if ``detections`` are not ``Faces``.
        ValueError: if ``on_missing`` is ``"nan"``, since pixels cannot be NaN, if ``size`` is not a
            whole number above 0, or if ``detections`` are of other images or come with options that
            choose faces.

    Examples:
        >>> facezoo.crops("grace_hopper.jpg", template="arcface112").shape
        torch.Size([1, 3, 112, 112])
    """
    settings = ImageOptions(**options)
    if settings.on_missing == "nan":
        raise ValueError("crops cannot be NaN; on_missing must be 'raise' or 'skip'")
    if int(size) != size or size < 1:
        raise ValueError(f"size must be a whole number of pixels, 1 or more, got {size}")
    size = int(size)
    preprocessing = Preprocessing(template=template, size=size, mean=(0,) * 3, std=(1,) * 3)
    target, sources = best_device(device), as_list(images)
    order = None
    if detections is None:
        batches = face_batches(sources, target, settings, remedies=["skip"])
    else:
        if unused := sorted(set(options) - {"on_missing", "batch_size", "progress"}):
            raise ValueError(
                f"{', '.join(unused)}: these options choose faces, and detections are chosen "
                "already; pass one of both"
            )
        known = _known_faces(detections, sources, settings)
        order = known.image_index.argsort(stable=True)
        batches = _with_faces(sources, target, settings, known[order])
    parts = [torch.empty(0, 3, size, size, dtype=torch.uint8, device=target)]
    for batch in batches:
        if batch.faces is not None and len(batch.faces):
            cut = cut_batches(batch.images, batch.faces, preprocessing, settings.batch_size)
            parts += [(part * 255).round().clamp(0, 255).to(torch.uint8) for part in cut]
    rows = torch.cat(parts).contiguous()
    return rows if order is None else rows[order.argsort().to(target)]


def unit_crops(
    images: Images, preprocessing: Preprocessing, device: torch.device, options: ImageOptions
) -> Tensor:
    """Cut the faces out of images as a model sees them, without its normalization.

    Args:
        images: one image or several.
        preprocessing: template and size.
        device: device of detector and crops.
        options: choice and detection of the faces.

    Returns:
        RGB in [0, 1], (F, 3, S, S); NaN for an image without a face if ``on_missing`` is ``"nan"``.
    """
    sources, size = as_list(images), preprocessing.size
    plain = replace(preprocessing, mean=(0,) * 3, std=(1,) * 3)
    if options.aligned:
        pixels = [torch.from_numpy(image).to(device) for image in read_images(sources)]
        return prepare_aligned(pixels, plain)
    parts = [torch.empty(0, 3, size, size, dtype=torch.float32, device=device)]
    for batch in face_batches(sources, device, options):
        assert batch.faces is not None
        known = torch.isfinite(batch.faces.scores)
        cut = cut_batches(batch.images, batch.faces[known], plain, options.batch_size)
        parts.append(fill_rows(torch.cat(list(cut)), known))
    return torch.cat(parts)


def _known_faces(faces: Faces, sources: Sequence[ImageSource], settings: ImageOptions) -> Faces:
    """Check that faces are of the images, and leave rows of NaN out if the options allow it."""
    if not isinstance(faces, Faces):
        raise TypeError(
            f"detections must be Faces, got {type(faces).__name__}; pass the result of detect, or "
            "the attribute faces of an encoding or a prediction"
        )
    if len(faces) and (last := int(faces.image_index.max())) >= len(sources):
        raise ValueError(
            f"detections have a face of image {last}, got only {counted(len(sources), 'image')}; "
            "pass the images of the detections"
        )
    known = faces.scores.isfinite()
    if settings.on_missing == "raise" and not bool(known.all()):
        raise no_face(faces.image_index[~known].tolist(), sources, ["skip"])
    return faces[known]


def _with_faces(
    sources: Sequence[ImageSource], device: torch.device, settings: ImageOptions, faces: Faces
) -> Iterator[ImageBatch]:
    """Read images in batches and add their faces, which are sorted by image."""
    faces = faces.to(device)
    size, progress = settings.batch_size, settings.progress
    for batch in read_batches(sources, device, batch_size=size, progress=progress):
        check_images(batch.images, faces, batch.first)
        place = faces.image_index - batch.first
        inside = (place >= 0) & (place < len(batch.images))
        yield replace(batch, faces=replace(faces[inside], image_index=place[inside]))
