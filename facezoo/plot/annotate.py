"""Pictures of what was found: boxes, landmarks, labels and probabilities drawn on a photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from facezoo.preprocess.images import ImageSource, read_image
from facezoo.results import ExpressionPrediction, Faces

SMALLEST_SIDE = 480
"""Pictures with a shorter longer side are enlarged to it, so that writing has room, pixels."""
BARS = 3
"""How many classes are listed beside a face."""
COLOURS = ("#ffd166", "#06d6a0", "#4cc9f0", "#f78c6b", "#c77dff", "#f15bb5")

Point = tuple[float, float]
Box = tuple[float, float, float, float]


PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class _Mark:
    """One face to draw, in pixels of the picture."""

    box: Box
    points: list[Point]
    title: str
    bars: list[tuple[str, float]]
    colour: str


def annotate(
    photo: ImageSource, found: ExpressionPrediction | Faces, *, image_index: int = 0
) -> Image.Image:
    """Draw faces on a copy of a photograph.

    Args:
        photo: anything that ``read_image`` reads; it is not changed.
        found: where the faces stand, with or without their expressions.
        image_index: which photograph of ``found`` this is.

    Returns:
        An RGB picture of the photograph's size, or enlarged by a whole number if it is small.

    Raises:
        ImageError: if the photograph cannot be read.
        ValueError: if ``found`` comes from aligned crops and so does not know where faces stand.
    """
    if isinstance(found, ExpressionPrediction) and found.faces is None:
        raise ValueError(
            "this prediction has no faces, since its images came aligned; predict from the "
            "photograph, without aligned=True"
        )
    picture = Image.fromarray(read_image(photo))
    factor = max(1, math.ceil(SMALLEST_SIDE / max(picture.size)))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    overlay = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(overlay)
    marks = _marks(found, image_index, factor)
    for mark in marks:
        _draw_outline(draw, mark, picture.size)
    taken: list[Box] = [mark.box for mark in marks]
    for mark in marks:
        taken.append(_draw_panel(draw, mark, picture.size, taken))
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def picture_paths(files: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where to write the annotated picture of each photograph; never onto a photograph.

    Args:
        files: photographs.
        out: a ``.png`` or ``.jpg`` file for one photograph, or a folder, which need not exist.

    Raises:
        ValueError: if ``out`` does not suit.
    """
    into_folder = out.is_dir() or (out.suffix == "" and not out.exists()) or len(files) > 1
    if not into_folder and out.suffix.lower() not in PICTURES:
        raise ValueError(f"--save writes {', '.join(PICTURES)}, or into a folder; got {out}")
    if into_folder and (out.is_file() or out.suffix.lower() in PICTURES):
        raise ValueError(f"--save needs a folder for {len(files)} photographs, got {out}")
    paths: dict[Path, Path] = {}
    taken: set[str] = set()  # in one case, for file systems that know none
    number: dict[str, int] = {}
    for file in files:
        if file in paths:
            continue
        suffix = file.suffix if file.suffix.lower() in PICTURES else ".png"
        path = out / f"{file.stem}{suffix}" if into_folder else out
        name = path.name.casefold()
        while path.name.casefold() in taken:
            number[name] = number.get(name, 1) + 1
            path = out / f"{file.stem}-{number[name]}{suffix}"
        taken.add(path.name.casefold())
        paths[file] = path
    inputs = {file.resolve() for file in files}
    if over := [path for path in paths.values() if path.resolve() in inputs]:
        raise ValueError(f"--save would overwrite the photograph {over[0]}; choose another place")
    return paths


def _marks(found: ExpressionPrediction | Faces, image_index: int, factor: int) -> list[_Mark]:
    """The faces of one photograph; rows that stand for no face are left out."""
    faces = found.faces if isinstance(found, ExpressionPrediction) else found
    assert faces is not None
    marks: list[_Mark] = []
    for row in (faces.image_index == image_index).nonzero()[:, 0].tolist():
        box = [_enlarged(value, factor) for value in faces.boxes[row].tolist()]
        if not all(map(math.isfinite, box)):
            continue
        points = [
            (_enlarged(x, factor), _enlarged(y, factor)) for x, y in faces.landmarks[row].tolist()
        ]
        title, bars = f"face {float(faces.scores[row]):.2f}", []
        if isinstance(found, ExpressionPrediction):
            bars = _best(found, row)
            title = f"{found.labels[row]} {bars[0][1]:.0%}"
        colour = COLOURS[len(marks) % len(COLOURS)]
        marks.append(_Mark((box[0], box[1], box[2], box[3]), points, title, bars, colour))
    return marks


def _enlarged(value: float, factor: int) -> float:
    """A coordinate in the enlarged picture; pixel centres are whole numbers in both."""
    return (value + 0.5) * factor - 0.5


def _best(prediction: ExpressionPrediction, row: int) -> list[tuple[str, float]]:
    probabilities = prediction.probabilities[row].tolist()
    pairs = zip(prediction.classes, probabilities, strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])[:BARS]


def _draw_outline(draw: ImageDraw.ImageDraw, mark: _Mark, size: tuple[int, int]) -> None:
    width = max(2, round(max(size) / 320))
    draw.rectangle(mark.box, outline="#000000c0", width=width + 2)
    draw.rectangle(mark.box, outline=mark.colour, width=width)
    radius = max(2.0, (mark.box[2] - mark.box[0]) / 50)
    for x, y in mark.points:
        corners = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(corners, fill=mark.colour, outline="#000000c0")


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    mark: _Mark,
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Write label and probabilities beside the face, where they cover least; returns where."""
    height = _text_height(mark, size)
    font = ImageFont.load_default(size=height)
    pad, step, bar = height / 3, height * 1.25, height * 3
    column = max((draw.textlength(name, font=font) for name, _ in mark.bars), default=0.0)
    inside = max(draw.textlength(mark.title, font=font), column + pad + bar if mark.bars else 0)
    extent = (inside + 2 * pad, (1 + len(mark.bars)) * step + 2 * pad)
    left, top = _place(mark.box, extent, size, taken)
    panel = (left, top, left + extent[0], top + extent[1])
    draw.rectangle(panel, fill="#000000b0")
    draw.text((left + pad, top + pad), mark.title, fill=mark.colour, font=font)
    x = left + pad + column + pad
    for line, (name, value) in enumerate(mark.bars, 1):
        y = top + pad + line * step
        draw.text((left + pad, y), name, fill="#ffffff", font=font)
        draw.rectangle((x, y + 0.2 * height, x + bar, y + height), fill="#ffffff40")
        draw.rectangle((x, y + 0.2 * height, x + bar * value, y + height), fill=mark.colour)
    return panel


def _text_height(mark: _Mark, size: tuple[int, int]) -> float:
    """Writing grows with the face, within what is readable and what leaves room, pixels."""
    longest = max(size)
    return min(max((mark.box[2] - mark.box[0]) / 8, longest / 40, 12.0), longest / 24)


def _place(
    box: Box,
    panel: tuple[float, float],
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Point:
    """Upper left corner of a panel: right of, left of, under or above the face, kept in view."""
    width, height = panel
    places = [
        (box[2] + 4, box[1]),
        (box[0] - width - 4, box[1]),
        (box[0], box[3] + 4),
        (box[0], box[1] - height - 4),
    ]
    kept = [
        (max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))) for x, y in places
    ]

    def covered(place: Point) -> float:
        corners = (*place, place[0] + width, place[1] + height)
        return sum(_shared(corners, other) for other in taken)

    return min(kept, key=covered)


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Pixels that two rectangles share."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, across) * max(0.0, down)
