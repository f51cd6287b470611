"""Draw results on images: boxes, landmarks, labels and probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from facezoo.preprocess.images import ImageSource, read_image
from facezoo.results import ExpressionPrediction, Faces

SMALLEST_SIDE = 480
"""Images with a shorter longer side are enlarged to it, so that labels have room, pixels."""
BARS = 3
"""Classes in the panel of a face."""
COLORS = ("#ffd166", "#06d6a0", "#4cc9f0", "#f78c6b", "#c77dff", "#f15bb5")
SUFFIXES = (".jpg", ".jpeg", ".png")

Box = tuple[float, ...]


@dataclass(frozen=True)
class _Mark:
    """One face to draw, in pixels of the picture."""

    box: Box
    points: list[tuple[float, ...]]
    title: str
    bars: list[tuple[str, float]]
    color: str


def annotate(
    image: ImageSource, result: ExpressionPrediction | Faces, *, image_index: int = 0
) -> Image.Image:
    """Draw faces on a copy of an image.

    Args:
        image: an image, see ``facezoo.preprocess.images.read_image``.
        result: faces, with or without their expressions.
        image_index: index of this image among the images of ``result``.

    Returns:
        An RGB picture of the size of the image, or enlarged by a whole number if it is small.

    Raises:
        ImageError: if the image cannot be read.
        ValueError: if ``result`` has no faces because its images were aligned, or if a face lies
            outside the image.
    """
    faces = result.faces if isinstance(result, ExpressionPrediction) else result
    if faces is None:
        raise ValueError(
            "this prediction has no faces, because its images were aligned; predict from the "
            "original image, without aligned=True"
        )
    picture = Image.fromarray(read_image(image))
    _check_inside(faces, image_index, picture.size)
    factor = max(1, math.ceil(SMALLEST_SIDE / max(picture.size)))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    overlay = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(overlay)
    marks = _marks(result, faces, image_index, factor)
    for mark in marks:
        _draw_outline(draw, mark, picture.size)
    occupied = [mark.box for mark in marks]
    for mark in marks:
        occupied.append(_draw_panel(draw, mark, picture.size, occupied))
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def _check_inside(faces: Faces, image_index: int, size: tuple[int, int]) -> None:
    """Reject the image of another result: the center of a face lies inside its image."""
    for x0, y0, x1, y1 in faces.boxes[faces.image_index == image_index].tolist():
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        if min(x, y) < -1 or x > size[0] or y > size[1]:
            raise ValueError(
                f"a face at x {x:.0f}, y {y:.0f} lies outside image {image_index} of "
                f"{size[0]}x{size[1]} pixels; pass the images of the result, in the same order"
            )


def picture_paths(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Choose the file of the annotated picture of each image, never an image itself.

    Args:
        files: images.
        out: a ``.png`` or ``.jpg`` file for one image, or a folder, which need not exist.

    Raises:
        ValueError: if ``out`` does not fit, or a picture would overwrite an image.
    """
    into_folder = out.is_dir() or (out.suffix == "" and not out.exists()) or len(files) > 1
    if not into_folder and out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--save writes {', '.join(SUFFIXES)}, or into a folder; got {out}")
    if into_folder and (out.is_file() or out.suffix.lower() in SUFFIXES):
        raise ValueError(f"--save needs a folder for {len(files)} images, got {out}")
    paths: dict[Path, Path] = {}
    names: set[str] = set()  # without case, as on some file systems
    numbers: dict[str, int] = {}
    for file in dict.fromkeys(files):
        suffix = file.suffix if file.suffix.lower() in SUFFIXES else ".png"
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


def _marks(
    result: ExpressionPrediction | Faces, faces: Faces, image_index: int, factor: int
) -> list[_Mark]:
    """Collect the faces of one image; rows of NaN are left out."""
    marks: list[_Mark] = []
    for row in (faces.image_index == image_index).nonzero()[:, 0].tolist():
        if not bool(faces.boxes[row].isfinite().all()):
            continue
        # Pixel centers are whole numbers in the image and in the enlarged picture.
        box = ((faces.boxes[row] + 0.5) * factor - 0.5).tolist()
        points = [tuple(p) for p in ((faces.landmarks[row] + 0.5) * factor - 0.5).tolist()]
        title, bars = f"face {float(faces.scores[row]):.2f}", []
        if isinstance(result, ExpressionPrediction):
            pairs = zip(result.classes, result.probabilities[row].tolist(), strict=True)
            bars = sorted(pairs, key=lambda pair: -pair[1])[:BARS]
            title = f"{result.labels[row]} {bars[0][1]:.0%}"
        marks.append(_Mark(tuple(box), points, title, bars, COLORS[len(marks) % len(COLORS)]))
    return marks


def _draw_outline(draw: ImageDraw.ImageDraw, mark: _Mark, size: tuple[int, int]) -> None:
    width = max(2, round(max(size) / 320))
    draw.rectangle(mark.box, outline="#000000c0", width=width + 2)
    draw.rectangle(mark.box, outline=mark.color, width=width)
    radius = max(2.0, (mark.box[2] - mark.box[0]) / 50)
    for x, y in mark.points:
        corners = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(corners, fill=mark.color, outline="#000000c0")


def _draw_panel(
    draw: ImageDraw.ImageDraw, mark: _Mark, size: tuple[int, int], occupied: Sequence[Box]
) -> Box:
    """Write label and probabilities next to the face, where they cover least; return the panel."""
    # Text grows with the face, within limits that are readable and leave room.
    longest = max(size)
    height = min(max((mark.box[2] - mark.box[0]) / 8, longest / 40, 12.0), longest / 24)
    font = ImageFont.load_default(size=height)
    pad, step, bar = height / 3, height * 1.25, height * 3
    column = max((draw.textlength(name, font=font) for name, _ in mark.bars), default=0.0)
    inside = max(draw.textlength(mark.title, font=font), column + pad + bar if mark.bars else 0)
    extent = (inside + 2 * pad, (1 + len(mark.bars)) * step + 2 * pad)
    left, top = _place(mark.box, extent, size, occupied)
    panel = (left, top, left + extent[0], top + extent[1])
    draw.rectangle(panel, fill="#000000b0")
    draw.text((left + pad, top + pad), mark.title, fill=mark.color, font=font)
    x = left + pad + column + pad
    for line, (name, value) in enumerate(mark.bars, 1):
        y = top + pad + line * step
        draw.text((left + pad, y), name, fill="#ffffff", font=font)
        draw.rectangle((x, y + 0.2 * height, x + bar, y + height), fill="#ffffff40")
        draw.rectangle((x, y + 0.2 * height, x + bar * value, y + height), fill=mark.color)
    return panel


def _place(
    box: Box, extent: tuple[float, float], size: tuple[int, int], occupied: Sequence[Box]
) -> tuple[float, float]:
    """Choose the upper left corner of a panel: right, left, below or above the face, in view."""
    width, height = extent
    places = [
        (box[2] + 4, box[1]),
        (box[0] - width - 4, box[1]),
        (box[0], box[3] + 4),
        (box[0], box[1] - height - 4),
    ]

    def covered(place: tuple[float, float]) -> float:
        x, y = place
        sides = (
            (
                min(x + width, other[2]) - max(x, other[0]),
                min(y + height, other[3]) - max(y, other[1]),
            )
            for other in occupied
        )
        return sum(max(0.0, across) * max(0.0, down) for across, down in sides)

    visible = [
        (max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))) for x, y in places
    ]
    return min(visible, key=covered)
