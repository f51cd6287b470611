"""Aligned crops of a data set's photographs, in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.data.expressions import ExpressionData
from facezoo.data.yaw import yaw_deg
from facezoo.errors import ImageError, NoFaceError, warn_once
from facezoo.preprocess.alignment import align, similarity_transform
from facezoo.preprocess.images import ImageSource, describe, read_image
from facezoo.preprocess.pipeline import find_faces, to_device
from facezoo.preprocess.templates import template_points

_READERS = 4  # threads that decode a batch
_Named = tuple[ImageSource, str]


@dataclass(frozen=True)
class Crops:
    """Aligned faces; the M rows of all fields agree."""

    images: Tensor
    """uint8, (M, 3, S, S)."""
    landmarks: Tensor
    """Five points in pixels of the crop, NaN where no face was found, (M, 5, 2)."""
    rows: Tensor
    """Which row of the data set each crop shows, int64, (M,)."""
    yaw_deg: Tensor
    """Degrees, positive to the image's right, NaN where no face was found, (M,)."""


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
    """Find the face in each image of a data set and cut it out, aligned to a template.

    Landmarks of the data set are used where it has them; elsewhere the largest face that the
    detector finds counts. An image without a face is left out, with a warning, unless the images
    of the set are crops of a face already: then it is aligned by the mean place of the landmarks
    in the other images of this call or, if none has a face, taken to show the template itself.

    Memory holds one batch of photographs beside the result, whose crops need
    3 (size + 2 margin)^2 bytes each.

    Args:
        data: as read by ``read_official``.
        indices: rows to load, such as ``data.rows("train")``, int64, (N,); None for all.
        template: name of the alignment template.
        size: side of the square that the template fills, pixels.
        margin: pixels kept around it on every side, so that a random shift has something to show.
        device: where the detector runs.
        batch_size: photographs at a time.

    Returns:
        Crops with side S = size + 2 margin, in the order of ``indices``.

    Raises:
        NoFaceError: if no image is left.
        ImageError: if a file cannot be read as an image; the message names it.
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
) -> Crops:
    """Find the face in each of several images and cut it out; see ``load_crops``.

    Args:
        name: what the images are called in a warning or error.
        images: anything that ``read_image`` takes, N; it is read twice where landmarks are missing.
        landmarks: five points in pixels, NaN where unknown, (N, 5, 2); None if none is known.
        cropped: whether each image shows a single face that fills it.
        template: name of the alignment template.
        size: side of the square that the template fills, pixels.
        margin: pixels kept around it on every side.
        device: where the detector runs.
        batch_size: images at a time.
        names: what each is called in an error beside what it is, N; None for that alone.

    Returns:
        Crops in the order of the images; ``rows`` are places in ``images``.

    Raises:
        NoFaceError: if no image is left.
        ImageError: if an image cannot be read; the message names it.
    """
    points = torch.full((len(images), 5, 2), float("nan"))
    if landmarks is not None:
        points = landmarks.clone()
    named = [*zip(images, [""] * len(images) if names is None else names, strict=True)]
    sizes = _detect(named, points, torch.device(device), batch_size)
    found = _known(points)
    places = points.clone()
    if cropped:
        places[~found] = _usual_places(points, sizes, template)[~found]
    kept = _known(places)
    if not bool(kept.all()):
        _report_missing(name, [i for i, k in zip(images, kept.tolist(), strict=True) if not k])
    if not bool(kept.any()):
        raise NoFaceError(f"no face was found in any of {len(images):,} images of {name}")
    matrices = similarity_transform(places[kept], template_points(template, size) + margin)
    chosen = [image for image, keep in zip(named, kept.tolist(), strict=True) if keep]
    moved = torch.einsum("nij,npj->npi", matrices[..., :2], points[kept])
    moved = moved + matrices[:, None, :, 2]
    return Crops(
        images=_cut(chosen, matrices, size + 2 * margin, batch_size),
        landmarks=moved,
        rows=kept.nonzero()[:, 0],
        yaw_deg=yaw_deg(moved),
    )


def _known(points: Tensor) -> Tensor:
    """Which rows have all five landmarks, (N,)."""
    return torch.isfinite(points).all(2).all(1)


def _detect(
    images: Sequence[_Named], points: Tensor, device: torch.device, batch_size: int
) -> Tensor:
    """Fill in landmarks that are NaN where the detector finds a face.

    Returns:
        Width and height of the images it was shown, NaN for the others, (N, 2).
    """
    sizes = torch.full((len(images), 2), float("nan"))
    missing = (~_known(points)).nonzero()[:, 0]
    wanted = [images[row] for row in missing.tolist()]
    for begin, photos in _read_batches(wanted, batch_size, "finding faces"):
        here = missing[begin : begin + len(photos)]
        sizes[here] = torch.tensor([[float(p.shape[1]), float(p.shape[0])] for p in photos])
        faces = find_faces(to_device(photos, device), on_missing="skip")
        points[here[faces.image_index.cpu()]] = faces.landmarks.float().cpu()
    return sizes


def _usual_places(points: Tensor, sizes: Tensor, template: str) -> Tensor:
    """Where a face's landmarks are to be expected in images of these sizes, (N, 5, 2)."""
    shares = ((points + 0.5) / sizes[:, None])[_known(points)]
    shares = shares[_known(shares)]
    mean = shares.mean(0) if len(shares) else template_points(template, 1).float() + 0.5
    return mean * sizes[:, None] - 0.5


def _report_missing(name: str, images: Sequence[ImageSource]) -> None:
    warn_once(
        f"no face was found in {len(images):,} images of {name}, which are left out; the first is "
        f"{describe(images[0])}",
        stacklevel=4,
    )


def _cut(images: Sequence[_Named], matrices: Tensor, side: int, batch_size: int) -> Tensor:
    """One crop of each photograph, uint8, (N, 3, side, side)."""
    crops = torch.empty(len(images), 3, side, side, dtype=torch.uint8)
    for begin, photos in _read_batches(images, batch_size, "aligning"):
        end = begin + len(photos)
        pixels = [torch.from_numpy(photo) for photo in photos]
        part = align(pixels, torch.arange(len(photos)), matrices[begin:end], side)
        crops[begin:end] = part.round().to(torch.uint8)
    return crops


def read_named(image: ImageSource, name: str) -> NDArray[np.uint8]:
    """A photograph as RGB; if it cannot be read and is no file of its own, the error names it too.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        return read_image(image)
    except ImageError as error:
        if not name or isinstance(image, (str, os.PathLike)):
            raise
        raise ImageError(f"{name}: {error}") from error


def _read_batches(
    images: Sequence[_Named], size: int, title: str
) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """Batches of decoded photographs, each with the number of its first."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="decode") as pool:
        for begin in tqdm(range(0, len(images), size), desc=title, unit="batch"):
            yield (
                begin,
                list(pool.map(read_named, *zip(*images[begin : begin + size], strict=True))),
            )
