"""Aligned face crops of a data set, in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facezoo.data.expressions import ExpressionData
from facezoo.errors import ImageError, NoFaceError, warn_once
from facezoo.landmarks import similarity_transform, yaw_deg
from facezoo.preprocess.alignment import align
from facezoo.preprocess.images import ImageSource, describe, read_image
from facezoo.preprocess.pipeline import ImageBatch, ImageOptions, face_batches, read_batches
from facezoo.preprocess.templates import template_points

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Crops:
    """Aligned faces; the M rows of all fields agree."""

    images: Tensor
    """uint8, (M, 3, S, S)."""
    landmarks: Tensor
    """Five points in pixels of the crop, NaN if no face was found, (M, 5, 2)."""
    rows: Tensor
    """Row of the data set that each crop shows, int64, (M,)."""
    yaw_deg: Tensor
    """Degrees, positive to the image's right, NaN if no face was found, (M,)."""


def load_crops(
    data: ExpressionData,
    indices: Tensor | None = None,
    *,
    template: str = "arcface112",
    size: int = 112,
    margin: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> Crops:
    """Crop the face in each image of a data set, aligned to a template.

    The landmarks of the data set are used if it has them, else those of the largest face that the
    detector finds. An image without a face is left out with a warning. If the images are face
    crops already, it is aligned by the mean landmarks of the other images of this call, or as if
    it showed the template.

    Memory holds one batch of images and the crops, 3 (size + 2 margin)^2 bytes each.

    Args:
        data: data set as ``read_official`` returns it.
        indices: rows to load, such as ``data.rows("train")``, int64, (N,); None for all.
        size: side of the square that the template fills, pixels.
        margin: pixels around it on every side, for random shifts.

    Returns:
        Crops with side S = size + 2 margin, in the order of ``indices``.

    Raises:
        NoFaceError: if no image has a face.
        ImageError: if a file cannot be read; the message names it.
    """
    rows = torch.arange(len(data)) if indices is None else indices
    crops = cut_faces(
        data.name,
        [data.files[row] for row in rows.tolist()],
        None if data.landmarks is None else data.landmarks[rows],
        cropped=data.cropped,
        template=template,
        size=size,
        margin=margin,
        device=device,
        batch_size=batch_size,
    )
    return replace(crops, rows=rows[crops.rows])


def cut_faces(
    name: str,
    images: Sequence[ImageSource],
    landmarks: Tensor | None = None,
    *,
    cropped: bool = False,
    template: str = "arcface112",
    size: int = 112,
    margin: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    names: Sequence[str] | None = None,
    detection: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
) -> Crops:
    """Crop the face in each of several images, by its landmarks or by the detector.

    Args:
        name: name of the images in warnings and errors.
        images: inputs of ``read_image``, N; read twice if landmarks are missing.
        landmarks: five points in pixels, NaN if unknown, (N, 5, 2); None if none is known.
        cropped: whether each image shows a single face that fills it.
        size: side of the square that the template fills, pixels.
        margin: pixels around it on every side.
        names: name of each image in an error, N; None for its own.
        detection: settings of the detector by name, such as ``min_face``; None for the defaults.
        skip_unreadable: leave out images that cannot be read, with a warning.

    Returns:
        Crops in the order of the images; ``rows`` are indices of ``images``.

    Raises:
        NoFaceError: if no image has a face.
        ImageError: if an image cannot be read, or all with ``skip_unreadable``; the message names
            it.
    """
    points = torch.full((len(images), 5, 2), float("nan"))
    if landmarks is not None:
        points = landmarks.clone()
    named = list(zip(images, names or [""] * len(images), strict=True))
    errors: dict[int, ImageError] | None = {} if skip_unreadable else None
    sizes = _detect(named, points, torch.device(device), batch_size, detection or {}, errors)
    places = points.clone()
    if cropped:
        missing = ~_known(points)
        places[missing] = _usual_places(points, sizes, template)[missing]
    rows = _known(places).nonzero()[:, 0]
    missing_rows = [
        row for row in (~_known(places)).nonzero()[:, 0].tolist() if row not in (errors or {})
    ]
    if not len(rows):
        warn_unreadable(name, errors or {}, len(images))
        raise NoFaceError(f"no face was found in any of {len(images):,} images of {name}")
    if missing_rows:
        warn_once(
            f"no face was found in {len(missing_rows):,} images of {name}, which are left out; the "
            f"first is {describe(images[missing_rows[0]])}",
            stacklevel=3,
        )
    target = template_points(template, size) + margin
    matrices = similarity_transform(places[rows], target)
    moved = torch.einsum("nij,npj->npi", matrices[..., :2], points[rows])
    moved = moved + matrices[:, None, :, 2]
    chosen = [named[row] for row in rows.tolist()]
    broken: dict[int, ImageError] | None = None if errors is None else {}
    crops = align_images(
        chosen, read_pair, matrices, size + 2 * margin, batch_size=batch_size, errors=broken
    )
    if errors is not None and broken is not None:
        errors |= {int(rows[place]): error for place, error in broken.items()}
        warn_unreadable(name, errors, len(images))
        readable = [place for place in range(len(rows)) if place not in broken]
        crops, moved, rows = crops[readable], moved[readable], rows[readable]
    return Crops(crops, moved, rows, yaw_deg(moved))


def warn_unreadable(name: str, errors: Mapping[int, ImageError], count: int) -> None:
    """Warn of images that cannot be read and are left out.

    Args:
        name: name of the images.
        errors: errors by the index of the image.
        count: number of all images.

    Raises:
        ImageError: if none can be read.
    """
    if not errors:
        return
    first = errors[min(errors)]
    if len(errors) == count:
        raise ImageError(f"none of {count:,} images of {name} can be read; the first: {first}")
    warn_once(
        f"{len(errors):,} of {count:,} images of {name} cannot be read and are left out; the "
        f"first: {first}",
        stacklevel=3,
    )


def align_images(
    sources: Sequence[Any],
    read: Callable[[Any, int | None], NDArray[np.uint8]],
    matrices: Tensor,
    side: int,
    *,
    channels: int = 3,
    batch_size: int = 64,
    errors: dict[int, ImageError] | None = None,
) -> Tensor:
    """Read images and cut one crop of each.

    Args:
        sources: inputs of ``read``, N.
        read: function of a source and its index that returns an image (H, W, 3).
        matrices: pixels of the image to pixels of the crop, (N, 2, 3).
        side: side of the crops, pixels.
        channels: 3, or 1 to keep the first.
        errors: receives the error of each source that cannot be read, by its index; its crop is
            black. None to raise the error.

    Returns:
        uint8, (N, channels, side, side).

    Raises:
        ImageError: if a source cannot be read and ``errors`` is None.
    """
    crops = torch.zeros(len(sources), channels, side, side, dtype=torch.uint8)
    for batch in read_batches(
        *(sources, CPU),
        batch_size=batch_size,
        read=read,
        collect_errors=errors is not None,
        progress=True,
    ):
        if errors is not None:
            errors |= errors_of(batch)
        if rows := [batch.first + place for place in batch.index]:
            aligned = align(batch.images, torch.arange(len(rows)), matrices[rows], side)
            crops[rows] = aligned[:, :channels].round().to(torch.uint8)
    return crops


def errors_of(batch: ImageBatch) -> dict[int, ImageError]:
    """Return the errors of a batch by the index among all sources."""
    return {batch.first + place: error for place, error in batch.errors.items()}


def read_named(image: ImageSource, name: str) -> NDArray[np.uint8]:
    """Read an image as RGB; an error about bytes or an array names it.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        return read_image(image)
    except ImageError as error:
        if not name or isinstance(image, (str, os.PathLike)):
            raise
        raise ImageError(f"{name}: {error}") from error


def read_pair(source: tuple[ImageSource, str], _: int | None) -> NDArray[np.uint8]:
    """Read an image that comes with its name, for ``read_batches``."""
    return read_named(*source)


def _known(points: Tensor) -> Tensor:
    """Return which rows have all five landmarks, (N,)."""
    return torch.isfinite(points).all(2).all(1)


def _detect(
    images: Sequence[tuple[ImageSource, str]],
    points: Tensor,
    device: torch.device,
    batch_size: int,
    detection: Mapping[str, Any],
    errors: dict[int, ImageError] | None,
) -> Tensor:
    """Fill in missing landmarks by the detector.

    ``errors`` receives those of unreadable images by their row; None to raise them.

    Returns:
        Width and height of the images that it searched, NaN for the others, (N, 2).
    """
    sizes = torch.full((len(images), 2), float("nan"))
    missing = (~_known(points)).nonzero()[:, 0]
    sources = [images[row] for row in missing.tolist()]
    options = ImageOptions("largest", "skip", batch_size=batch_size, progress=True, **detection)
    for batch in face_batches(
        sources, device, options, read=read_pair, collect_errors=errors is not None
    ):
        if errors is not None:
            errors |= {int(missing[place]): error for place, error in errors_of(batch).items()}
        if not batch.images:
            continue
        rows = missing[[batch.first + place for place in batch.index]]
        sizes[rows] = torch.tensor([[float(i.shape[1]), float(i.shape[0])] for i in batch.images])
        assert batch.faces is not None
        faces = batch.faces
        points[rows[faces.image_index.cpu()]] = faces.landmarks.float().cpu()
    return sizes


def _usual_places(points: Tensor, sizes: Tensor, template: str) -> Tensor:
    """Return the mean landmarks of the known rows, scaled to images of these sizes, (N, 5, 2)."""
    shares = ((points + 0.5) / sizes[:, None])[_known(points)]
    shares = shares[_known(shares)]
    mean = shares.mean(0) if len(shares) else template_points(template, 1).float() + 0.5
    return mean * sizes[:, None] - 0.5
