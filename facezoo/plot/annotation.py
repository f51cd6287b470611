"""Draw results on images: boxes, landmarks, labels and bars of probabilities.

Colors mean classes: the color-blind safe ones of Okabe and Ito, with gray instead of black.
Text grows with the face, and covers neither faces nor other text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from facezoo.preprocess.images import ImageSource, read_image
from facezoo.preprocess.signatures import check_images
from facezoo.results import ExpressionPrediction, Faces

COLORS = (
    *("#bbbbbb", "#f0e442", "#e69f00", "#0072b2"),
    *("#d55e00", "#009e73", "#cc79a7", "#56b4e9"),
)
"""Color of each class, in the order of the classes."""
SMALLEST_SIDE, SMALLEST_FACE, LARGEST_SIDE = 480, 64, 2000
"""An image is enlarged until its longer side and its median face have this many pixels; for the
face only up to the largest side."""
BARS = 3
"""Classes in the panel of a face."""
FEW = 4
"""Limit on the faces that get bars if no style is chosen."""
SMALLEST_TEXT = 9.0
"""Pixels; a label that needs smaller text is left out."""
SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mkv", ".mov", ".mp4", ".webm")

Style = Literal["box", "label", "bars"]
Box = tuple[float, ...]


@dataclass(frozen=True)
class _Mark:
    """One face to draw, in pixels of the picture."""

    box: Box
    """The part of the box in the picture."""
    side: float
    """Width of the whole box."""
    points: list[tuple[float, ...]]
    name: str
    title: str
    """Name and label."""
    bars: list[tuple[str, float, str]]
    """Name, probability and color of the most probable classes."""
    color: str


def annotate(
    image: ImageSource,
    result: ExpressionPrediction | Faces,
    *,
    image_index: int = 0,
    style: Style | None = None,
    landmarks: bool = False,
    names: Sequence[object] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Draw faces on a copy of an image, which is enlarged if it or its faces are small.

    A box that leaves the image is drawn up to the border.

    Args:
        image: an image: a path, bytes, a PIL image, an array or a tensor.
        result: faces, with or without their expressions.
        image_index: index of this image among the images of ``result``.
        style: ``"box"``; ``"label"`` for the class and its probability; ``"bars"`` for the three
            most probable classes; None for bars with up to four faces, else labels. Text that
            finds no place is replaced by the next smaller style.
        landmarks: whether to draw the five landmarks.
        names: a name per face of ``result``, written before its label, such as its number or
            track. If the label finds no place, the name is drawn alone, on the face if need be.
        scale: whole number to enlarge the image by; 1 keeps its size. None enlarges until the
            longer side has 480 pixels and the median face is 64 pixels wide; for the face, the
            longer side stays within 2000 pixels.

    Returns:
        An RGB picture of the size of the image, times ``scale``. The boxes of ``result`` are in
        pixels of the image, so they do not fit an enlarged picture; pass ``scale=1`` to use both.

    Raises:
        ImageError: if the image cannot be read.
        ValueError: if ``result`` has no faces because its images were aligned, if its faces were
            not found in this image, if ``image_index`` is not an image of it, or if ``style`` is
            unknown.

    Examples:
        >>> from facezoo.plot import annotate
        >>> prediction = model.predict_expression("grace_hopper.jpg", faces="all")
        >>> annotate("grace_hopper.jpg", prediction, style="label").save(tmp / "annotated.png")

        With the number of each face:

        >>> picture = annotate("grace_hopper.jpg", prediction, names=range(len(prediction)))
    """
    if style is not None and style not in get_args(Style):
        raise ValueError(f"style must be 'box', 'label', 'bars' or None, got {style!r}")
    faces = result.faces if isinstance(result, ExpressionPrediction) else result
    if faces is None:
        raise ValueError(
            "this prediction has no faces, because its images were aligned; predict from the "
            "original image, without aligned=True"
        )
    pixels = read_image(image)
    check_images([torch.from_numpy(pixels)], faces, image_index)
    picture = Image.fromarray(pixels)
    words = None if names is None else [str(name) for name in names]
    if words is not None and len(words) != len(faces):
        raise ValueError(f"names must be one per face, {len(faces)}, got {len(words)}")
    rows = ((faces.image_index == image_index) & faces.boxes.isfinite().all(1)).nonzero()[:, 0]
    boxes = faces.boxes[rows].cpu().numpy()
    if faces.signatures is None:
        _check_inside(boxes, image_index, picture.size)
    factor = scale or _enlargement(boxes, picture.size)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    overlay = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(overlay)
    marks = [_mark(result, faces, row, factor, picture.size, words) for row in rows.tolist()]
    for mark in marks:
        _draw_outline(draw, mark, landmarks)
    lines = BARS if (style or ("bars" if len(marks) <= FEW else "label")) == "bars" else 0
    outlines, texts = [mark.box for mark in marks], list[Box]()
    for mark in sorted(marks, key=lambda mark: -mark.side):
        if style != "box" and mark.title:
            texts += _draw_text(draw, mark, picture.size, outlines, texts, lines)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def numbers_of(prediction: ExpressionPrediction) -> Sequence[int] | None:
    """Return the names for ``annotate`` that number several faces; one face needs none."""
    return range(len(prediction)) if len(prediction) > 1 else None


