"""The image pipeline: read images, find faces and cut aligned crops, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from math import prod
from typing import Any, Literal, Protocol, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facezoo.errors import ImageError
from facezoo.hub.card import Preprocessing
from facezoo.preprocess import images as reading
from facezoo.preprocess.alignment import prepare
from facezoo.preprocess.bundled import detector_in, load_detector
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.images import REMEDIES, describe, file_name, no_face, read_image
from facezoo.preprocess.jpeg import Jpeg, JpegDecoder, decode, read_or_keep
from facezoo.preprocess.prefetch import DECODERS, prefetch
from facezoo.preprocess.quality import measure
from facezoo.preprocess.signatures import signatures
from facezoo.progress import progress_bar
from facezoo.results import Faces, concatenate, fill_rows
from facezoo.runtimes import Runtime

Which = Literal["largest", "all"]
OnMissing = Literal["raise", "skip", "nan"]
Loaded = NDArray[np.uint8] | Jpeg | Tensor | ImageError
"""An image in memory, or the reason why it cannot be read."""

BATCH_BYTES = 128 * 2**20
"""Limit on the pixels of a batch, however large ``batch_size`` is, bytes."""
FACES_AT_ONCE = 256
"""Limit on the faces that are cut out together, so that a crowd fits into memory."""
DETECTION = ("min_face", "score_threshold", "max_side", "rotations")
"""Settings of the detector among the options."""
DEFAULT = DetectionConfig()


class ImageKeywords(TypedDict, total=False):
    """Keyword arguments of every method that takes images; see ``ImageOptions``."""

    faces: Which
    on_missing: OnMissing
    aligned: bool
    batch_size: int
    progress: bool
    min_face: float | None
    score_threshold: float | None
    max_side: int | None
    rotations: Sequence[int] | None


ONE_FACE: ImageKeywords = {"faces": "largest"}
"""Default of functions that compare or combine two images."""


@dataclass(frozen=True)
class ImageOptions:
    """Options of every method that takes images.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if an option has no such value.
    """

    def __new__(cls, *_: Any, **options: Any) -> ImageOptions:
        """Name an unknown option, instead of this class, which users do not call."""
        names = list(ImageKeywords.__annotations__)
        for name in options:
            if name not in names:
                near = " or ".join(get_close_matches(name, names)) or ", ".join(names)
                raise TypeError(f"unknown option {name!r}; did you mean {near}?")
        return super().__new__(cls)

    faces: Which = "all"
    """``"all"`` for every face, ``"largest"`` for one face per image."""
    on_missing: OnMissing = "raise"
    """Action for an image without a face: ``"raise"`` an error, ``"skip"`` it, or keep its
    place with a row of ``"nan"``."""
    aligned: bool = False
    """The images are crops in the model's template already."""
    batch_size: int = 64
    """Number of images, and then of faces, that are processed at once."""
    progress: bool = False
    """Show a progress bar, on a terminal or in a notebook."""
    min_face: float | None = None
    """Least side of a face to detect, pixels; None for the default of ``DetectionConfig``."""
    score_threshold: float | None = None
    """Least score of a face; None for the default."""
    max_side: int | None = None
    """Longer side of the images that the detector takes, pixels; None for the default."""
    rotations: Sequence[int] | None = None
    """Rotations of the image at which faces are searched, multiples of 90 degrees
    counterclockwise; None for the default."""
    detection: DetectionConfig = field(init=False)
    """Settings of the detector."""

    def __post_init__(self) -> None:
        if self.faces not in ("largest", "all"):
            raise ValueError(f"faces must be 'largest' or 'all', got {self.faces!r}")
        if self.on_missing not in ("raise", "skip", "nan"):
            raise ValueError(
                f"on_missing must be 'raise', 'skip' or 'nan', got {self.on_missing!r}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        settings = {n: value for n in DETECTION if (value := getattr(self, n)) is not None}
        detection = DetectionConfig.override(**settings) if settings else DEFAULT
        object.__setattr__(self, "detection", detection)


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of a sequence, on a device."""

    first: int
    """Index of the first source among all sources."""
    sources: Sequence[Any]
    """The B sources."""
    images: list[Tensor]
    """Readable images, uint8 RGB, each (H, W, 3)."""
    index: list[int]
    """Place in ``sources`` of each of ``images``."""
    errors: dict[int, ImageError]
    """Errors of the unreadable images by their place in ``sources``."""
    faces: Faces | None = None
    """Faces in ``images``; None if they were not searched."""


class Clock(Protocol):
    """Measures the time of the stages "wait", "detect", "align" and "encode"."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Measure the time inside the context."""


def read_batches(
    sources: Sequence[Any],
    device: torch.device,
    *,
    batch_size: int = 64,
    read: Callable[[Any, int | None], Any] | None = None,
    workers: int = DECODERS,
    serial: Callable[[Any], bool] | None = None,
    jpeg: JpegDecoder = "pillow",
    collect_errors: bool = False,
    progress: bool = False,
    clock: Clock | None = None,
) -> Iterator[ImageBatch]:
    """Read images in batches; files and bytes are decoded in threads ahead of time.

    Args:
        sources: single images, see ``facezoo.preprocess.images.as_list``, or inputs of ``read``.
        batch_size: images per batch; fewer if they exceed ``BATCH_BYTES``.
        read: function, run in threads, of a source and its index (None for a single one); returns
            (H, W, 3) or a ``Jpeg``, may raise ``ImageError``. None for ``read_image``.
        serial: whether a source must be read after all earlier serial ones, see ``prefetch``.
        jpeg: decoder of JPEG files, if ``read`` is None.
        collect_errors: whether an unreadable image goes into ``ImageBatch.errors``.
        progress: whether to show a progress bar, on a terminal or in a notebook.
        clock: measures the time that is spent waiting for images.

    Raises:
        ImageError: if an image cannot be read and ``collect_errors`` is False.
    """
    timed = clock.stage if clock else nullcontext
    count = len(sources)
    threads = count > 1 and (
        read is not None or all(isinstance(s, (str, os.PathLike, bytes)) for s in sources)
    )
    if read is None:
        read = read_image if jpeg == "pillow" else partial(read_or_keep, decoder=jpeg)

    def load(index: int) -> Loaded:
        if isinstance(sources[index], Tensor):  # converted later, a batch at a time
            return cast(Tensor, sources[index])
        try:
            return cast(Loaded, read(sources[index], index if count > 1 else None))
        except ImageError as error:
            return error

    loaded: Any = map(load, range(count))
    if threads:
        loaded = prefetch(
            load,
            range(count),
            workers=workers,
            ahead=2 * batch_size,
            size=_bytes_of,
            serial=serial and (lambda index: serial(sources[index])),
        )
    images = iter(loaded)
    bar = progress_bar(total=count, desc="images", unit="image") if progress else None
    batch, size = list[Loaded](), 0
    try:
        for index in range(count):
            with timed("wait"):
                batch.append(next(images))
            if bar is not None:
                bar.update()
            size += _bytes_of(batch[-1])
            if size >= BATCH_BYTES or len(batch) == batch_size or index + 1 == count:
                yield _moved(sources, index + 1 - len(batch), batch, device, collect_errors)
                batch, size = [], 0
    finally:
        for part in (bar, loaded if threads else None):
            if part is not None:
                part.close()


def face_batches(
    sources: Sequence[Any],
    device: torch.device,
    options: ImageOptions,
    *,
    runtime: Runtime = "torch",
    clock: Clock | None = None,
    remedies: Iterable[str] = REMEDIES,
    **reading: Any,
) -> Iterator[ImageBatch]:
    """Read images and find their faces in batches.

    Args:
        sources: single images, or inputs of ``read``, as in ``read_batches``.
        device: device of the images and of the detector.
        options: choice of faces, batch size and progress bar.
        remedies: options that the error for missing faces advises, see ``no_face``.
        **reading: further arguments of ``read_batches``.

    Raises:
        ImageError: if an image cannot be read and ``collect_errors`` is False.
        NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``. All images are
            searched before, and ``missing`` holds every such index.
    """
    timed = clock.stage if clock else nullcontext
    missing: list[int] = []
    for batch in read_batches(
        sources,
        device,
        batch_size=options.batch_size,
        progress=options.progress,
        clock=clock,
        **reading,
    ):
        with timed("detect"):
            faces = _detect(batch.images, device, options.faces, options.detection, runtime)
        lacking = sorted({*range(len(batch.images))}.difference(faces.image_index.tolist()))
        if lacking and options.on_missing == "raise":
            missing += [batch.first + batch.index[place] for place in lacking]
        elif lacking and options.on_missing == "nan":
            faces = _with_gaps(faces, lacking)
        if not missing:
            yield replace(batch, faces=faces)
    if missing:
        raise no_face(missing, sources, remedies)


def faces_of(batch: ImageBatch) -> Faces:
    """Return the measured faces of a batch of readable images, indexed among all sources."""
    assert batch.faces is not None
    index, faces = batch.faces.image_index + batch.first, measure(batch.images, batch.faces)
    return replace(faces, image_index=index, signatures=signatures(batch.images))


def join_faces(batches: Sequence[Faces], sources: Sequence[Any]) -> Faces:
    """Concatenate the faces of batches, and add the file names of all images."""
    names = tuple(map(file_name, sources))
    faces: Faces = concatenate(batches)
    return replace(faces, files=names if any(names) else None)


def cut_batches(
    images: Sequence[Tensor],
    faces: Faces,
    preprocessing: Preprocessing,
    batch_size: int = 64,
    clock: Clock | None = None,
) -> Iterator[Tensor]:
    """Yield the crops of faces in parts that fit into memory, whole batches each.

    Args:
        images: uint8 RGB, each (H, W, 3).
        faces: faces of these images, without NaN rows.
        batch_size: crops that are encoded at once.

    Yields:
        Normalized crops (F, 3, S, S); one part without crops if there is no face.
    """
    timed = clock.stage if clock else nullcontext
    step = max(1, FACES_AT_ONCE // batch_size) * batch_size
    count = len(faces.scores)
    for begin in range(0, max(1, count), step):
        part = faces if count <= step else faces[begin : begin + step]
        with timed("align"):
            crops = prepare(images, part, preprocessing)
        yield crops


def to_device(images: Sequence[Loaded], device: torch.device) -> list[Any]:
    """Move images to a device, and decode there what is still JPEG.

    Arrays go to a GPU in one copy from pinned memory, without a wait.

    Args:
        images: arrays, JPEG files or tensors.

    Returns:
        uint8 RGB, each (H, W, 3); an ``ImageError`` for each image that cannot be read.
    """
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if device.type != "cuda" or not arrays:
        moved = [torch.from_numpy(array).to(device) for array in arrays]
    else:
        sizes = [array.size for array in arrays]
        pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True, device="cpu")
        for part, array in zip(pinned.split(sizes), arrays, strict=True):
            part.view(array.shape).copy_(torch.from_numpy(array))
        parts = pinned.to(device, non_blocking=True).split(sizes)
        moved = [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
    if len(arrays) == len(images):
        return moved
    tensors = [image for image in images if isinstance(image, Tensor)]
    results: dict[type, Iterator[Any]] = {
        np.ndarray: iter(moved),
        Jpeg: iter(decode([image for image in images if isinstance(image, Jpeg)], device)),
        Tensor: iter(reading.read_tensors(tensors, device)),
    }
    kinds = [next((kind for kind in results if isinstance(i, kind)), None) for i in images]
    return [
        image if k is None else next(results[k]) for image, k in zip(images, kinds, strict=True)
    ]


def _bytes_of(image: Loaded) -> int:
    """Count the bytes of an image once it is decoded."""
    if isinstance(image, Tensor):
        return 3 * prod(image.shape[-2:])
    return 0 if isinstance(image, ImageError) else image.nbytes


def _moved(
    sources: Sequence[Any],
    first: int,
    loaded: Sequence[Loaded],
    device: torch.device,
    collect_errors: bool,
) -> ImageBatch:
    """Build the batch of loaded images, which begins at the source ``first``."""
    images: list[Tensor] = []
    index: list[int] = []
    errors: dict[int, ImageError] = {}
    for place, image in enumerate(to_device(loaded, device)):
        if not isinstance(image, ImageError):
            images.append(image)
            index.append(place)
            continue
        if isinstance(loaded[place], Tensor):  # these errors have no name yet
            number = first + place if len(sources) > 1 else None
            image = ImageError(f"{describe(loaded[place], number)}: {image}")
        if not collect_errors:
            raise image
        errors[place] = image
    return ImageBatch(first, sources[first : first + len(loaded)], images, index, errors)


def _detect(
    images: Sequence[Tensor],
    device: torch.device,
    which: Which,
    config: DetectionConfig | None = None,
    runtime: Runtime = "torch",
) -> Faces:
    detector = load_detector(device) if runtime == "torch" else detector_in(runtime)
    faces = detect(detector, images, config)
    if which == "largest" and len(faces) > 1:
        extent = (faces.boxes[:, 2:] - faces.boxes[:, :2]).prod(1)
        order = extent.argsort(descending=True, stable=True)
        order = order[faces.image_index[order].argsort(stable=True)]
        index = faces.image_index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        faces = faces[order[first]]
    return faces


def _with_gaps(faces: Faces, missing: list[int]) -> Faces:
    """Insert a row of NaN for each image without a face."""
    index = torch.cat([faces.image_index, faces.image_index.new_tensor(missing)])
    order = index.argsort(stable=True)
    known = torch.arange(len(index), device=index.device)[order] < len(faces)
    rows = replace(faces, image_index=faces.scores)  # whole numbers have no NaN
    return replace(fill_rows(rows, known), image_index=index[order])