def _check_inside(boxes: NDArray[np.float32], image_index: int, size: tuple[int, int]) -> None:
    """Reject the image of another result: the box of a face touches its image."""
    for x0, y0, x1, y1 in boxes.tolist():
        if min(x1, y1) < -1 or x0 > size[0] or y0 > size[1]:
            raise ValueError(
                f"a face at x {(x0 + x1) / 2:.0f}, y {(y0 + y1) / 2:.0f} lies outside image "
                f"{image_index} of {size[0]}x{size[1]} pixels; pass the images of the result, in "
                "the same order and not resized"
            )


def picture_paths(
    files: Sequence[Path], out: Path, videos: Collection[Path] = ()
) -> dict[Path, Path]:
    """Choose the file of the annotated picture of each image, never an image itself.

    Args:
        files: images and videos.
        out: a ``.png`` or ``.jpg`` file for one image, a file such as ``.mp4`` for one video, or a
            folder, which need not exist.
        videos: those of ``files`` that are videos.

    Raises:
        ValueError: if ``out`` does not fit, or a picture would overwrite an image.
    """
    into_folder = out.is_dir() or (out.suffix == "" and not out.exists()) or len(files) > 1
    allowed = VIDEO_SUFFIXES if files[0] in videos else SUFFIXES
    if not into_folder and out.suffix.lower() not in allowed:
        kind = "of a video writes" if files[0] in videos else "writes"
        raise ValueError(f"--save {kind} {', '.join(allowed)}, or into a folder; got {out}")
    if into_folder and (out.is_file() or out.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES):
        raise ValueError(f"--save needs a folder for {len(files)} images, got {out}")
    paths: dict[Path, Path] = {}
    names: set[str] = set()  # without case, as on some file systems
    numbers: dict[str, int] = {}
    for file in dict.fromkeys(files):
        allowed, other = (VIDEO_SUFFIXES, ".mp4") if file in videos else (SUFFIXES, ".png")
        suffix = file.suffix if file.suffix.lower() in allowed else other
        path = out / f"{file.stem}{suffix}" if into_folder else out
        first = path.name.casefold()
        while path.name.casefold() in names:
            numbers[first] = numbers.get(first, 1) + 1
            path = out / f"{file.stem}-{numbers[first]}{suffix}"
        names.add(path.name.casefold())
        paths[file] = path
    inputs = {file.resolve() for file in files}
    if over := [path for path in paths.values() if path.resolve() in inputs]:
        raise ValueError(f"--save would overwrite the image {over[0]}; choose another place")
    return paths


def _enlargement(boxes: NDArray[np.float32], size: tuple[int, int]) -> int:
    """Choose the whole number by which an image is enlarged, so that text has room."""
    longest = max(size)
    face = float(np.median(boxes[:, 2] - boxes[:, 0])) if len(boxes) else math.inf
    for_faces = min(math.ceil(SMALLEST_FACE / max(face, 1.0)), LARGEST_SIDE // longest)
    return max(1, math.ceil(SMALLEST_SIDE / longest), for_faces)


def _mark(
    result: ExpressionPrediction | Faces,
    faces: Faces,
    row: int,
    factor: int,
    size: tuple[int, int],
    names: Sequence[str] | None,
) -> _Mark:
    """Collect what is drawn of a face."""
    # Pixel centers are whole numbers in the image and in the enlarged picture.
    corners = ((faces.boxes[row] + 0.5) * factor - 0.5).tolist()
    box = tuple(min(max(v, 0.0), limit - 1.0) for v, limit in zip(corners, size * 2, strict=True))
    points = [tuple(p) for p in ((faces.landmarks[row] + 0.5) * factor - 0.5).tolist()]
    name = "" if names is None else names[row]
    title, bars, color = "", list[tuple[str, float, str]](), COLORS[-1]
    if isinstance(result, ExpressionPrediction):
        colors = (COLORS[n % len(COLORS)] for n in range(len(result.classes)))
        triples = zip(result.classes, result.probabilities[row].tolist(), colors, strict=True)
        bars = sorted(triples, key=lambda triple: -triple[1])[:BARS]
        color = bars[0][2]
        title = f"{result.labels[row]} {bars[0][1]:.0%}"
    title = f"{name} {title}".strip()
    return _Mark(box, corners[2] - corners[0], points, name, title, bars, color)


def _draw_outline(draw: ImageDraw.ImageDraw, mark: _Mark, landmarks: bool) -> None:
    width = min(max(2, round(mark.side / 40)), 6)
    draw.rectangle([v + d for v, d in zip(mark.box, (-1, -1, 1, 1), strict=True)], outline="#000a")
    draw.rectangle(mark.box, outline=mark.color, width=width)
    radius = max(1.5, mark.side / 50)
    for x, y in mark.points if landmarks else ():
        corners = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(corners, fill=mark.color, outline="#000a")


def _draw_text(
    draw: ImageDraw.ImageDraw,
    mark: _Mark,
    size: tuple[int, int],
    boxes: Sequence[Box],
    texts: Sequence[Box],
    lines: int,
) -> list[Box]:
    """Write label and bars next to a face, as large as fits; return the place, if there is one."""
    largest = min(max(mark.side / 7, min(max(size) / 60, mark.side / 3)), max(size) / 24)
    heights = [h for h in (largest * 0.85**k for k in range(8)) if h >= SMALLEST_TEXT]
    heights = heights or [SMALLEST_TEXT]
    bars = tuple(mark.bars[:lines])
    variants = [(mark.title, bars), (mark.title, ()), (mark.name, ())]
    for title, shown in dict.fromkeys(variant for variant in variants if variant[0]):
        for height in heights:
            extent = _extent(title, shown, height)
            if place := next(_free_places(mark.box, extent, size, [*boxes, *texts]), None):
                _draw_panel(draw, mark, title, shown, height, place)
                return [place]
    title = mark.title if len(boxes) == 1 else mark.name
    if not title:
        return []
    places = list(_places_on(mark.box, _extent(title, (), heights[-1]), size))
    place = next((p for p in places if not _overlaps(p, texts)), places[0])
    _draw_panel(draw, mark, title, (), heights[-1], place)
    return [place]


@cache
def _font(height: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=height)


def _extent(title: str, bars: Sequence[tuple[str, float, str]], height: float) -> Box:
    """Return width and height of a panel: a line of text, and a line per bar."""
    font = _font(height)
    column = max((font.getlength(name) for name, *_ in bars), default=0.0)
    inside = max(font.getlength(title), column + 3.3 * height if bars else 0.0)
    return inside + 0.6 * height, (1 + len(bars)) * 1.25 * height + bool(bars) * 0.1 * height


def _free_places(
    box: Box, extent: Box, size: tuple[int, int], occupied: Sequence[Box]
) -> Iterator[Box]:
    """Yield places at the four sides of a face, inside the picture, that cover nothing."""
    (x0, y0, x1, y1), (width, height) = box, extent
    above, below, middle = y0 - height - 2, y1 + 2, (x0 + x1 - width) / 2
    places = [
        *((x, y) for y in (above, below) for x in (x0, x1 - width, middle)),
        *((x, y) for x in (x1 + 2, x0 - width - 2) for y in (y0, y1 - height)),
    ]
    if height > width / 3:  # a panel with bars
        places = places[6:] + places[:6]
    for x, y in places:
        x, y = min(max(x, 0.0), size[0] - width), min(max(y, 0.0), size[1] - height)
        place = (x, y, x + width, y + height)
        if min(x, y) >= 0 and not _overlaps(place, occupied):
            yield place


def _places_on(box: Box, extent: Box, size: tuple[int, int]) -> Iterator[Box]:
    """Yield places in the corners of a box, the lower left first, moved into the picture."""
    (x0, y0, x1, y1), (width, height) = box, extent
    for y in (y1 - height, y0):
        for x in (x0, x1 - width):
            left, top = max(min(x, size[0] - width), 0.0), max(min(y, size[1] - height), 0.0)
            yield left, top, left + width, top + height


def _overlaps(place: Box, others: Sequence[Box]) -> bool:
    left, top, right, bottom = place
    return any(left < o[2] and o[0] < right and top < o[3] and o[1] < bottom for o in others)


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    mark: _Mark,
    title: str,
    bars: Sequence[tuple[str, float, str]],
    height: float,
    place: Box,
) -> None:
    left, top, right, _ = place
    font, pad, step = _font(height), 0.3 * height, 1.25 * height
    draw.rectangle(place, fill="#000c")
    draw.rectangle((left, top, right, top + step), fill=mark.color)
    dark = sum(ImageColor.getrgb(mark.color)) < 300
    draw.text((left + pad, top), title, fill="#fff" if dark else "#000", font=font)
    x, full = right - pad - 3 * height, 3 * height
    for line, (name, value, color) in enumerate(bars, 1):
        y = top + line * step
        draw.text((left + pad, y), name, fill="#fff", font=font)
        draw.rectangle((x, y + 0.2 * height, x + full, y + height), fill="#555")
        draw.rectangle((x, y + 0.2 * height, x + full * value, y + height), fill=color)
